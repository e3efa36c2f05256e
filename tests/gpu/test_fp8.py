"""FP8: gradients that are near, and recomputation that is the same."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.bodies import MEMORY, RECOMPUTE, World, errors, one_step, relative_error

RECIPES = ("tensorwise", "blockwise", "delayed")
CASES = {"plain": (), "memory": MEMORY}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_are_near(world: World, needs_recipe, recipe: str, case: str):
    """With memory each segment computes in an autocast of its own."""
    needs_recipe(recipe)
    exact = one_step(world, "local", "fp32", *CASES[case])
    # The delayed recipe takes its scales from the passes before.
    options = (*CASES[case], f"fp8.recipe={recipe}")
    got = one_step(world, "transformer_engine", "bf16", *options, passes=4)
    assert abs(got.loss - exact.loss) < 0.02 * exact.loss
    assert relative_error(got.logits, exact.logits) < 0.25
    assert all(bool(gradient.isfinite().all()) for gradient in got.gradients.values())
    cosine = torch.nn.functional.cosine_similarity(got.all_gradients, exact.all_gradients, dim=0)
    assert cosine > 0.95


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise"])
def test_recomputation_changes_nothing(
    world: World, needs_recipe, monkeypatch: pytest.MonkeyPatch, recipe: str, case: str
):
    """Scales come from the tensor at hand, so they are the same when it is computed again."""
    needs_recipe(recipe)
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    options = (*CASES[case], f"fp8.recipe={recipe}")
    kept = one_step(world, "transformer_engine", "bf16", *options)
    again = one_step(world, "transformer_engine", "bf16", *options, RECOMPUTE)
    for name, error in errors(again, kept).items():
        assert error < 1e-3, f"{name}: {error:.1e}"
