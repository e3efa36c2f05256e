"""What a design leaves: sequences, how they came about, and a picture of that.

<output>/
    designs.fa        each chain's last sequence
    designs.tsv       the same with their numbers
    trajectory.tsv    every step of every chain
    trajectory.png
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_dna.inference.design import Step

_LINE = 60


def check_output(output: Path) -> None:
    """Raises ValueError if something is at `output`."""
    if output.exists():
        raise ValueError(f"--output ({output}) is there already; choose another folder")


def write_designs(
    output: Path,
    steps: Sequence[Sequence[Step]],
    log_likelihoods: Sequence[float],
    gc_range: tuple[float, float],
) -> None:
    """Write the folder, which appears when it is complete.

    Args:
        output: not there yet.
        steps: of each chain, from its start on.
        log_likelihoods: of each chain's last sequence, nats.
        gc_range: for the picture.
    """
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        _write_sequences(temporary, steps, log_likelihoods)
        _write_trajectory(temporary / "trajectory.tsv", steps)
        _plot(temporary / "trajectory.png", steps, gc_range)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _name(number: int) -> str:
    return f"design_{number + 1}"


def _write_sequences(
    folder: Path, steps: Sequence[Sequence[Step]], log_likelihoods: Sequence[float]
) -> None:
    fasta: list[str] = []
    rows = ["name\tgc\tlog_likelihood_per_base\tscore\tstart_score\taccepted\tsequence"]
    for number, (chain, nats) in enumerate(zip(steps, log_likelihoods, strict=True)):
        last, name = chain[-1], _name(number)
        per_base = nats / len(last.sequence)
        accepted = np.mean([step.accepted for step in chain[1:]]) if len(chain) > 1 else np.nan
        rows.append(
            f"{name}\t{last.gc:.4f}\t{per_base:.4f}\t{_number(last.score)}\t"
            f"{_number(chain[0].score)}\t{_number(float(accepted))}\t{last.sequence}"
        )
        fasta.append(f">{name} gc={last.gc:.4f} score={_number(last.score)}")
        fasta += [last.sequence[i : i + _LINE] for i in range(0, len(last.sequence), _LINE)]
    (folder / "designs.fa").write_text("\n".join(fasta) + "\n")
    (folder / "designs.tsv").write_text("\n".join(rows) + "\n")


def _number(value: float) -> str:
    """As a table has it; NA where there is none."""
    return "NA" if np.isnan(value) else f"{value:.4f}"


def _write_trajectory(path: Path, steps: Sequence[Sequence[Step]]) -> None:
    with path.open("w") as file:
        file.write("name\tstep\tgc\tlog_probability_per_base\taccepted\tscore\n")
        for number, chain in enumerate(steps):
            for i, step in enumerate(chain):
                file.write(
                    f"{_name(number)}\t{i}\t{step.gc:.4f}\t{_number(step.log_probability)}\t"
                    f"{int(step.accepted)}\t{_number(step.score)}\n"
                )


def _plot(path: Path, steps: Sequence[Sequence[Step]], gc_range: tuple[float, float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    has_score = not np.isnan(steps[0][0].score)
    figure, axes = pyplot.subplots(
        2 + has_score, 1, sharex=True, figsize=(8, 2.5 * (2 + has_score)), layout="constrained"
    )
    for chain in steps:
        axes[0].plot([step.gc for step in chain], linewidth=0.8)
        drawn = np.array([step.log_probability for step in chain[1:]])
        window = max(1, len(drawn) // 20)
        mean = np.convolve(drawn, np.full(window, 1 / window), "valid")
        axes[1].plot(np.arange(window, len(drawn) + 1), mean, linewidth=0.8)
        if has_score:
            axes[2].plot([step.score for step in chain], linewidth=0.8)
    axes[0].axhspan(*gc_range, color="0.9", zorder=0)
    axes[0].set_ylabel("GC content")
    axes[1].set_ylabel(f"ln p of drawn bases\n(mean of {window} steps)")
    if has_score:
        axes[2].set_ylabel("predictor's score")
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
