"""Tables and pictures of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from megatron_dna.data.pictures import save_figure
from megatron_dna.finetune.tasks import METRICS, Task

_COLORS = ("0.75", "0.55", "tab:blue", "lightsteelblue", "tab:red", "lightsalmon")


def mean_and_spread(folds: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, float]:
    """Of the test part over folds: mean and standard deviation (n - 1); of one fold 0."""
    values = np.array([fold["scores"]["test"][metric] for fold in folds], np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def table(results: Mapping[str, Any], titles: Mapping[str, str]) -> list[list[str]]:
    """A header and a row a task: mean and spread of its metric for each method.

    Args:
        results: as `run_benchmark` returns them.
        titles: of the methods.
    """
    methods = list(next(iter(results.values()))["methods"])
    rows = [["task", "metric", *(titles[method] for method in methods)]]
    for name, result in results.items():
        cells = []
        for method in methods:
            mean, spread = mean_and_spread(result["methods"][method], result["metric"])
            cells.append(f"{mean:.3f} ± {spread:.3f}")
        rows.append([name, result["metric"], *cells])
    return rows


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other, for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown(results: Mapping[str, Any], titles: Mapping[str, str], model: str) -> str:
    """The tables as a page: the deciding metric of all tasks, then all metrics of each task."""
    lines = [f"# Benchmark of {model}", "", "Mean and standard deviation over folds.", ""]
    lines += _markdown_table(table(results, titles))
    for name, result in results.items():
        about = result["about"]["task"]
        folds = result["num_test"]
        lines += ["", f"## {name}", "", about["description"] or about["kind"], ""]
        lines += [
            f"{result['num_examples']} examples, {len(folds)} folds (split by "
            f"{result['split_by']}; {min(folds)} to {max(folds)} examples tested).",
            "",
        ]
        rows = [["method", *METRICS[about["kind"]], "seconds a fold"]]
        for method, found in result["methods"].items():
            pairs = [mean_and_spread(found, metric) for metric in METRICS[about["kind"]]]
            seconds = np.mean([fold["seconds"] for fold in found])
            rows.append([titles[method], *(f"{m:.3f} ± {s:.3f}" for m, s in pairs),
                         f"{seconds:.1f}"])  # fmt: skip
        lines += _markdown_table(rows)
    return "\n".join(lines) + "\n"


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def plot_results(results: Mapping[str, Any], titles: Mapping[str, str], output: Path) -> None:
    """Bars a task and method, every fold a dot, to a PNG."""
    methods = list(next(iter(results.values()))["methods"])
    figure = Figure(figsize=(max(6.0, 1.7 * len(results) + 2), 4.5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        for j, result in enumerate(results.values()):
            found = result["methods"][method]
            mean, spread = mean_and_spread(found, result["metric"])
            x = j + (i - (len(methods) - 1) / 2) * width
            axes.bar(
                x, mean, width * 0.92, yerr=spread, color=_COLORS[list(titles).index(method)],
                label=titles[method] if j == 0 else None, error_kw={"linewidth": 1},
            )  # fmt: skip
            dots = [fold["scores"]["test"][result["metric"]] for fold in found]
            axes.plot([x] * len(dots), dots, ".", color="black", markersize=3)
    labels = [f"{name}\n({result['metric']})" for name, result in results.items()]
    axes.set_xticks(range(len(results)), labels, fontsize=8)
    axes.set_ylabel("test part, mean over folds")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    save_figure(figure, output)


def plot_training(task: Task, history: Sequence[Mapping[str, float]], output: Path) -> None:
    """Loss of both parts, and the metric of the valid part, by epoch, to a PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, key, label in (
        (left, "loss", "training"),
        (left, "eval_loss", "valid"),
        (right, f"eval_{task.main_metric}", "valid"),
    ):
        points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    left.set_ylabel("loss")
    right.set_ylabel(task.main_metric)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, output)
