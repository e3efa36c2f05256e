"""The same command again: runs that stop and go on end as runs that never stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megatron_dna.checkpoint.folders import find_latest, set_latest
from megatron_dna.checkpoint.metadata import read_shapes
from megatron_dna.config import load_config
from megatron_dna.training.metrics import read_records
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.small_run import BF16, CP, PLAIN, PP, SP, TP

CLOCK = ("per_second", "per_device")


def _train(overrides: list[str]) -> int:
    """A whole run; returns the iteration it started from."""
    from megatron_dna.training.trainer import Trainer

    trainer = Trainer(load_config(None, overrides))
    start = trainer.state.iteration
    trainer.train()
    trainer.close()
    return start


def _go_back(run: Path, iteration: int) -> None:
    """Leave the run as it was just after its checkpoint at `iteration`."""
    for folder in (run / "checkpoints").glob("iter_*"):
        if int(folder.name[5:]) > iteration:
            shutil.rmtree(folder)
    set_latest(run / "checkpoints" / f"iter_{iteration:07d}")


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, optimizer included."""
    path = find_latest(run / "checkpoints")
    assert path is not None
    tensors = {name: torch.empty(shape) for name, shape in read_shapes(path).items()}
    reader = torch.distributed.checkpoint.FileSystemReader(str(path))
    torch.distributed.checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _record(run: Path) -> list[dict]:
    """metrics.jsonl without what the clock decides."""
    return [
        {name: value for name, value in record.items() if not name.endswith(CLOCK)}
        for record in read_records(run / "metrics.jsonl")
    ]


OVERLAP = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]
LAYOUTS = {
    "one": (1, []),
    "tp2_sp": (2, [TP, SP]),
    "pp2_bf16": (2, [PP, BF16]),
    "dp2": (2, []),
    "dp2_overlap": (2, OVERLAP),
    "dp2_plain_bf16": (2, [PLAIN, BF16]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_run_equals_unbroken_run(tmp_path: Path, layout: str):
    """One bit of difference means that something of a run is not in its checkpoint."""
    world_size, extra = LAYOUTS[layout]
    run = tmp_path / "run"
    options = [
        *write_data(tmp_path), *extra, f"train.output_dir={run}",
        "train.train_iters=20", "checkpoint.save_interval=10",
    ]  # fmt: skip
    assert run_ranks(_train, world_size, options) == [0] * world_size
    tensors, record = _tensors(run), _record(run)
    _go_back(run, 10)
    assert run_ranks(_train, world_size, options) == [10] * world_size
    assert _record(run) == record
    assert [line["iteration"] for line in record] == [3, 4, 6, 8, 9, 12, 15, 16, 18, 20]
    resumed = _tensors(run)
    assert resumed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(resumed[name], tensor), name
    # Once more: everything is done, and nothing is recorded or saved twice.
    assert run_ranks(_train, world_size, options) == [20] * world_size
    assert _record(run) == record


def test_run_goes_on_at_other_layouts(tmp_path: Path):
    """A difference means that a run depends on how many machines it was given on the way."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [*write_data(tmp_path), "train.train_iters=20", "checkpoint.save_interval=5"]
    run_ranks(_train, 1, [*options, f"train.output_dir={whole}"])
    options.append(f"train.output_dir={parts}")
    layouts = ([TP, SP], [PP], [CP], ["train.micro_batch_size=1"])
    for start, extra in zip(range(0, 20, 5), layouts, strict=True):
        if start:
            _go_back(parts, start)
        assert run_ranks(_train, 2, [*options, *extra]) == [start] * 2
    want, got = _record(whole), _record(parts)
    assert [line.keys() for line in got] == [line.keys() for line in want]
    for want_line, got_line in zip(want, got, strict=True):
        assert got_line == pytest.approx(want_line, rel=1e-5)
    for name, tensor in _tensors(whole).items():
        other = _tensors(parts)[name]
        if not name.startswith("optimizer."):
            assert (other - tensor).norm() <= 1e-4 * tensor.norm(), name


def test_killed_run_goes_on(tmp_path: Path):
    """SIGKILL at any moment costs the steps since the last save, never the run."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    options = [
        *write_data(tmp_path), "train.train_iters=60", "checkpoint.save_interval=2",
        "checkpoint.keep_last=2", "logging.log_interval=1",
    ]  # fmt: skip
    command = [sys.executable, "pretrain_dna_bert.py", *options]
    environment = os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    folder = Path(__file__).parents[2]
    process = subprocess.Popen(
        [*command, f"train.output_dir={run}"], cwd=folder, env=environment,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(read_records(run / "metrics.jsonl")) < 7 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    killed_at = find_latest(run / "checkpoints")
    assert killed_at is not None
    resumed = subprocess.run(
        [*command, f"train.output_dir={run}"], cwd=folder, env=environment, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert f"resumed from {killed_at}" in resumed.stderr
    assert len(list((run / "checkpoints").iterdir())) == 3  # two checkpoints and `latest`
    run_ranks(_train, 1, [*options, f"train.output_dir={whole}"])
    assert _record(run) == _record(whole)
