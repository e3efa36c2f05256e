"""A training step in BF16 and FP8 over ranks."""

from __future__ import annotations

import pytest
import torch

from megatron_dna.config import load_config
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.step import run_step
from megatron_dna.parallel.wrap import wrap_model
from tests.dist.gradients import Piece, assemble, gather_main_grads, local_pieces
from tests.dist.harness import run_ranks
from tests.gpu.bodies import (
    BF16_TOLERANCE,
    MEMORY,
    SHAPE,
    VOCAB,
    Pass,
    World,
    errors,
    make_config,
    make_model,
    windows,
)

TP, SP, PP = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.sequence_parallel=true",
    "parallel.pipeline_model_parallel_size=2",
)
LAYOUTS = {
    "tp2_sp": (2, [TP, SP]),
    "dp2": (2, []),
    "tp2_sp_pp2": (4, [TP, SP, PP]),
}
RECIPES = {
    "BF16": [],
    "tensorwise": ["fp8.recipe=tensorwise"],
    "tensorwise, ends in BF16": [
        *("fp8.recipe=tensorwise", "fp8.first_last_layers_bf16=true"),
        *("fp8.num_layers_at_start_in_bf16=1", "fp8.num_layers_at_end_in_bf16=1"),
    ],
    "tensorwise, weights kept, all overlapped": [
        *("fp8.recipe=tensorwise", "fp8.param_gather=true"),
        *("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"),
    ],
    "blockwise": ["fp8.recipe=blockwise"],
    "delayed": ["fp8.recipe=delayed"],
}
WHOLE = ["train.global_batch_size=8", "model.ffn_hidden_size=512"]
"""Blocks of 128 on two tensor-parallel ranks, micro-batches for two stages or replicas."""
FP8_TOLERANCE = 0.25
"""Relative error of every gradient; on one rank it is up to 0.15."""
Result = tuple[float, dict[str, list[Piece]]]


def _steps(layout: list[str], spec: str, cases: list[tuple[str, list[str]]]) -> list[Result]:
    """On a rank: loss and gradients of each case, of the second of two passes."""
    platform = setup_platform("cpu")
    place = topology.initialize(load_config(None, [*SHAPE, *WHOLE, *layout]), platform)
    world = World(platform, place)
    results = []
    for precision, options in cases:
        config = make_config(
            spec, precision, *layout, *options, *WHOLE, world_size=place.world_size
        )
        model = make_model(world, config)
        wrapped = wrap_model(model, config.parallel)
        own = windows(config)[place.dp_rank :: place.dp_size]
        for _ in range(2):  # the delayed recipe takes its scales from the pass before
            wrapped.zero_grad_buffer()
            lengths = torch.ones(VOCAB, dtype=torch.long)
            result = run_step(wrapped, iter(own), config, place, lengths, len(own))
        gather_main_grads(wrapped, place)
        results.append((result.loss, local_pieces(model, "main_grad")))
    topology.shutdown()
    return results


@pytest.fixture(scope="module")
def exact() -> list[Pass]:
    """In fp32 on one rank in plain torch, without and with memory."""
    cases = [("fp32", []), ("fp32", MEMORY)]
    (results,) = run_ranks(_steps, 1, [], "local", cases)
    return [_whole([result]) for result in results]


def _whole(ranks: list[Result]) -> Pass:
    """Loss and whole gradients, from those of all ranks."""
    full = assemble([pieces for _, pieces in ranks])
    gradients = {key: value.float() for key, value in full.items()}
    return Pass(ranks[0][0], torch.ones(1), gradients)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_recipe_on_every_layout(exact: list[Pass], layout: str):
    """Each gradient as near to fp32 as rounding lets it be, without and with memory."""
    world_size, overrides = LAYOUTS[layout]
    names = [(recipe, more) for recipe in RECIPES for more in ([], MEMORY)]
    cases = [("bf16", [*RECIPES[recipe], *more]) for recipe, more in names]
    ranks = run_ranks(_steps, world_size, overrides, "transformer_engine", cases, timeout_s=600)
    for number, (recipe, more) in enumerate(names):
        want, got = exact[bool(more)], _whole([rank[number] for rank in ranks])
        limit = BF16_TOLERANCE if recipe == "BF16" else FP8_TOLERANCE
        assert abs(got.loss - want.loss) < 0.01 * want.loss, (recipe, more)
        for key, error in errors(got, want).items():
            assert error < limit, f"{recipe} {more} {key}: {error:.3f}"
