"""Transformer Engine's layers against plain torch, and both against fp32 on the same GPU."""

from __future__ import annotations

import pytest

from tests.gpu.bodies import (
    ATTENTION_TOLERANCE,
    BF16_TOLERANCE,
    MEMORY,
    RECOMPUTE,
    World,
    attend,
    errors,
    one_step,
    relative_error,
)

CASES = {"plain": ((), False), "padded": ((), True), "memory": (MEMORY, False),
         "memory, padded": (MEMORY, True)}  # fmt: skip


@pytest.mark.parametrize("is_padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("layer", [0, 1], ids=["global", "window"])
@pytest.mark.parametrize("spec", ["local", "transformer_engine"])
def test_attention_is_softmax_over_masked_scores(world: World, spec, layer, is_padded):
    """A key too many or too few, or a padded one, is an error of a tenth and more."""
    for name, pair in attend(world, spec, "bf16", layer, is_padded).items():
        assert relative_error(*pair) < ATTENTION_TOLERANCE, name


@pytest.mark.parametrize("case", CASES)
def test_specs_agree_in_bf16(world: World, case: str):
    """Logits and every gradient; with memory, through three segments."""
    overrides, is_padded = CASES[case]
    exact = one_step(world, "local", "fp32", *overrides, is_padded=is_padded)
    for spec in ("local", "transformer_engine"):
        got = one_step(world, spec, "bf16", *overrides, is_padded=is_padded)
        for name, error in errors(got, exact).items():
            assert error < BF16_TOLERANCE, f"{spec}, {name}: {error:.3f}"


@pytest.mark.parametrize("case", ["plain", "memory"])
def test_specs_agree_in_fp32(world: World, case: str):
    """Transformer Engine multiplies fp32 in TF32, whose 10 bits are between fp32 and bf16."""
    overrides, _ = CASES[case]
    exact = one_step(world, "local", "fp32", *overrides)
    got = one_step(world, "transformer_engine", "fp32", *overrides)
    for name, error in errors(got, exact).items():
        assert error < 0.01, f"{name}: {error:.1e}"


@pytest.mark.parametrize("case", ["plain", "memory"])
def test_recomputation_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch, case: str):
    """What is computed again is what was computed first."""
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    overrides, _ = CASES[case]
    kept = one_step(world, "transformer_engine", "bf16", *overrides)
    again = one_step(world, "transformer_engine", "bf16", *overrides, RECOMPUTE)
    for name, error in errors(again, kept).items():
        assert error < 1e-3, f"{name}: {error:.1e}"
