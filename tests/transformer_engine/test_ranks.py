"""FP8 over ranks, and a run's whole training step with Transformer Engine's Adam."""

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
from tests.gpu.bodies import MEMORY, SHAPE, VOCAB, World, make_config, make_model, windows

TP, SP, PP = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.sequence_parallel=true",
    "parallel.pipeline_model_parallel_size=2",
)
LAYOUTS = {
    "one": (1, []),
    "tp2": (2, [TP]),
    "tp2_sp": (2, [TP, SP]),
    "pp2": (2, [PP]),
    "dp2": (2, []),
    "tp2_sp_pp2": (4, [TP, SP, PP]),
}
RECIPES = {
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
def exact() -> list[tuple[float, torch.Tensor]]:
    """Loss and gradients in fp32 on one rank in plain torch, without and with memory."""
    cases = [("fp32", []), ("fp32", MEMORY)]
    (results,) = run_ranks(_steps, 1, [], "local", cases)
    return [(loss, _as_vector([pieces])) for loss, pieces in results]


def _as_vector(ranks: list[dict[str, list[Piece]]]) -> torch.Tensor:
    full = assemble(ranks)
    return torch.cat([full[key].float().flatten() for key in sorted(full)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fp8_on_every_layout(exact: list[tuple[float, torch.Tensor]], layout: str):
    """As near to fp32 as on one rank: each recipe, without and with memory."""
    world_size, overrides = LAYOUTS[layout]
    memories = ([], MEMORY)
    cases = [("bf16", [*recipe, *more]) for recipe in RECIPES.values() for more in memories]
    ranks = run_ranks(_steps, world_size, overrides, "transformer_engine", cases, timeout_s=600)
    for number, case in enumerate(cases):
        want_loss, want = exact[number % 2]
        got = _as_vector([rank[number][1] for rank in ranks])
        for rank in ranks:
            assert abs(rank[number][0] - want_loss) < 0.01 * want_loss, case
        cosine = torch.nn.functional.cosine_similarity(got, want, dim=0)
        assert cosine > 0.99, f"{case}: {cosine:.4f}"
        assert abs(got.norm() / want.norm() - 1) < 0.05, case
