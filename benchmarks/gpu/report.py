"""From the outcomes of cases to rates, a table, the goals and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import LARGEST, Plan, find_gpu_of, positions_of, step_flops

Outcome = Mapping[str, Any]
GIB = 2**30
GOALS = {"mfu": 0.55, "fp8": 1.35, "memory": 0.95, "peer": 1.3}
BIG, BIGGER = ("1b", "3b", LARGEST), ("3b", LARGEST)


def add_rates(plan: Plan, outcome: Outcome, device_name: str) -> dict[str, Any]:
    """`outcome` of a measured case with what follows from its seconds: rates for the one device.

    MFU is model FLOPs a second over the dense peak. The FLOPs of a peer are those of the same
    architecture here.
    """
    config = plan.config
    seconds = statistics.median(outcome["seconds"])
    flops = step_flops(config, outcome["vocab_size"]) / seconds
    gpu = find_gpu_of(device_name)
    peaks = {} if gpu is None else {name: gpu.peak_flops(name) for name in ("bf16", "fp8")}
    is_fp8 = plan.case.recipe != "none"
    return {
        **outcome,
        "step_s": seconds,
        "layers": config.model.num_layers,
        "micro_batch_size": config.train.micro_batch_size,
        "micro_batches": config.train.global_batch_size // config.train.micro_batch_size,
        "segments": config.memory.max_n_segments,
        # `measure_peer` never recomputes, whatever was planned.
        "recompute": None if plan.case.is_peer else config.train.recompute_granularity,
        "positions_per_s": positions_of(config) / seconds,
        "tokens_per_s": outcome["tokens_a_step"] / seconds,
        "bases_per_s": outcome["bases_a_step"] / seconds,
        "tflops": flops / 1e12,
        "mfu": flops / peaks["bf16"] if peaks else None,
        "mfu_of_fp8_peak": flops / peaks["fp8"] if is_fp8 and peaks.get("fp8") else None,
    }


def find(outcomes: Sequence[Outcome], model: str, kind: str, is_fp8: bool) -> Outcome | None:
    """The fastest measured case of its kind."""
    found = [
        outcome
        for outcome in outcomes
        if outcome["status"] == "measured" and outcome["model"] == model
        and outcome["kind"].startswith(kind) and (outcome["fp8"] != "none") == is_fp8
    ]  # fmt: skip
    return max(found, key=lambda outcome: outcome["positions_per_s"], default=None)


def goals(outcomes: Sequence[Outcome], models: Sequence[str]) -> list[str]:
    """A line for each goal that there are numbers for."""
    lines = []

    def say(what: str, number: float, goal: float) -> None:
        state = "met" if number >= goal else "not met"
        lines.append(f"{what}: {number:.3f} (goal {goal}): {state}")

    for model in models:
        plain = find(outcomes, model, "plain", False)
        if plain is None:
            continue
        if model in BIG and plain["mfu"] is not None:
            say(f"{model}, BF16 MFU", plain["mfu"], GOALS["mfu"])
        others = {
            "peer": ("this over transformers", "transformers", False, False),
            "fp8": ("FP8 over BF16", "plain", True, True),
            "memory": ("RMT over plain, input positions a second", "rmt", False, True),
        }
        for goal, (what, kind, is_fp8, other_first) in others.items():
            if goal == "fp8" and model not in BIGGER:
                continue
            other = find(outcomes, model, kind, is_fp8)
            if other is None:
                continue
            if other["recompute"] != plain["recompute"]:
                what += f", recomputing {other['recompute']} where plain does {plain['recompute']}"
            ratio = other["positions_per_s"] / plain["positions_per_s"]
            say(f"{model}, {what}", ratio if other_first else 1 / ratio, GOALS[goal])
    return lines


COLUMNS = {
    "model": lambda row: row["model"],
    "training": lambda row: row["kind"],
    "precision": lambda row: precision_of(row),
    "parameters": lambda row: f"{row['parameters'] / 1e6:,.1f} M",
    "layers": lambda row: str(row["layers"]),
    "micro-batch x count": lambda row: f"{row['micro_batch_size']} x {row['micro_batches']}",
    "recompute": lambda row: row["recompute"] or "none",
    "step": lambda row: f"{1000 * row['step_s']:,.0f} ms",
    "positions/s": lambda row: f"{row['positions_per_s']:,.0f}",
    "tokens/s": lambda row: f"{row['tokens_per_s']:,.0f}",
    "bases/s": lambda row: f"{row['bases_per_s']:,.0f}",
    "TFLOP/s": lambda row: f"{row['tflops']:,.3g}",
    "MFU": lambda row: _share(row["mfu"]),
    "of FP8 peak": lambda row: _share(row["mfu_of_fp8_peak"]),
    "peak memory": lambda row: f"{row['peak_bytes'] / GIB:.1f} GiB",
}


def precision_of(row: Outcome) -> str:
    """What layers compute in."""
    return row["precision"] if row["fp8"] == "none" else f"fp8 {row['fp8']}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def table(machine: Mapping[str, Any], outcomes: Sequence[Outcome], models: Sequence[str]) -> str:
    """Markdown: the machine, what was measured, what was not and why, the goals."""
    about = ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)
    lines = [f"# Training speed\n\n{about}\n"]
    lines.append("| " + " | ".join(COLUMNS) + " |")
    lines.append("|" + " --- |" * len(COLUMNS))
    for row in outcomes:
        if row["status"] == "measured":
            lines.append("| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |")
    missing = [row for row in outcomes if row["status"] != "measured"]
    if missing:
        lines.append("\nNot measured:\n")
        lines += [f"- {row['name']}: {row['status']}" for row in missing]
    # The goals are of GPUs whose peak is known.
    reached = goals(outcomes, models) if find_gpu_of(str(machine["device"])) else []
    if reached:
        lines += ["\nGoals:\n", *(f"- {line}" for line in reached)]
    return "\n".join(lines) + "\n"


def draw(machine: Mapping[str, Any], outcomes: Sequence[Outcome], path: Path) -> None:
    """Bars: model TFLOP/s by model and training, and the goal where the peak is known."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in outcomes if row["status"] == "measured"]
    if not rows:
        return
    models = list(dict.fromkeys(row["model"] for row in rows))
    kinds = list(dict.fromkeys((row["kind"], precision_of(row)) for row in rows))
    figure, axes = pyplot.subplots(figsize=(2 + 2.2 * len(models), 4.5), layout="constrained")
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        own = [row for row in rows if (row["kind"], precision_of(row)) == kind]
        places = [models.index(row["model"]) + (number - (len(kinds) - 1) / 2) * width
                  for row in own]  # fmt: skip
        axes.bar(places, [row["tflops"] for row in own], width, label=" ".join(kind))
    gpu = find_gpu_of(str(machine["device"]))
    if gpu is not None:
        goal = GOALS["mfu"] * gpu.bf16_tflops
        axes.axhline(goal, color="black", linestyle=":", label=f"{GOALS['mfu']:.0%} of BF16 peak")
    axes.set_xticks(range(len(models)), models)
    axes.set_ylabel("model TFLOP/s")
    axes.set_title(f"Training on one {machine['device']}")
    axes.legend(fontsize="small")
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
    partial.replace(path)
