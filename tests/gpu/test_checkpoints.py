"""A checkpoint is of no platform: torch's Adam on the CPU and FusedAdam on the GPU share one."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.dist.harness import run_ranks
from tests.gpu.bodies import BF16_TOLERANCE, World, relative_error
from tests.gpu.saved_runs import (
    Leg,
    cpu_leg,
    different,
    run_leg,
    save_beside_training,
)

CASES = {
    "local layers, fp32": ("local", "fp32", 1e-3),
    "Transformer Engine, bf16": ("transformer_engine", "bf16", BF16_TOLERANCE),
}


def on_cpu(precision: str, source: Path | None, target: Path, steps: int) -> Leg:
    """`run_leg` on the CPU, in a process of its own that sees no GPU."""
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        return run_ranks(cpu_leg, 1, precision, source, target, steps)[0]


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_from_cpu_to_gpu_and_back(world: World, tmp_path: Path, case: str):
    """Every tensor is loaded bit for bit, and the run goes on as it would have gone."""
    spec, precision, tolerance = CASES[case]
    folders = [tmp_path / name for name in ("begun", "gpu", "gpu_on", "cpu_on", "cpu")]
    begun, gpu, gpu_on, cpu_on, cpu = folders
    start = on_cpu(precision, None, begun, 3)
    moved = run_leg(world, spec, precision, begun, gpu, 0)
    assert start.optimizer.startswith(("AdamW of torch", "Adam of torch")), start.optimizer
    assert moved.optimizer.startswith("FusedAdam of Transformer Engine"), moved.optimizer
    assert different(begun, gpu) == []
    assert relative_error(moved.before, start.after) < tolerance
    on_gpu = run_leg(world, spec, precision, gpu, gpu_on, 4)
    stayed = on_cpu(precision, begun, cpu_on, 4)
    torch.testing.assert_close(on_gpu.losses, stayed.losses, rtol=0.3 * tolerance, atol=0)
    assert relative_error(on_gpu.after, stayed.after) < 2 * tolerance
    back = on_cpu(precision, gpu_on, cpu, 0)
    assert different(gpu_on, cpu) == []
    assert relative_error(back.before, on_gpu.after) < tolerance


@pytest.mark.parametrize("spec", ["local", "transformer_engine"])
def test_asynchronous_save_is_of_the_moment_it_was_asked_for(world: World, tmp_path: Path, spec):
    """Training goes on over the weights while their copy is written."""
    at_once, beside, steps = save_beside_training(world, spec, tmp_path)
    assert steps > 0
    assert different(at_once, beside) == []
