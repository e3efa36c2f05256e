"""Pictures of a dataset, and how any picture gets onto the disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from megatron_dna.genome.coordinates import Positions

if TYPE_CHECKING:
    from megatron_dna.data.inspect import Dataset, Share

MAX_CONTIGS = 24
"""Contigs that are drawn: those with the most tokens."""
NUM_BINS = 400
"""Columns of the picture of coverage; the longest contig takes all of them."""


def save_figure(figure: Figure, output: Path) -> None:
    """Writes a PNG, atomically.

    Raises:
        OSError: the folder is not there, or the disk is full.
    """
    handle, partial = tempfile.mkstemp(suffix=".png", prefix=".", dir=output.parent)
    os.close(handle)
    try:
        figure.savefig(partial, dpi=140)
        Path(partial).chmod(0o644)
        Path(partial).replace(output)
    finally:
        Path(partial).unlink(missing_ok=True)


def plot_dataset(dataset: Dataset, output: Path) -> None:
    """Draws lengths of tokens and documents; with a manifest documents by contig, and coverage.

    Raises:
        ValueError: an id is outside the vocabulary.
        OSError: the picture cannot be written.
    """
    has_contigs = bool(dataset.contigs)
    figure = Figure(figsize=(10, 8 if has_contigs else 4), layout="constrained")
    rows = figure.subplots(1 + has_contigs, 2, squeeze=False)
    _draw_token_lengths(rows[0, 0], dataset)
    _draw_document_lengths(rows[0, 1], dataset)
    if has_contigs:
        _draw_documents_by_contig(rows[1, 0], dataset)
        _draw_coverage(figure, rows[1, 1], dataset)
    save_figure(figure, output)


def measure_coverage(
    starts: Positions, ends: Positions, length: int, bases_per_bin: float
) -> npt.NDArray[np.float64]:
    """How often stretches cover the bases of a contig, on average by bin, float64 [bins]."""
    num_bins = max(int(np.ceil(length / bases_per_bin)), 1)
    edges = np.minimum(np.arange(num_bins + 1) * bases_per_bin, length)
    beyond = _sum_beyond(edges, starts) - _sum_beyond(edges, ends)
    covered: npt.NDArray[np.float64] = np.diff(beyond) / np.diff(edges)
    return covered


def _sum_beyond(edges: npt.NDArray[np.float64], points: Positions) -> npt.NDArray[np.float64]:
    """For each edge, the distances of all points before it, summed."""
    sums = np.concatenate(([0], np.cumsum(np.sort(points))))
    num_before = np.searchsorted(np.sort(points), edges)
    return num_before * edges - sums[num_before]


def _draw_token_lengths(axes: Axes, dataset: Dataset) -> None:
    counts = np.bincount(dataset.tokenizer.token_lengths, weights=dataset.token_counts)
    axes.bar(np.arange(len(counts)), counts / counts.sum(), width=0.9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("bases of a token (0: special)")
    axes.set_ylabel("share of the tokens")
    axes.set_title(f"{dataset.tokens.num_tokens:,} tokens, {dataset.num_bases:,} bases")


def _draw_document_lengths(axes: Axes, dataset: Dataset) -> None:
    lengths = dataset.tokens.lengths
    bins = np.geomspace(max(lengths.min(), 1), lengths.max() + 1, 40)
    axes.hist(lengths, bins=bins.tolist())
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("tokens of a document")
    axes.set_ylabel("documents")
    axes.set_title(f"{len(lengths):,} documents")


def _largest_contigs(dataset: Dataset) -> list[Share]:
    contigs = sorted(dataset.contigs or (), key=lambda contig: -contig.tokens)
    return [contig for contig in contigs if contig.documents][:MAX_CONTIGS]


def _draw_documents_by_contig(axes: Axes, dataset: Dataset) -> None:
    contigs = _largest_contigs(dataset)
    axes.barh([contig.name for contig in contigs], [contig.documents for contig in contigs])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("documents")
    axes.set_title("documents by contig")


def _draw_coverage(figure: Figure, axes: Axes, dataset: Dataset) -> None:
    contigs = _largest_contigs(dataset)
    bases_per_bin = max(contig.length for contig in contigs) / NUM_BINS
    image = np.full((len(contigs), NUM_BINS), np.nan)
    for row, contig in zip(image, contigs, strict=True):
        for starts, ends in dataset.stretches(contig.name):
            covered = measure_coverage(starts, ends, contig.length, bases_per_bin)
            row[: len(covered)] = np.nan_to_num(row[: len(covered)]) + covered
    megabases = NUM_BINS * bases_per_bin / 1e6
    drawn = axes.imshow(
        image, aspect="auto", interpolation="nearest", vmin=0,
        extent=(0, megabases, len(contigs) - 0.5, -0.5),
    )  # fmt: skip
    axes.set_yticks(range(len(contigs)), [contig.name for contig in contigs])
    axes.set_xlabel("Mbp along the contig")
    axes.set_title("documents that cover a base")
    figure.colorbar(drawn, ax=axes)
