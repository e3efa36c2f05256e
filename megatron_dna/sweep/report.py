"""Tables and pictures of a sweep, all of them from its study alone."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from megatron_dna.checkpoint.folders import write_text
from megatron_dna.data.pictures import save_figure
from megatron_dna.sweep.space import describe, show
from megatron_dna.sweep.store import best_trial

logger = logging.getLogger(__name__)

MAX_NAMED = 12
"""Trials that have a line in the legend: the best ones."""
LABELS = {
    "valid/bits_per_base": "held-out bits a base",
    "valid/loss": "held-out loss (nats a masked token)",
    "valid/accuracy": "held-out masked accuracy",
}


def write_report(study: optuna.Study, folder: Path) -> None:
    """Write report.md, trials.csv, loss.png and parameters.png into the folder of a sweep.

    Pictures need at least one evaluation; importances two complete trials.
    """
    rows = table(study)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    for name, content in (("trials.csv", text.getvalue()), ("report.md", markdown(study))):
        partial = folder / f".{name}"
        write_text(partial, content)
        partial.replace(folder / name)
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        plot_curves(study, folder / "loss.png")
    if best_trial(study) is not None:
        plot_parameters(study, folder / "parameters.png")


def metric_of(study: optuna.Study) -> str:
    """What trials are compared by."""
    metric: str = study.user_attrs["begun_with"]["sweep"]["objective"]["metric"]
    return metric


def table(study: optuna.Study) -> list[list[str]]:
    """A header and a row a trial, best first, then those without a value by number."""
    names = parameter_names(study)
    header = ["trial", "state", *names, metric_of(study), "iteration", "tokens", "note"]
    return [header, *(_row(trial, names) for trial in ranked(study))]


def parameter_names(study: optuna.Study) -> list[str]:
    """In the order of the sweep file."""
    return list(study.user_attrs["begun_with"]["sweep"]["parameters"])


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were begun: complete ones by value, then the others by number."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    begun = [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]

    def rank(trial: FrozenTrial) -> tuple[float, int]:
        return (sign * trial.values[0] if _is_complete(trial) else math.inf, trial.number)

    return sorted(begun, key=rank)


def _row(trial: FrozenTrial, names: Sequence[str]) -> list[str]:
    step = max(trial.intermediate_values, default=None)
    value = trial.value
    if value is None and step is not None:
        value = trial.intermediate_values[step]
    tokens = "" if step is None else str(trial.user_attrs["tokens"][str(step)])
    return [
        str(trial.number),
        trial.state.name.lower(),
        *(show(trial.params[name]) if name in trial.params else "" for name in names),
        "" if value is None else f"{value:.4f}",
        "" if step is None else str(step),
        tokens,
        trial.user_attrs.get("reason", ""),
    ]


def markdown(study: optuna.Study) -> str:
    """The table as a page, with the best trial and the importances."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table(study)]
    lines = [f"# {study.study_name}", ""]
    best = best_trial(study)
    if best is not None:
        lines += [
            f"Best: trial {best.number}, {metric_of(study)} {best.values[0]:.4f} with "
            f"{describe(best.params)}.",
            "",
        ]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(len(lines) - len(rows) + 1, "|" + " --- |" * len(rows[0]))
    shares = importances(study)
    if shares:
        lines += ["", "| parameter | importance |", "| --- | ---: |"]
        lines += [f"| {name} | {share:.0%} |" for name, share in shares.items()]
    return "\n".join(lines) + "\n"


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the variance among complete trials that each parameter explains, largest first.

    Empty where trials are too few or all alike. Source: Hutter et al. 2014 (fANOVA), Optuna's.
    """
    values = {trial.value for trial in study.get_trials(deepcopy=False) if _is_complete(trial)}
    if len(values) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def plot_curves(study: optuna.Study, output: Path) -> None:
    """Draw the metric of each trial over the tokens that it read, best first, to a PNG."""
    trials = [trial for trial in ranked(study) if trial.intermediate_values]
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for place, trial in enumerate(trials):
        steps = sorted(trial.intermediate_values)
        tokens = [trial.user_attrs["tokens"][str(step)] for step in steps]
        values = [trial.intermediate_values[step] for step in steps]
        note = "" if _is_complete(trial) else f" ({trial.state.name.lower()})"
        label = f"{trial.number}: {describe(trial.params)}{note}" if place < MAX_NAMED else None
        axes.plot(
            tokens, values, label=label, color=colormaps["viridis"](place / max(1, len(trials))),
            marker="o" if _is_complete(trial) else "x", markersize=3,
            linewidth=1.4, linestyle="-" if _is_complete(trial) else ":",
        )  # fmt: skip
    axes.set_xlabel("tokens read")
    axes.set_ylabel(LABELS[metric_of(study)])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7, title="trial, best first")
    save_figure(figure, output)


def plot_parameters(study: optuna.Study, output: Path) -> None:
    """Draw importances, and each complete trial's value over each parameter, to a PNG."""
    names = parameter_names(study)
    shares = importances(study)
    count = len(names) + bool(shares)
    figure = Figure(figsize=(3.3 * count + 0.6, 3.4), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    if shares:
        axes = panels.pop(0)
        axes.barh(list(shares)[::-1], list(shares.values())[::-1], color="tab:blue")
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the variance")
        axes.set_title("importance", fontsize=10)
    trials = [trial for trial in ranked(study) if _is_complete(trial)]
    for axes, name in zip(panels, names, strict=True):
        _plot_parameter(axes, trials, name)
    panels[0].set_ylabel(LABELS[metric_of(study)])
    save_figure(figure, output)


def _plot_parameter(axes: Axes, trials: Sequence[FrozenTrial], name: str) -> None:
    distribution = trials[0].distributions[name]
    values = [trial.values[0] for trial in trials]
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        choices = list(distribution.choices)
        places = [choices.index(trial.params[name]) for trial in trials]
        axes.plot(places, values, "o", color="tab:blue", alpha=0.8)
        axes.set_xticks(range(len(choices)), [show(choice) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
    else:
        axes.plot([trial.params[name] for trial in trials], values, "o", color="tab:blue")
        if getattr(distribution, "log", False):
            axes.set_xscale("log")
    axes.set_title(name, fontsize=10)
    axes.grid(alpha=0.3)
