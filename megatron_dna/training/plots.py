"""Pictures of a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_dna.data.pictures import save_figure
from megatron_dna.parallel.schedule import SegmentSchedule, Task
from megatron_dna.parallel.timeline import finish_times
from megatron_dna.training.metrics import read_records


def plot_losses(metrics: Path, output: Path, baselines: Mapping[str, float] | None = None) -> None:
    """Draw training and held-out loss over iterations, and baselines as lines, to a PNG.

    Args:
        metrics: a run's metrics.jsonl.
        output: the PNG.
        baselines: loss in nats by name, such as `unigram`.

    Raises:
        ValueError: there is no loss to draw.
    """
    records = read_records(metrics)
    if not any("train/loss" in record or "valid/loss" in record for record in records):
        raise ValueError(f"{metrics} has no loss to draw")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (
        ("train/loss", "training", {"linewidth": 1.0, "alpha": 0.7}),
        ("valid/loss", "held-out", {"linewidth": 2.0, "marker": "o", "markersize": 4}),
    ):
        points = [(record["iteration"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    draw_stages(axes, records)
    for name, loss in (baselines or {}).items():
        axes.axhline(loss, linestyle="--", linewidth=1, color="gray")
        axes.annotate(
            f"{name} {loss:.3f}", (1, loss), xycoords=("axes fraction", "data"),
            ha="right", va="bottom", fontsize=8, color="dimgray",
        )  # fmt: skip
    axes.set_xlabel("iteration")
    axes.set_ylabel("cross-entropy (nats a masked token)")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, output)


def plot_memory(
    scores: Sequence[Mapping[str, Any]], output: Path, chance: float | None = None
) -> None:
    """Draw what memory gives by number of segments and, for the longest, by segment, to a PNG.

    Args:
        scores: of each number of segments, as `MemoryScores.to_dict` returns them.
        output: the PNG.
        chance: accuracy of guessing, drawn as a line. With it accuracy is shown, else loss.
    """
    what, label = ("loss", "cross-entropy (nats a masked token)")
    if chance is not None:
        what, label = ("accuracy", "accuracy")
    longest = max(scores, key=lambda entry: int(entry["num_segments"]))
    has_segments = len(longest["kept"]["by_segment"]) > 1
    figure = Figure(figsize=(9.6 if has_segments else 6, 4), layout="constrained")
    axes = figure.subplots(1, 1 + has_segments, sharey=True, squeeze=False)[0]
    for control, (color, marker) in CONTROL_STYLES.items():
        style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4}
        points = [(entry["num_segments"], entry[control][what]) for entry in scores]
        axes[0].plot(*zip(*points, strict=True), label=f"memory {control}", **style)
        if has_segments:
            points = [(row["segment"], row[what]) for row in longest[control]["by_segment"]]
            axes[1].plot(*zip(*points, strict=True), **style)
    donors = [
        (entry["num_segments"], entry["swapped"]["donor_accuracy"])
        for entry in scores
        if "donor_accuracy" in entry["swapped"]
    ]
    if donors:
        axes[0].plot(
            *zip(*donors, strict=True), color="tab:purple", linestyle="--", marker="D",
            markersize=4, label="memory swapped, donor's barcode",
        )  # fmt: skip
    if chance is not None:
        axes[0].axhline(chance, color="gray", linestyle=":", label="chance")
        axes[0].set_ylim(-0.03, 1.03)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xlabel("segments of a window")
    axes[0].set_ylabel(label)
    axes[0].legend(fontsize=8)
    if has_segments:
        axes[1].set_xlabel(f"segment, in windows of {longest['num_segments']}")
    for panel in axes:
        panel.grid(alpha=0.3)
    save_figure(figure, output)


def plot_recall(
    curves: Mapping[str, Sequence[tuple[int, float]]], output: Path, chance: float
) -> None:
    """Draw accuracy over the number of segments, a line a variant, to a PNG."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), marker in zip(curves.items(), itertools.cycle("os^Dv"), strict=False):
        axes.plot(*zip(*points, strict=True), marker=marker, label=f"memory: {name}")
    axes.axhline(chance, color="gray", linestyle=":", label="chance")
    axes.set_xscale("log", base=2)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("segments from barcode to question")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, output)


def plot_schedule(schedule: SegmentSchedule, num_stages: int, output: Path) -> None:
    """Draw what each pipeline stage does at each tick of the segment schedule, to a PNG.

    A box is a task: its number is the micro-batch, its shade the segment; blue is forward, orange
    backward, white waits.
    """
    times = finish_times(schedule, num_stages)
    ticks = max(times.values())
    figure = Figure(
        figsize=(min(24.0, 1.5 + 0.28 * ticks), 1.1 + 0.42 * num_stages), layout="constrained"
    )
    axes = figure.add_subplot()
    for (stage, task), end in times.items():
        shade = 0.25 + 0.6 * (task.segment + 1) / schedule.num_segments
        color = (colormaps["Blues"] if task.is_forward else colormaps["Oranges"])(shade)
        axes.barh(stage, 1, left=end - 1, height=0.86, color=color, edgecolor="white")
        axes.text(
            end - 0.5, stage, str(task.micro_batch), ha="center", va="center", fontsize=8,
            color="white" if shade > 0.6 else "black",
        )  # fmt: skip
    for segment in range(schedule.num_segments):
        first = times[0, Task(True, segment, 0)] - 1
        axes.text(first, -0.62, f"segment {segment}", fontsize=8, ha="left", va="bottom")
    axes.set_xlim(0, ticks)
    axes.set_ylim(num_stages - 0.45, -1.1)
    axes.set_yticks(range(num_stages), [f"stage {stage}" for stage in range(num_stages)])
    axes.set_xlabel("ticks")
    axes.spines[["top", "right", "left"]].set_visible(False)
    busy = 2 * schedule.num_segments * schedule.num_microbatches / ticks
    axes.set_title(
        f"{num_stages} stages, {schedule.num_microbatches} micro-batches, "
        f"{schedule.num_segments} segments: busy {busy:.0%}",
        fontsize=10, loc="left",
    )  # fmt: skip
    save_figure(figure, output)


CONTROL_STYLES = {
    "kept": ("tab:blue", "o"), "reset": ("tab:red", "s"), "swapped": ("tab:orange", "^"),
}  # fmt: skip


def draw_stages(axes: Axes, records: list[dict[str, Any]]) -> None:
    """A vertical line where a stage of the curriculum begins, with its number of segments."""
    stage = 0
    for record in records:
        if record.get("train/curriculum_stage", stage) == stage:
            continue
        stage = record["train/curriculum_stage"]
        axes.axvline(record["iteration"], linestyle=":", linewidth=1, color="tab:red")
        axes.annotate(
            f"{record['train/n_segments']:.0f} segments", (record["iteration"], 1),
            xycoords=("data", "axes fraction"), xytext=(-2, -2), textcoords="offset points",
            rotation=90, ha="right", va="top", fontsize=7, color="tab:red",
        )  # fmt: skip
