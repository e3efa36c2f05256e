"""Runs through a curriculum: they resume exactly, at any layout, and start from other runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_dna.checkpoint.folders import find_latest
from megatron_dna.checkpoint.manifest import CheckpointError
from megatron_dna.checkpoint.reader import read_train_state, read_weights
from megatron_dna.parallel.step import run_step
from megatron_dna.training.metrics import read_records
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.small_run import BF16, CP, PLAIN, PP, SP, TP, VOCAB, SmallRun, batches
from tests.dist.test_resume import _go_back, _record, _tensors, _train

STAGES = [
    {"n_segments": 1, "train_iters": 3},
    {
        "n_segments": 2,
        "until": {"metric": "train/loss", "threshold": 3.6, "window": 2},
        "vary_n_segments": 0.5,
    },
    {"n_segments": 3, "until": {"metric": "valid/loss", "threshold": 3.3, "window": 1}},
    {"n_segments": 3, "until": {"metric": "train/loss", "patience": 1, "window": 1}, "lr": 0.004},
    {
        "n_segments": 5,
        "until": {"metric": "train/accuracy", "threshold": 0.05, "window": 2},
        "vary_n_segments": 0.6,
    },
    {"n_segments": 5, "vary_n_segments": 1.0},
]
MEMORY = [
    "memory.num_mem_tokens=4", "memory.max_n_segments=5", "memory.update=binary",
    "memory.noise_std=0.5", "memory.noise_start=1", "memory.noise_ramp_iters=10",
    f"memory.curriculum={json.dumps(STAGES)}",
    "train.eval_interval=2", "logging.log_interval=1",
]  # fmt: skip
LAYOUTS = {
    "one": (1, []),
    "tp2_sp": (2, [TP, SP]),
    "pp2_bf16": (2, [PP, BF16]),
    "dp2_plain": (2, [PLAIN]),
}


def _stages(run: Path) -> list[tuple[int, int]]:
    """(iteration, stage) of every change."""
    changes = [(0, 0)]
    for record in read_records(run / "metrics.jsonl"):
        if record["train/curriculum_stage"] != changes[-1][1]:
            changes.append((record["iteration"], int(record["train/curriculum_stage"])))
    return changes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_run_equals_unbroken_run(tmp_path: Path, layout: str):
    """One bit of difference means that part of the curriculum is not in the checkpoint."""
    world_size, extra = LAYOUTS[layout]
    run = tmp_path / "run"
    options = [
        *write_data(tmp_path), *MEMORY, *extra, f"train.output_dir={run}",
        "train.train_iters=24", "checkpoint.save_interval=4",
    ]  # fmt: skip
    run_ranks(_train, world_size, options)
    tensors, record = _tensors(run), _record(run)
    assert [stage for _, stage in _stages(run)] == [0, 1, 2, 3, 4, 5]
    newest = find_latest(run / "checkpoints")
    assert newest is not None
    state = read_train_state(newest)  # a stage's spikes are not measured by the losses of another
    assert state.guard.num_losses == state.curriculum.iterations > 0
    for start in (4, 12, 20) if layout == "one" else (12,):
        _go_back(run, start)
        assert run_ranks(_train, world_size, options) == [start] * world_size
        assert _record(run) == record
        for name, tensor in _tensors(run).items():
            assert torch.equal(tensor, tensors[name]), name


def test_run_goes_on_at_other_layouts(tmp_path: Path):
    """A difference means that stages, draws or noise depend on the layout."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [
        *write_data(tmp_path), *MEMORY, "memory.update=plain", "train.train_iters=24",
        "checkpoint.save_interval=6",
    ]  # fmt: skip
    run_ranks(_train, 1, [*options, f"train.output_dir={whole}"])
    options.append(f"train.output_dir={parts}")
    for start, extra in ((0, [TP, SP]), (6, [PP]), (12, ["train.micro_batch_size=1"]), (18, [CP])):
        if start:
            _go_back(parts, start)
        assert run_ranks(_train, 2, [*options, *extra]) == [start] * 2
    assert _stages(parts) == _stages(whole)
    want, got = _record(whole), _record(parts)
    assert [line.keys() for line in got] == [line.keys() for line in want]
    for want_line, got_line in zip(want, got, strict=True):
        assert got_line == pytest.approx(want_line, rel=1e-5)


@pytest.mark.parametrize("extra", [[], [TP, SP], [PP], [CP], [TP, PP]])
def test_training_counts_correct_predictions_as_evaluation_does(extra: list[str]):
    """A difference means that accuracy over a split vocabulary is not accuracy."""
    for rank in run_ranks(_count_both_ways, 2 ** len([e for e in extra if e != SP]), extra):
        trained, evaluated = rank
        assert trained == evaluated
        assert 0 < trained < 8 * 2 * 22


def _count_both_ways(extra: list[str]) -> list[int]:
    run = SmallRun.start([*extra, "optimizer.lr=0.02", "data.mlm_probability=0.9"])
    run.train(0, 4)  # an untrained model hits next to nothing
    counts = []
    for forward_only in (False, True):
        place, data = run.place, batches(run.config, 0, run.place.dp_rank, run.place.dp_size)
        with torch.set_grad_enabled(not forward_only):
            result = run_step(
                run.model, data, run.config, place, torch.arange(VOCAB), 4, forward_only,
                count_correct=True,
            )  # fmt: skip
        counts.append(result.num_correct)
    return counts


PLAIN_RUN = ["train.train_iters=4", "checkpoint.save_interval=0"]


def _start(overrides: list[str]) -> int:
    """A run that saves before its first step too; returns Adam's step there."""
    from megatron_dna.checkpoint.optimizer_state import get_step
    from megatron_dna.checkpoint.saving import save_checkpoint
    from megatron_dna.config import load_config
    from megatron_dna.training.trainer import Trainer

    config = load_config(None, overrides)
    trainer = Trainer(config)
    assert trainer.state.iteration == 0
    step = get_step(trainer.optimizer)
    folder = Path(config.train.output_dir) / "start"
    save_checkpoint(folder, trainer.session.model, trainer.optimizer, trainer.state, config)
    trainer.train()
    trainer.close()
    return step


@pytest.mark.parametrize(("extra", "step"), [([], 0), (["checkpoint.load_optimizer=true"], 4)])
@pytest.mark.parametrize("layout", ["tp2_sp", "pp2_bf16", "dp2_plain"])
def test_memory_starts_from_a_plain_run(tmp_path: Path, layout: str, extra: list[str], step: int):
    """The weights are those of the plain run, only memory is new; counts begin at zero."""
    world_size, parallel = LAYOUTS[layout]
    plain, run = tmp_path / "plain", tmp_path / "run"
    data = write_data(tmp_path)
    run_ranks(_train, 1, [*data, *PLAIN_RUN, f"train.output_dir={plain}"])
    options = [
        *data, *MEMORY, *parallel, *extra, *PLAIN_RUN, f"train.output_dir={run}",
        f"checkpoint.load={plain}",
    ]  # fmt: skip
    assert run_ranks(_start, world_size, options) == [step] * world_size
    old_path, new_path = find_latest(plain / "checkpoints"), find_latest(run / "start")
    assert old_path is not None
    assert new_path is not None
    old, new = read_weights(old_path), read_weights(new_path)
    assert new.keys() - old.keys() == {"embedding.initial_memory"}
    for name, tensor in old.items():
        assert torch.equal(new[name], tensor), name
    assert new["embedding.initial_memory"].std() > 0.1
    moments = _tensors_of(new_path)
    assert moments["optimizer.state.exp_avg.embedding.initial_memory"].abs().max() == 0
    other = moments["optimizer.state.exp_avg.embedding.word_embeddings.weight"].abs().max()
    assert (other > 0) == (step > 0)
    last = find_latest(run / "checkpoints")
    assert last is not None
    assert read_train_state(last).iteration == 4


def test_another_architecture_is_not_loaded(tmp_path: Path):
    plain, data = tmp_path / "plain", write_data(tmp_path)
    run_ranks(_train, 1, [*data, *PLAIN_RUN, f"train.output_dir={plain}"])
    options = [*data, f"checkpoint.load={plain}", f"train.output_dir={tmp_path}/run"]
    message = run_ranks(_refusal, 2, [*options, "model.norm_bias=true", PP])
    assert "model.norm_bias (True) differs from checkpoint.load" in message[0]
    assert message[0] == message[1]


def _refusal(overrides: list[str]) -> str:
    from megatron_dna.config import load_config
    from megatron_dna.training.trainer import Trainer

    with pytest.raises(CheckpointError) as error:
        Trainer(load_config(None, overrides))
    return str(error.value)


def _tensors_of(path: Path) -> dict[str, torch.Tensor]:
    from megatron_dna.checkpoint.metadata import read_shapes

    tensors = {name: torch.empty(shape) for name, shape in read_shapes(path).items()}
    reader = torch.distributed.checkpoint.FileSystemReader(str(path))
    torch.distributed.checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return tensors
