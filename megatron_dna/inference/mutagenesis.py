"""In-silico mutagenesis: what a model says to every base of a region becoming any other one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_dna.data.pictures import save_figure
from megatron_dna.genome.fasta import sha256_of
from megatron_dna.genome.regions import parse_region
from megatron_dna.inference.genome import Genome
from megatron_dna.inference.masked import MaskedModel
from megatron_dna.inference.score_log import ScoreLog, partial_folder
from megatron_dna.inference.variants import Scorer, Scores, Variant

BASES = "ACGT"
COLUMNS = ("contig", "position", "ref", "alt", "log_ratio", "distance")


def mutate_region(
    model: MaskedModel,
    fasta: Path,
    text: str,
    output: Path,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Score all three other bases at each position, and draw them.

    A run that was killed goes on.

    Args:
        model: scores.
        fasta: plain or bgzipped.
        text: the region in samtools' syntax, 1-based and inclusive. Positions with N are left out.
        output: table, `.tsv`; position is 1-based. The picture lies beside it, as `.png`.
        batch_size: inputs that go through the model at once.
        progress: told the variants that are done since its last call, and how many there are.

    Returns:
        Variants that were scored.

    Raises:
        ValueError: bad input.
        OSError: the output cannot be written.
    """
    if output.suffix != ".tsv":
        raise ValueError(f"--output ({output}) must end in .tsv; the picture is written beside it")
    with partial_folder(output) as folder:
        genome = Genome(fasta, folder)
        region = parse_region(text, genome.lengths)
        bases = genome.read(region.contig, region.start, region.end).decode()
        variants = [
            Variant(region.contig, region.start + i, ref, alt)
            for i, ref in enumerate(bases)
            for alt in BASES.replace(ref, "")
            if ref != "N"
        ]
        if not variants:
            raise ValueError(f"--in-silico-mutagenesis ({text}): the region has nothing but N")
        about = {"model": model.sha256(), "segment_size": model.segment_size}
        about |= {"fasta": sha256_of(fasta), "region": text}
        log = ScoreLog(Scorer(model, genome, batch_size), folder, about)
        parts = []
        for first in range(0, len(variants), batch_size):
            chunk = variants[first : first + batch_size]
            parts.append(log(chunk))
            progress(len(chunk), len(variants))
        scores = np.concatenate(parts)
        written = folder / output.name
        with written.open("w", encoding="utf-8") as file:
            file.write("\t".join(COLUMNS) + "\n")
            for variant, score in zip(variants, scores, strict=True):
                contig, start, ref, alt = variant
                values = f"{score['log_ratio']:.6g}\t{score['distance']:.6g}"
                file.write(f"{contig}\t{start + 1}\t{ref}\t{alt}\t{values}\n")
        plot_mutations(bases, region.start, variants, scores, output.with_suffix(".png"))
        written.replace(output)
    return len(variants)


def plot_mutations(
    bases: str, start: int, variants: list[Variant], scores: Scores, output: Path
) -> None:
    """Draw both scores of each base at each position to a PNG; the reference's base is a dot."""
    columns = [variant.start - start for variant in variants]
    rows = [BASES.index(variant.alt) for variant in variants]
    figure = Figure(figsize=(min(24.0, 4 + 0.12 * len(bases)), 4.4), layout="constrained")
    for panel, (key, colors) in zip(
        figure.subplots(2, 1, sharex=True),
        {"log_ratio": "RdBu", "distance": "viridis"}.items(),
        strict=True,
    ):
        image = np.full((len(BASES), len(bases)), np.nan)
        image[rows, columns] = scores[key]
        _draw(panel, image, colors, key, bases, start)
    panel.set_xlabel(f"position on {variants[0].contig} (1-based)")
    panel.ticklabel_format(axis="x", style="plain", useOffset=False)
    save_figure(figure, output)


def _draw(
    axes: Axes, image: npt.NDArray[np.float64], colors: str, key: str, bases: str, start: int
) -> None:
    """One heat map, [4, positions]; signed values are white at 0."""
    most = float(np.nan_to_num(np.abs(image)).max()) or 1.0
    drawn = axes.imshow(
        image, aspect="auto", interpolation="nearest", cmap=colors,
        vmin=-most if key == "log_ratio" else 0, vmax=most,
        extent=(start + 0.5, start + len(bases) + 0.5, len(BASES) - 0.5, -0.5),
    )  # fmt: skip
    known = [i for i, base in enumerate(bases) if base != "N"]
    heights = [BASES.index(bases[i]) for i in known]
    axes.scatter([start + 1 + i for i in known], heights, s=4, color="black", linewidths=0)
    axes.set_yticks(range(len(BASES)), BASES)
    label = {"log_ratio": "log ratio (nats)", "distance": "distance"}[key]
    assert axes.figure is not None
    axes.figure.colorbar(drawn, ax=axes, label=label)
