"""Scores with memory kept, reset, swapped: on a model that remembers, and against a slow loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_dna.config import load_config
from megatron_dna.data.loader import build_loader
from megatron_dna.data.recall import RecallTask
from megatron_dna.model.encoder import StageOutput
from megatron_dna.parallel import topology
from megatron_dna.training.memory_evaluation import CONTROLS, evaluate_memory
from megatron_dna.training.session import Session, open_session
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data

RECALL = [
    "data.kind=recall", "data.segment_size=20", "data.recall_vocab_size=30",
    "memory.num_mem_tokens=4", "memory.max_n_segments=2",
    "model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=48",
    "model.num_attention_heads=4", "model.init_method_std=0.2",
    "train.micro_batch_size=4", "train.global_batch_size=8", "train.eval_iters=2",
    "train.precision=fp32", "parallel.platform=cpu",
]  # fmt: skip


class Notebook(torch.nn.Module):
    """A model made by hand: memory slot i holds symbol i of the barcode; blank memory says 9."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        initial = F.one_hot(torch.full((4,), 9), hidden_size).float()
        self.module = SimpleNamespace(embedding=SimpleNamespace(initial_memory=initial))
        self.ddp_config = SimpleNamespace(overlap_param_gather=False)
        self.segments_seen = 0

    def set_is_first_microbatch(self) -> None:
        """Part of Megatron-Core's modules; there is no FP8 here."""

    def forward(self, ids: Tensor, mask: None, positions: Tensor, memory: Tensor | None) -> Any:
        """Write down what follows WRITE (6), answer with what is written."""
        self.segments_seen += 1
        if memory is None:
            memory = self.module.embedding.initial_memory[:, None].repeat(1, len(ids), 1)
        writes = ids[:, 1] == 6
        found = F.one_hot(ids[:, 2:6].T, memory.shape[-1]).float()
        memory = torch.where(writes[None, :, None], found, memory)
        return StageOutput(logits=100 * memory.transpose(0, 1)[..., :30], new_memory=memory)


def notebook_scores(num_segments: int) -> tuple[dict[str, Any], int]:
    """On a rank: what the evaluation says of the model whose answers are known."""
    session = open_session(load_config(None, RECALL))
    make = RecallTask.make

    def make_one(self: RecallTask, samples: Any, count: int, segments: range | None = None) -> Any:
        assert segments is not None
        assert len(segments) == 1, "a whole chain was held at once"
        return make(self, samples, count, segments)

    RecallTask.make = make_one
    model = Notebook(session.config.model.hidden_size)
    session = dataclasses.replace(session, model=model)
    scores = evaluate_memory(session, num_segments).to_dict()
    topology.shutdown()
    return scores, model.segments_seen


@pytest.mark.parametrize("num_segments", [2, 5, 300])
def test_a_model_that_remembers_is_recognised(num_segments: int):
    """If this fails, the controls do not do to memory what they say, or chains are cut."""
    ((scores, segments_seen),) = run_ranks(notebook_scores, 1, num_segments)
    assert scores["num_masked"] == 2 * 8 * 4
    assert scores["kept"]["accuracy"] == 1
    assert scores["swapped"]["donor_accuracy"] == 1
    task = RecallTask(30, 20, 1234, 1)
    codes = task.barcodes(np.arange(16)).reshape(4, 4, 4)
    assert scores["reset"]["accuracy"] == pytest.approx((codes == 9).mean())
    assert scores["swapped"]["accuracy"] == pytest.approx((codes == np.roll(codes, 1, 1)).mean())
    assert [row["segment"] for row in scores["kept"]["by_segment"]] == [num_segments - 1]
    assert segments_seen == 4 * num_segments, "controls were computed where nothing is asked"


def test_without_a_past_the_controls_are_one():
    """A single segment has no memory to lose."""
    ((scores, _),) = run_ranks(notebook_scores, 1, 1)
    for control in CONTROLS:
        assert scores[control]["accuracy"] == 1
    assert "donor_accuracy" not in scores["swapped"]


def genome(folder: Path) -> list[str]:
    """Options of a small model with memory on a small genome; its last windows are padded."""
    options = [option for option in write_data(folder) if "_batch_size" not in option]
    return [
        *options, "memory.num_mem_tokens=4", "memory.max_n_segments=2",
        "train.micro_batch_size=4", "train.global_batch_size=8",
    ]  # fmt: skip


def slow_scores(session: Session, num_segments: int) -> np.ndarray:
    """The definition, a sample and a control at a time: [3, S, loss, masked, correct]."""
    memory = dataclasses.replace(session.config.memory, max_n_segments=num_segments)
    config = dataclasses.replace(session.config, memory=memory)
    batches = build_loader(config, "valid", 0, 0, 1)
    sums = np.zeros((3, num_segments, 3))
    for batch, _ in zip(batches, range(4), strict=False):
        chains: list[Tensor | None] = [None] * 4
        for s in range(num_segments):
            arrived = list(chains)
            for i in range(4):
                for control, carried in enumerate((arrived[i], None, arrived[i - 1])):
                    mask = batch.attention_mask
                    output = session.model(
                        batch.input_ids[s, i : i + 1],
                        None if mask is None else mask[s, i : i + 1],
                        batch.masked_positions[s, i : i + 1],
                        memory=carried,
                    )
                    if control == 0:
                        chains[i] = output.new_memory
                    logits, labels = output.logits[0], batch.labels[s, i]
                    seen = batch.loss_mask[s, i]
                    losses = F.cross_entropy(logits, labels, reduction="none") * seen
                    right = (logits.argmax(-1) == labels) * seen
                    sums[control, s] += [losses.sum().item(), seen.sum().item(), right.sum().item()]
    return sums


def model_scores(options: list[str], lengths: list[int], slow: bool = False) -> list[np.ndarray]:
    """On a rank: the sums of evaluations of a model with its initial weights."""
    session = open_session(load_config(None, options))
    with torch.no_grad():
        results = [
            slow_scores(session, n) if slow else evaluate_memory(session, n).sums for n in lengths
        ]
    topology.shutdown()
    return results


LAYOUTS = {
    "one": (1, []),
    "dp2": (2, []),
    "tp2_sp": (2, ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"]),
    "pp2": (2, ["parallel.pipeline_model_parallel_size=2"]),
    "cp2": (2, ["parallel.context_parallel_size=2"]),
    "tp2_pp2": (
        4,
        ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"],
    ),
}
LENGTHS = [1, 2, 4]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name files."""
    return genome(tmp_path_factory.mktemp("genome"))


@pytest.fixture(scope="module")
def definition(data: list[str]) -> list[np.ndarray]:
    """The slow loop's sums on one process."""
    return run_ranks(model_scores, 1, data, LENGTHS, True)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_scores_by_the_definition(
    data: list[str], definition: list[np.ndarray], layout: str
):
    """A difference means that the reported use of memory depends on how the model is split."""
    world_size, overrides = LAYOUTS[layout]
    for results in run_ranks(model_scores, world_size, [*data, *overrides], LENGTHS):
        for got, want in zip(results, definition, strict=True):
            np.testing.assert_allclose(got[..., :2], want[..., :2], rtol=1e-5)
            assert (got[..., 2] == want[..., 2]).all()
    with_memory, without, swapped = definition[-1][..., 0]
    assert with_memory[0] == without[0]
    assert abs(with_memory[1:] - without[1:]).min() > 1e-3, "the test cannot tell reset from kept"
    assert abs(with_memory[1:] - swapped[1:]).min() > 1e-3, "the test cannot tell swapped from kept"


@pytest.mark.parametrize("layout", ["pp2", "tp2_sp"])
def test_recall_scores_are_equal_too(layout: str):
    """Chains whose controls run at the last segment only: shapes change on the way."""
    (one,) = run_ranks(model_scores, 1, RECALL, [1, 3])
    world_size, overrides = LAYOUTS[layout]
    for results in run_ranks(model_scores, world_size, [*RECALL, *overrides], [1, 3]):
        for got, want in zip(results, one, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_plain_encoder_is_a_baseline_on_the_same_windows(data: list[str]):
    """Its scores by segment stand beside those of a model with memory; controls change nothing."""
    plain = [*data, "memory.num_mem_tokens=0", "memory.max_n_segments=1", "memory.curriculum=[]"]
    (results,) = run_ranks(model_scores, 1, plain, [1, 4])
    kept, reset, swapped = results[1]
    assert kept.shape[0] == 4
    assert (kept[:, 1] > 0).all()
    np.testing.assert_array_equal(kept, reset)
    np.testing.assert_array_equal(kept[:, :3], swapped[:, :3])


def refusal(options: list[str], num_segments: int) -> str:
    """On a rank: the message of the error."""
    session = open_session(load_config(None, options))
    with pytest.raises(ValueError, match="must be") as error:
        evaluate_memory(session, num_segments)
    topology.shutdown()
    return str(error.value)


def test_what_cannot_be_evaluated_is_refused(data: list[str]):
    """A silent zero or a crash in the middle would be worse."""
    (message,) = run_ranks(refusal, 1, data, 0)
    assert "--num-segments (0) must be positive" in message
    (message,) = run_ranks(refusal, 1, [*RECALL, "train.micro_batch_size=1"], 2)
    assert "train.micro_batch_size (1) must be at least 2" in message
