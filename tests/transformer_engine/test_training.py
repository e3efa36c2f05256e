"""Updates with Transformer Engine's Adam, weights in BF16 or kept in FP8: saved and gone on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dist import small_run
from tests.dist.harness import run_ranks
from tests.dist.small_run import BF16
from tests.dist.test_fused_adam import resume, train_and_save

KEPT = "fp8.param_gather=true"
OVERLAP = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]
WIDE = ["model.hidden_size=128", "model.ffn_hidden_size=128", "data.segment_size=64"]
"""Blocks of 128 and, with micro-batches of two, as many rows."""
RUNS = {
    "BF16": (1, [BF16]),
    "BF16, DP 2, overlap": (2, [BF16, *OVERLAP]),
    "tensorwise": (1, [BF16, "fp8.recipe=tensorwise"]),
    "tensorwise, kept": (1, [BF16, "fp8.recipe=tensorwise", KEPT]),
    "tensorwise, kept, DP 2": (2, [BF16, "fp8.recipe=tensorwise", KEPT]),
    "tensorwise, kept, DP 2, overlap": (2, [BF16, "fp8.recipe=tensorwise", KEPT, *OVERLAP]),
    "blockwise, kept, DP 2": (2, [BF16, "fp8.recipe=blockwise", KEPT]),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, run: str):
    """Bit for bit, at the mean loss of BF16 within 2%, where losses fall by 10%."""
    world_size, options = RUNS[run]
    ranks = run_ranks(train_and_save, world_size, str(tmp_path), [*WIDE, *options])
    for (whole, _), rest in zip(
        ranks, run_ranks(resume, world_size, str(tmp_path), [*WIDE, *options]), strict=True
    ):
        assert rest == whole[4:]
    (plain,) = run_ranks(train_and_save, 1, str(tmp_path / "plain"), [*WIDE, BF16])
    assert sum(ranks[0][0]) == pytest.approx(sum(plain[0]), rel=0.02)
    assert plain[0][-1] < 0.9 * plain[0][0], "nothing was learned: the losses say nothing"


def _with_layers(layer_spec: str, function: Callable[..., Any], folder: str) -> Any:
    """On a rank."""
    small_run.LAYER_SPEC = layer_spec
    return function(folder, WIDE)


@pytest.mark.parametrize(
    "specs", [("local", "transformer_engine"), ("transformer_engine", "local")], ids=" to ".join
)
def test_either_layers_go_on_from_the_others_checkpoint(tmp_path: Path, specs: tuple[str, str]):
    """In fp32, optimizer included."""
    ((whole, _),) = run_ranks(_with_layers, 1, specs[0], train_and_save, str(tmp_path))
    (rest,) = run_ranks(_with_layers, 1, specs[1], resume, str(tmp_path))
    assert rest == pytest.approx(whole[4:], rel=1e-5)
