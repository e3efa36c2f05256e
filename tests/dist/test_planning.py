"""A plan's numbers against what the training code allocates and computes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_dna.config import Config, Fp8Config, load_config
from megatron_dna.data.loader import Batch
from megatron_dna.parallel.schedule import SegmentSchedule
from megatron_dna.parallel.step import run_step
from megatron_dna.planning.dry_run import DryRun, dry_run, state_bytes
from megatron_dna.planning.memory import stage_memory
from megatron_dna.planning.parameters import stage_parameters, total_parameters
from megatron_dna.planning.saved import SavedBytes
from megatron_dna.training.activations import segment_bytes
from megatron_dna.training.flops import attended_tokens, segment_flops
from megatron_dna.validation import data_parallel_size
from tests.dist.harness import run_ranks
from tests.dist.small_run import CP, PLAIN, PP, SP, TP, VOCAB, SmallRun

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
WITHIN = 0.1
IDS = 32000
WHOLE = [
    "parallel.tensor_model_parallel_size=1", "parallel.pipeline_model_parallel_size=1",
    "parallel.sequence_parallel=false",
]  # fmt: skip


def _alone(function, *args):
    """Call `function` in a process of its own, in no process group."""
    return run_ranks(_without_group, 1, function, *args)[0]


def _without_group(function, *args):
    torch.distributed.destroy_process_group()
    return function(*args)


def _dry_runs(
    recipe: str, worlds: list[int], overrides: list[str]
) -> tuple[int, list[tuple[DryRun, list[float]]]]:
    """Parameters of the whole model, and of each world's first and last rank what was planned."""
    path = EXAMPLES / f"{recipe}.yaml"
    whole = load_config(path, [*WHOLE, "train.micro_batch_size=1"])
    parameters = dry_run(whole, 1, 0, IDS).parameters
    config = load_config(path, overrides)
    runs = []
    for world_size in worlds:
        dp = data_parallel_size(config, world_size)
        batch = f"train.global_batch_size={dp * config.train.micro_batch_size}"
        config = load_config(path, [*overrides, batch])
        for rank in sorted({0, world_size - 1}):
            run = dry_run(config, world_size, rank, IDS)
            schedule = SegmentSchedule(config.memory.max_n_segments, -1, 1)
            bf16 = dataclasses.replace(config, fp8=Fp8Config())  # as the dry run has it
            memory = stage_memory(bf16, IDS, run.pp_rank, dp, schedule)
            segment = segment_bytes(bf16, IDS, run.pp_rank, has_segments=True)
            planned = [stage_parameters(config, IDS, run.pp_rank), memory.weights,
                       memory.gradients, memory.optimizer, segment]  # fmt: skip
            runs.append((run, planned))
    return parameters, runs


@pytest.mark.parametrize("options", [*RECIPES, f"7b_rmt {CP}"])
def test_recipe_builds_in_a_world_that_is_not_there(options: str) -> None:
    """A layout that Megatron-Core refuses would be found out with 256 GPUs waiting."""
    recipe, *overrides = options.split()
    text = (EXAMPLES / f"{recipe}.yaml").read_text()
    gpus = int(re.search(r"--num-gpus (\d+)", text)[1])
    worlds = [gpus, 2048] if options.startswith("7b") and not overrides else [gpus]
    parameters, runs = _alone(_dry_runs, recipe, worlds, overrides)
    config = load_config(EXAMPLES / f"{recipe}.yaml", overrides)
    assert parameters == total_parameters(config, IDS)
    for run, (own, weights, gradients, optimizer, segment) in runs:
        assert run.parameters == own
        assert weights == pytest.approx(run.weights, rel=WITHIN)
        assert gradients == pytest.approx(run.gradients, rel=WITHIN)
        assert optimizer == pytest.approx(run.optimizer, rel=WITHIN)
        assert segment == pytest.approx(run.segment, rel=WITHIN)
    assert [run.rank for run, _ in runs][-1] == max(worlds) - 1
    tp, cp, pp = (getattr(config.parallel, f"{name}_parallel_size") for name in (
                  "tensor_model", "context", "pipeline_model"))  # fmt: skip
    last = runs[-1][0]
    place = (last.tp_rank, last.cp_rank, last.pp_rank, last.dp_rank)
    assert place == (tp - 1, cp - 1, pp - 1, max(worlds) // (tp * cp * pp) - 1)


SHAPE = [
    "model.num_layers=4", "model.hidden_size=128", "model.ffn_hidden_size=192",
    "model.num_attention_heads=4", "data.segment_size=120", "train.micro_batch_size=2",
    "train.global_batch_size=16",
]  # fmt: skip
WINDOWS = ["model.global_attn_every_n_layers=2", "model.local_attention=16"]
RMT = ["memory.num_mem_tokens=8", "memory.max_n_segments=3", "memory.update=binary"]
FP32, BF16 = "train.precision=fp32", "train.precision=bf16"
FULL = "train.recompute_granularity=full"
SELECTIVE = "train.recompute_granularity=selective"


def _windows(config: Config) -> Iterator[Batch]:
    """Endless micro-batches of windows of all segments."""
    shape = (config.memory.max_n_segments, config.train.micro_batch_size)
    k = config.num_masked_tokens
    while True:
        yield Batch(
            input_ids=torch.randint(6, VOCAB, (*shape, config.data.segment_size)),
            attention_mask=None,
            masked_positions=torch.arange(1, k + 1).expand(*shape, k),
            labels=torch.full((*shape, k), 7),
            loss_mask=torch.ones(*shape, k),
            num_tokens=torch.ones(shape),
            num_bases=torch.ones(shape),
            samples=torch.arange(shape[1]),
        )


def _measured(overrides: list[str]) -> tuple[list[float], list[float]]:
    """(measured, planned) bytes of weights, gradients, optimizer, activations of this rank."""
    run = SmallRun.start([*SHAPE, *overrides])
    config, place = run.config, run.place
    count = config.train.global_batch_size // (config.train.micro_batch_size * place.dp_size)
    with SavedBytes(run.model.parameters()) as saved:
        lengths = torch.ones(VOCAB).long()
        run_step(run.model, _windows(config), config, place, lengths, count)
    assert saved.now == 0  # all went with the backward pass
    run.optimizer.step()
    measured = [float(size) for size in state_bytes(run.model, run.optimizer)]
    schedule = SegmentSchedule(config.memory.max_n_segments, config.memory.bptt_depth, count)
    plan = stage_memory(config, VOCAB, place.pp_rank, place.dp_size, schedule)
    return [*measured, saved.peak], [
        plan.weights, plan.gradients, plan.optimizer, plan.activations,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (1, [FP32]),
        (1, [BF16, "train.micro_batch_size=1"]),
        (1, [FP32, FULL]),
        (1, [FP32, *RMT]),
        (1, [BF16, *RMT, FULL]),
        (1, [BF16, *RMT, "memory.bptt_depth=2"]),
        (2, [FP32]),
        (2, [BF16, PLAIN]),
        (2, [BF16, TP, SP]),
        (2, [FP32, TP, *RMT]),
        (2, [FP32, PP]),
        (2, [BF16, PP, *RMT]),
        (4, [BF16, TP, SP, PP, *RMT]),
        (2, [BF16, CP, SELECTIVE, *RMT]),
        (4, [BF16, "parallel.context_parallel_size=4", *RMT, *WINDOWS]),
        (4, [FP32, TP, SP, CP, FULL]),
        (2, [FP32, TP, SP, FULL]),
        (2, [FP32, CP]),
    ],
    ids=lambda value: None if isinstance(value, int) else _name(value),
)
def test_memory_is_what_a_real_step_allocates(world_size: int, overrides: list[str]) -> None:
    """A plan that is out by more promises a run that ends out of memory, or wastes GPUs."""
    for measured, planned in run_ranks(_measured, world_size, overrides):
        for real, expected in zip(measured, planned, strict=True):
            assert expected == pytest.approx(real, rel=0.03), (measured, planned)


def _name(overrides: list[str]) -> str:
    return "-".join(
        option.split(".")[-1].replace("_model_parallel_size", "") for option in overrides
    )


def _counted_flops() -> dict[str, Any]:
    from torch.utils.flop_counter import FlopCounterMode

    run = SmallRun.start([*SHAPE, FP32, "train.micro_batch_size=1", "memory.num_mem_tokens=8"])
    batch = next(_windows(run.config))
    with FlopCounterMode(display=False) as counter:
        run.model(batch.input_ids[0], None, batch.masked_positions[0], batch.labels[0])
    config = run.config
    attention = sum(
        4 * config.seq_length * attended_tokens(config, layer) * config.model.hidden_size
        for layer in range(config.model.num_layers)
    )
    return {
        "counted": counter.get_total_flops(),
        "planned": segment_flops(config, VOCAB) - attention,
    }


def test_flops_are_those_that_torch_counts() -> None:
    """MFU and days hang on them. torch counts no attention on a CPU."""
    (flops,) = run_ranks(_counted_flops, 1)
    assert math.isclose(flops["counted"], flops["planned"], rel_tol=1e-6), flops
