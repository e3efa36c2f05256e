"""A plan as a page of text, as JSON, and as rows of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_dna.planning.gpus import (
    ATTENTION_EFFICIENCY,
    FP8_CAST_BYTES,
    FP8_SPEEDUP,
    LAUNCH_S,
    LINK_EFFICIENCY,
    MATMUL_EFFICIENCY,
    MEMORY_EFFICIENCY,
    NETWORK_LATENCY_S,
    NVLINK_LATENCY_S,
    USABLE_MEMORY,
)
from megatron_dna.planning.plan import Plan

GIB = 2**30
ESTIMATE = "Estimates of a model; no run on a GPU has been measured: speeds are upper bounds."


def human(count: float) -> str:
    """`count` with three digits and a unit: 7.0 billion parameters are `7.00B`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def seconds(value: float) -> str:
    """`value` in the unit that suits it."""
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"


def gib(value: float) -> str:
    """`value` bytes in GiB."""
    return f"{value / GIB:.2f}"


def layout(plan: Plan) -> str:
    """How the work is split, such as `TP 4 + SP x PP 2 x DP 32`, with `x CP 2` where it is used."""
    parallel = plan.config.parallel
    sequence = " + SP" if parallel.sequence_parallel else ""
    if parallel.context_parallel_size > 1:
        sequence += f" x CP {parallel.context_parallel_size}"
    return (
        f"TP {parallel.tensor_model_parallel_size}{sequence} x "
        f"PP {parallel.pipeline_model_parallel_size} x DP {plan.dp}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def page(plan: Plan, other: Plan) -> str:
    """The whole plan in one page.

    Args:
        plan: what was asked for.
        other: the same with full recomputation where `plan` has none, and the other way round.
    """
    config = plan.config
    memory, train = config.memory, config.train
    window = f"{memory.max_n_segments} x ({memory.num_mem_tokens} memory tokens + "
    window += f"{config.data.segment_size} tokens)"
    facts = [
        ("parameters", f"{plan.parameters:,}"),
        ("GPUs", f"{plan.num_gpus} x {plan.gpu.name}: {layout(plan)}"),
        ("window", window),
        ("vocabulary", f"{plan.vocab_size:,}"),
        ("global batch", f"{train.global_batch_size:,} windows, {plan.tokens_per_step:,} tokens"),
        ("a DP rank has", f"{plan.num_microbatches} micro-batches of {train.micro_batch_size}"),
        ("precision", f"{config.layer_precision}, recompute {train.recompute_granularity}"),
    ]
    lines = [ESTIMATE, "", *(f"  {name.ljust(14)}  {value}" for name, value in facts), ""]
    lines += ["Memory of a rank, GiB", _memory_table(plan, other), _verdict(plan), ""]
    lines += ["A step", _time_table(plan), ""]
    lines += ["The run", _run_table(plan), "", _assumptions(plan)]
    return "\n".join(lines)


def _memory_table(plan: Plan, other: Plan) -> str:
    rows = []
    for number, stage in enumerate(plan.stages):
        cells = (stage.weights, stage.gradients, stage.optimizer, stage.activations, stage.total)
        rows.append([f"stage {number}", *map(gib, cells), gib(other.stages[number].total)])
    if len(rows) > 4:
        rows = [*rows[:2], ["..."] + [""] * 6, *rows[-2:]]
    full = other.config.train.recompute_granularity == "full"
    header = ["", "weights", "gradients", "optimizer", "activations", "total"]
    return table([*header, "with full recompute" if full else "without recompute"], rows)


def _verdict(plan: Plan) -> str:
    need, have = plan.memory.total / GIB, plan.gpu.memory_gib
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    return f"  {verdict}: {need:.1f} GiB of {USABLE_MEMORY:.0%} of {have:g} GiB"


def _time_table(plan: Plan) -> str:
    names = {
        "tensor": "TP, in layers", "context": "CP, keys and values",
        "pipeline": "PP, between stages",
        "gradients": "DP, gradients", "embedding": "PP, tied embedding's gradient",
        "parameters": "DP, parameters",
    }  # fmt: skip
    rows = [["compute (busiest stage)", "", "", seconds(_pure_compute(plan))]]
    for kind, name in names.items():
        part = plan.traffic[kind]
        rows.append([name, gib(part.bytes_sent), seconds(part.total_s), seconds(part.exposed_s)])
    rows.append(["pipeline bubble", "", "", seconds(plan.scheduled_s - plan.work_s)])
    rows.append(["optimizer", "", "", seconds(plan.optimizer_s)])
    rows.append(["step", "", "", seconds(plan.step_s)])
    return table(["", "GiB sent by a rank", "takes", "of the step"], rows) + (
        f"\n  stages work {plan.busy_share:.1%} of the schedule; what is not in "
        "the last column hides behind compute"
    )


def _pure_compute(plan: Plan) -> float:
    return plan.work_s - plan.traffic["tensor"].exposed_s - plan.traffic["context"].exposed_s


def _run_table(plan: Plan) -> str:
    rows = [
        ["FLOPs a token", human(plan.flops_per_token)],
        ["tokens/s", human(plan.tokens_per_s)],
        ["tokens/s/GPU", human(plan.tokens_per_s / plan.num_gpus)],
        ["MFU", f"{plan.mfu:.1%}"],
        ["token budget", human(plan.tokens)],
        ["days", f"{plan.days:,.1f}"],
        ["GPU hours", f"{plan.gpu_hours:,.0f}"],
    ]
    return table(["", "estimate"], rows)


def _assumptions(plan: Plan) -> str:
    gpu, precision = plan.gpu, plan.config.train.precision
    peak = gpu.peak_flops(precision) / 1e12
    return (
        f"Roofline: {peak:g} TFLOP/s ({precision}) x {MATMUL_EFFICIENCY} in matrix products, x "
        f"{ATTENTION_EFFICIENCY} in attention;\n{gpu.memory_tb_per_s:g} TB/s x "
        f"{MEMORY_EFFICIENCY} elsewhere; {1e6 * LAUNCH_S:g} us to launch an operation. Alpha-beta: "
        f"{1e6 * NVLINK_LATENCY_S:g} us and\n{gpu.nvlink_gb_per_s:g} GB/s in a node, "
        f"{1e6 * NETWORK_LATENCY_S:g} us and {gpu.network_gb_per_s:g} GB/s a GPU between nodes, "
        f"bandwidth x {LINK_EFFICIENCY}.\nPeaks: {gpu.source}.\n"
        f"{_fp8_assumption(plan)}{_overlap_assumption(plan)}Efficiencies and latencies are "
        "assumptions; stragglers, fragmentation and data loading\nare not in them: real runs are "
        "slower."
    )


def _fp8_assumption(plan: Plan) -> str:
    recipe = plan.config.fp8.recipe
    if recipe not in FP8_SPEEDUP:
        return ""
    return (
        f"FP8: a layer's matrix products are {FP8_SPEEDUP[recipe]} times as fast as in bf16, and a "
        f"cast moves\n{FP8_CAST_BYTES[recipe]} bytes a number.\n"
    )


def _overlap_assumption(plan: Plan) -> str:
    if not plan.config.parallel.tp_comm_overlap:
        return ""
    return "parallel.tp_comm_overlap: planned as without it; what it hides is not known.\n"


def search_table(plans: Sequence[Plan], shown: int = 15) -> str:
    """The best plans, one a line."""
    header = ["layout", "micro-batch", "recompute", "GiB", "bubble", "tokens/s", "MFU", "days"]
    rows = [
        [
            layout(plan), str(plan.config.train.micro_batch_size),
            str(plan.config.train.recompute_granularity), f"{plan.memory.total / GIB:.1f}",
            f"{1 - plan.busy_share:.1%}", human(plan.tokens_per_s), f"{plan.mfu:.1%}",
            f"{plan.days:,.1f}",
        ]
        for plan in plans[:shown]
    ]  # fmt: skip
    return table(header, rows)


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan's numbers, units in names."""
    config, parallel = plan.config, plan.config.parallel
    return {
        "note": ESTIMATE,
        "gpu": plan.gpu.name,
        "num_gpus": plan.num_gpus,
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
        "context_parallel_size": parallel.context_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "data_parallel_size": plan.dp,
        "micro_batch_size": config.train.micro_batch_size,
        "num_microbatches": plan.num_microbatches,
        "recompute_granularity": config.train.recompute_granularity,
        "parameters": plan.parameters,
        "vocab_size": plan.vocab_size,
        "stages_bytes": [
            {
                "weights": stage.weights,
                "gradients": stage.gradients,
                "optimizer": stage.optimizer,
                "activations": stage.activations,
                "total": stage.total,
            }
            for stage in plan.stages
        ],
        "fits": plan.fits,
        "flops_per_token": plan.flops_per_token,
        "busy_share": plan.busy_share,
        "traffic": {kind: vars(part) for kind, part in plan.traffic.items()},
        "work_s": plan.work_s,
        "optimizer_s": plan.optimizer_s,
        "step_s": plan.step_s,
        "tokens_per_step": plan.tokens_per_step,
        "tokens_per_s": plan.tokens_per_s,
        "mfu": plan.mfu,
        "tokens": plan.tokens,
        "days": plan.days,
        "gpu_hours": plan.gpu_hours,
    }
