"""Pictures of a run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    handle, partial = tempfile.mkstemp(suffix=".png", prefix=".", dir=output.parent)
    os.close(handle)
    figure.savefig(partial, dpi=140)
    Path(partial).chmod(0o644)
    Path(partial).replace(output)


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
