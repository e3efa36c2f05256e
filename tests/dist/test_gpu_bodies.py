"""What tests/gpu does on a GPU, done on the CPU with the local spec: its own logic is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.dist.harness import run_ranks
from tests.gpu import bodies, saved_runs
from tests.gpu.conftest import missing


def _compare() -> dict[str, float]:
    """Largest errors of bf16, and of a window that is wrong, by what was done."""
    world = bodies.open_world("cpu")
    worst = {}
    for is_padded in (False, True):
        for layer in (0, 1):
            for precision in ("bf16", "fp32"):
                pairs = bodies.attend(world, "local", precision, layer, is_padded)
                worst[f"attention {layer} {is_padded} {precision}"] = max(
                    bodies.relative_error(*pair) for pair in pairs.values()
                )
    for name, options in {"plain": [], "memory": bodies.MEMORY}.items():
        exact = bodies.one_step(world, "local", "fp32", *options, is_padded=True)
        for other, spec in {
            "bf16": ("bf16",),
            "recompute": ("fp32", bodies.RECOMPUTE),
            "wrong": ("fp32", "model.local_attention=18"),
        }.items():
            got = bodies.one_step(world, "local", *spec, *options, is_padded=True)
            worst[f"{name} {other}"] = max(bodies.errors(got, exact).values())
    return worst


@pytest.fixture(scope="module")
def worst() -> dict[str, float]:
    """One process for all."""
    return run_ranks(_compare, 1)[0]


def test_attention_by_definition(worst: dict[str, float]):
    """The reference is what the local spec computes, so it can judge the other one."""
    found = {name: error for name, error in worst.items() if name.startswith("attention")}
    assert len(found) == 8
    for name, error in found.items():
        assert error < (1e-6 if name.endswith("fp32") else bodies.ATTENTION_TOLERANCE / 2), name


@pytest.mark.parametrize("name", ["plain", "memory"])
def test_the_tolerance_tells_rounding_from_a_wrong_window(worst: dict[str, float], name: str):
    """Rounding to bf16 takes half of it at most; one token more in the window three times it."""
    assert worst[f"{name} bf16"] < bodies.BF16_TOLERANCE / 2
    assert worst[f"{name} recompute"] < 1e-6
    assert worst[f"{name} wrong"] > 3 * bodies.BF16_TOLERANCE


def _save_beside(folder: Path) -> tuple[Path, Path, int]:
    return saved_runs.save_beside_training(bodies.open_world("cpu"), "local", folder)


def test_a_run_in_legs(tmp_path: Path):
    """Loading and saving again changes nothing; a run in two legs is the run in one."""
    begun, loaded, legs, whole = (tmp_path / name for name in ("a", "b", "c", "d"))
    start = run_ranks(saved_runs.cpu_leg, 1, "bf16", None, begun, 2)[0]
    moved = run_ranks(saved_runs.cpu_leg, 1, "bf16", begun, loaded, 0)[0]
    assert saved_runs.different(begun, loaded) == []
    assert torch.equal(moved.before, start.after)
    last = run_ranks(saved_runs.cpu_leg, 1, "bf16", loaded, legs, 1)[0]
    unbroken = run_ranks(saved_runs.cpu_leg, 1, "bf16", None, whole, 3)[0]
    assert saved_runs.different(legs, whole) == []
    assert start.losses + last.losses == unbroken.losses
    assert not torch.equal(last.after, last.before)
    assert "exp_avg" in " ".join(saved_runs.different(begun, legs))


def test_save_beside_training(tmp_path: Path):
    """As on the GPU."""
    at_once, beside, steps = run_ranks(_save_beside, 1, tmp_path)[0]
    assert steps > 0
    assert saved_runs.different(at_once, beside) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_suite_says_what_it_needs():
    """Its tests are collected with all others, and skipped for this reason."""
    reason = missing()
    assert reason is not None
    assert "needs a CUDA device" in reason
    assert "make test-gpu" in reason
