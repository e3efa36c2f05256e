"""Recurrent memory in fp64, one process: nothing but rounding may be left of a difference."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.modernbert import modeling_modernbert

from megatron_dna.config import Config, load_config
from megatron_dna.model.encoder import DnaBert, build_model
from megatron_dna.parallel import topology
from megatron_dna.parallel.engine import SegmentEngine, StageResult
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.schedule import SegmentSchedule
from megatron_dna.parallel.topology import Topology
from tests.dist.gradients import assemble, local_pieces
from tests.dist.harness import run_ranks
from tests.dist.test_memory_parity import MEM, SHAPE, VOCAB, as_hf, batches, case, reference

FULL = "train.recompute_granularity=full"
CASES = {
    f"{update}, {segments} segments, depth {depth}{', recompute' * bool(more)}": case(
        segments, depth, 6, update, *more
    )
    for update, (segments, depth, more) in itertools.product(
        ("plain", "binary"),
        ((1, -1, ()), (2, -1, ()), (2, 1, ()), (5, -1, ()), (5, 2, ()), (5, 2, (FULL,))),
    )
}


def _ours_and_references() -> dict[str, tuple]:
    """By case: (loss, gradients) by the engine, and by the definition."""
    # ModernBERT rounds queries and keys to fp32 where it rotates them; Llama has the same formula.
    modeling_modernbert.apply_rotary_pos_emb = apply_rotary_pos_emb
    place = topology.initialize(load_config(None, SHAPE), setup_platform("cpu"))
    results = {}
    for name, overrides in CASES.items():
        config = load_config(None, SHAPE + overrides)
        model = build_model(config, VOCAB, place.groups, "local", torch.device("cpu")).double()
        loss = _run_engine(model, config, place)
        weights, gradients = (assemble([local_pieces(model, of)]) for of in ("data", "grad"))
        want = reference(config, weights, torch.float64)
        results[name] = (loss, as_hf(config, gradients)), want
    topology.shutdown()
    return results


def _run_engine(model: DnaBert, config: Config, place: Topology) -> float:
    """Forward and backward over the global batch; the loss."""
    windows = list(batches(config, 0, 1))
    num_masked = sum(window.loss_mask.sum() for window in windows)
    loss = torch.zeros((), dtype=torch.float64)

    def forward(task, hidden, memory):
        window, s = windows[task.micro_batch], task.segment
        mask = window.attention_mask[s]
        output = model(window.input_ids[s], mask, window.masked_positions[s], memory=memory)
        # Megatron's own cross-entropy works in fp32, so the loss is taken here.
        losses = F.cross_entropy(
            output.logits.transpose(1, 2), window.labels[s], reduction="none"
        )  # fmt: skip
        part = (losses * window.loss_mask[s]).sum() / num_masked
        loss.add_(part.detach())
        return StageResult(output.hidden, part, output.new_memory)

    memory = config.memory
    SegmentEngine(
        SegmentSchedule(memory.max_n_segments, memory.bptt_depth, len(windows)),
        place.ring,
        forward,
        hidden_shape=lambda _: (),
        memory_shape=(MEM, config.train.micro_batch_size, config.model.hidden_size),
        dtype=torch.float64,
        device=torch.device("cpu"),
    ).run(forward_only=False)
    return loss.item()


@pytest.fixture(scope="module")
def results() -> dict[str, tuple]:
    """Every case, in one process of its own."""
    return run_ranks(_ours_and_references, 1)[0]


@pytest.mark.parametrize("name", CASES)
def test_fp64_gradients_equal_the_reference(results, name: str):
    """In fp32 rounding could hide a small wrong term, and a flipped sign; here neither can."""
    (loss, got), (want_loss, want) = results[name]
    assert abs(loss - want_loss) <= 1e-12 * want_loss
    assert got.keys() == want.keys()
    for key, gradient in want.items():
        error = (got[key] - gradient).norm() / gradient.norm()
        assert error <= 1e-9, f"{key}: relative error {error:.2e}"
