"""Examples that are cut from a genome: with coordinates, so that they can be split by position.

Every builder takes windows of `data.window` bases without N. Coordinates are 0-based half-open.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_dna.finetune.examples import Example
from megatron_dna.finetune.shuffle import shuffle_dinucleotides
from megatron_dna.finetune.tasks import Task
from megatron_dna.genome.compressed import read_chunks
from megatron_dna.genome.fasta import read_fasta
from megatron_dna.genome.sequence import reverse_complement

_GC_BINS = 50
"""Negatives of `intervals` have the GC content of positives within 1 / 50."""
_CANDIDATES_PER_NEGATIVE = 20
_MIN_CANONICAL = 0.8
"""Introns that begin with GT and end with AG are 99% in a correct annotation."""

Contigs = dict[str, str]
Row = tuple[str, int, int]
"""(contig, start, end)."""


def cut_examples(task: Task) -> list[Example]:
    """The examples of a genomic task, in the order of the genome.

    Raises:
        ValueError: files that are damaged, do not fit each other, or give no example.
    """
    assert task.data.fasta is not None
    builders: dict[str, Callable[[Task, Contigs], list[Example]]] = {
        "intervals": _intervals,
        "splice_sites": _splice_sites,
        "exons": _exons,
        "shuffled": _shuffled,
        "density": _density,
    }
    contigs = {c.name: c.sequence.decode() for c in read_fasta(Path(task.data.fasta))}
    examples = builders[task.data.format](task, contigs)
    if not examples:
        raise ValueError(
            f"data.fasta ({task.data.fasta}) gives no example of data.window ({task.data.window}) "
            "bases without N; use a smaller window or another annotation"
        )
    return sorted(examples, key=lambda example: (example.contig, example.start))


def _window(contigs: Contigs, contig: str, start: int, size: int) -> str | None:
    """The bases, or None if they run over an end or hold N."""
    if start < 0 or start + size > len(contigs[contig]):
        return None
    bases = contigs[contig][start : start + size]
    return None if "N" in bases else bases


def _find_contig(contigs: Contigs, name: str) -> str | None:
    """The FASTA's name of a contig, which may be with or without `chr`."""
    for candidate in (name, name.removeprefix("chr"), f"chr{name}"):
        if candidate in contigs:
            return candidate
    return None


def _rows(task: Task, contigs: Contigs) -> list[Row]:
    """Regions of the annotation on the contigs that there are."""
    assert task.data.annotation is not None
    path = Path(task.data.annotation)
    rows = []
    for name, start, end in _read_regions(path):
        contig = _find_contig(contigs, name)
        if contig is not None:
            if not 0 <= start < end <= len(contigs[contig]):
                raise ValueError(
                    f"{path}: {name}:{start}-{end} is not inside the contig, which has "
                    f"{len(contigs[contig])} bases; is it of another genome?"
                )
            rows.append((contig, start, end))
    if not rows:
        raise ValueError(
            f"data.annotation ({path}) has no region on the contigs of data.fasta "
            f"({', '.join(list(contigs)[:5])})"
        )
    return sorted(rows)


def _read_lines(path: Path) -> list[str]:
    try:
        return b"".join(read_chunks(path, "annotation")).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"annotation {path} is no text: {error}") from error


def _read_regions(path: Path) -> Iterator[Row]:
    """BED, a table with the columns chrom, start and end, or the positions of a VCF."""
    lines = _read_lines(path)
    is_vcf = bool(lines) and lines[0].startswith("##fileformat=VCF")
    places = [0, 1, 2]
    for number, line in enumerate(lines, 1):
        columns = line.split("\t")
        lowered = [column.lower().lstrip("#") for column in columns]
        if {"chrom", "start", "end"} <= set(lowered):
            places = [lowered.index(name) for name in ("chrom", "start", "end")]
            continue
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        try:
            if is_vcf:
                start = int(columns[1]) - 1
                yield columns[0], start, start + len(columns[3])
            else:
                yield columns[places[0]], int(columns[places[1]]), int(columns[places[2]])
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"annotation {path}, line {number} ({line[:60]!r}) must be BED, VCF, or a row of a "
                "table with the columns chrom, start and end"
            ) from error


def _intervals(task: Task, contigs: Contigs) -> list[Example]:
    """Windows centred at regions, against windows elsewhere that have the same GC content."""
    size = task.data.window
    draw = np.random.default_rng(task.seed)
    rows = _rows(task, contigs)
    positives = []
    for contig, start, end in rows:
        first = (start + end) // 2 - size // 2
        if (bases := _window(contigs, contig, first, size)) is not None:
            positives.append(Example(bases, "1", contig, first, first + size))
    wanted = round(len(positives) * task.data.negatives_per_positive)
    taken = {
        contig: _covered(contigs[contig], contig, rows, size)
        for contig in sorted({contig for contig, *_ in rows})
    }
    pool = _background(contigs, taken, size, wanted * _CANDIDATES_PER_NEGATIVE, draw)
    by_gc: dict[int, list[Example]] = {}
    for example in pool:
        by_gc.setdefault(_gc_bin(example.sequence), []).append(example)
    negatives = []
    for i in range(wanted):
        gc = _gc_bin(positives[i % len(positives)].sequence)
        if by_gc.get(gc):
            negatives.append(by_gc[gc].pop())
    return positives + negatives


def _gc_bin(bases: str) -> int:
    return round((bases.count("G") + bases.count("C")) / len(bases) * _GC_BINS)


def _covered(bases: str, contig: str, rows: list[Row], margin: int) -> npt.NDArray[np.bool_]:
    """Bases that a window must not start at to stay clear of all regions."""
    covered = np.zeros(len(bases), bool)
    for name, start, end in rows:
        if name == contig:
            covered[max(0, start - margin) : end] = True
    return covered


def _background(
    contigs: Contigs,
    taken: dict[str, npt.NDArray[np.bool_]],
    size: int,
    count: int,
    draw: np.random.Generator,
) -> list[Example]:
    """Windows at random places that are not taken, each contig by its length."""
    names = sorted(taken)
    lengths = np.array([len(contigs[name]) for name in names], np.float64)
    found = []
    for which, share in zip(
        draw.choice(len(names), count, p=lengths / lengths.sum()), draw.random(count), strict=True
    ):
        contig = names[which]
        start = int(share * (len(contigs[contig]) - size))
        if start >= 0 and not taken[contig][start]:
            bases = _window(contigs, contig, start, size)
            if bases is not None:
                found.append(Example(bases, "0", contig, start, start + size))
    return found


@dataclass(frozen=True)
class Transcript:
    """Exons of a gene, ascending."""

    contig: str
    strand: str
    exons: tuple[tuple[int, int], ...]

    def introns(self) -> list[tuple[int, int]]:
        """What lies between the exons."""
        return [(a[1], b[0]) for a, b in zip(self.exons, self.exons[1:], strict=False)]


def read_transcripts(path: Path, contigs: Contigs) -> list[Transcript]:
    """A table with the columns CHROM, STRAND, EXON_START and EXON_END (lists between commas).

    Raises:
        ValueError: another table, or one of another genome: introns that do not begin with GT.
    """
    text = "\n".join(line.lstrip("#") for line in _read_lines(path))
    reader = csv.DictReader(io.StringIO(text), delimiter="\t")
    needed = ("CHROM", "STRAND", "EXON_START", "EXON_END")
    if not set(needed) <= set(reader.fieldnames or ()):
        raise ValueError(f"data.annotation ({path}) must have the columns {', '.join(needed)}")
    transcripts = []
    for row in reader:
        contig = _find_contig(contigs, row["CHROM"])
        if contig is None:
            continue
        try:
            bounds = [[int(x) for x in row[key].strip(",").split(",")] for key in needed[2:]]
            exons = tuple(sorted(zip(*bounds, strict=True)))
            inside = exons[0][0] >= 0 and exons[-1][1] <= len(contigs[contig])
            assert row["STRAND"] in ("+", "-")
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f"data.annotation ({path}), line {reader.line_num}: not a transcript"
            ) from error
        if inside:
            transcripts.append(Transcript(contig, row["STRAND"], exons))
    introns = [(t, intron) for t in transcripts for intron in t.introns()]
    canonical = sum(_is_canonical(contigs, t, intron) for t, intron in introns)
    if not introns or canonical < _MIN_CANONICAL * len(introns):
        raise ValueError(
            f"data.annotation ({path}): {canonical} of {len(introns)} introns on the contigs of "
            "data.fasta begin with GT and end with AG; is it of this genome, with 0-based starts?"
        )
    return transcripts


def _is_canonical(contigs: Contigs, transcript: Transcript, intron: tuple[int, int]) -> bool:
    bases = contigs[transcript.contig]
    ends = bases[intron[0] : intron[0] + 2], bases[intron[1] - 2 : intron[1]]
    return ends == (("GT", "AG") if transcript.strand == "+" else ("CT", "AC"))


def _sense(bases: str, strand: str) -> str:
    return bases if strand == "+" else reverse_complement(bases.encode()).decode()


def _splice_sites(task: Task, contigs: Contigs) -> list[Example]:
    """Windows, in the direction of the gene, centred at the first base of an intron (donor), the
    base after it (acceptor), or GT and AG of the same transcripts that are no sites (neither)."""
    assert task.data.annotation is not None
    size, half = task.data.window, task.data.window // 2
    draw = np.random.default_rng(task.seed)
    transcripts = read_transcripts(Path(task.data.annotation), contigs)
    boundaries: dict[tuple[str, str, int], str] = {}
    for t in transcripts:
        for intron in t.introns():
            names = ("donor", "acceptor") if t.strand == "+" else ("acceptor", "donor")
            if _is_canonical(contigs, t, intron):
                for at, name in zip(intron, names, strict=True):
                    boundaries[t.contig, t.strand, at] = name
    sites = dict(boundaries)
    known = {(t.contig, at) for t in transcripts for intron in t.introns() for at in intron}
    wanted = round(len(boundaries) * task.data.negatives_per_positive)
    for t, is_donor in _decoys(transcripts, wanted, draw):
        bases = contigs[t.contig]
        motif = {(True, "+"): "GT", (False, "+"): "AG", (True, "-"): "AC", (False, "-"): "CT"}
        starts_intron = is_donor == (t.strand == "+")  # of what is left of the boundary, or right
        found = bases.find(
            motif[is_donor, t.strand], int(draw.integers(t.exons[0][0], t.exons[-1][1]))
        )
        at = found if starts_intron else found + 2
        if 0 <= found < t.exons[-1][1] and (t.contig, at) not in known:
            sites[t.contig, t.strand, at] = "neither"
    examples = []
    for (contig, strand, at), name in sites.items():
        if (window := _window(contigs, contig, at - half, size)) is not None:
            sense = _sense(window, strand)
            examples.append(Example(sense, name, contig, at - half, at + half))
    return examples


def _decoys(
    transcripts: list[Transcript], count: int, draw: np.random.Generator
) -> Iterator[tuple[Transcript, bool]]:
    """Transcripts to look for a decoy in, by their number of introns; half for donors."""
    weights = np.array([len(t.exons) - 1 for t in transcripts], np.float64)
    for i, which in enumerate(draw.choice(len(transcripts), count, p=weights / weights.sum())):
        yield transcripts[which], i % 2 == 0


def _exons(task: Task, contigs: Contigs) -> list[Example]:
    """Windows along transcripts, in the direction of the gene; base labels: 1 in exons, else 0."""
    assert task.data.annotation is not None
    size = task.data.window
    examples = []
    for t in read_transcripts(Path(task.data.annotation), contigs):
        inside = np.zeros(t.exons[-1][1] - t.exons[0][0], np.uint8)
        for start, end in t.exons:
            inside[start - t.exons[0][0] : end - t.exons[0][0]] = 1
        for start in range(t.exons[0][0], t.exons[-1][1] - size + 1, size):
            labels = inside[start - t.exons[0][0] :][:size]
            window = _window(contigs, t.contig, start, size)
            if window is not None and labels.any():
                digits = "".join(map(str, labels if t.strand == "+" else labels[::-1]))
                sense = _sense(window, t.strand)
                examples.append(Example(sense, digits, t.contig, start, start + size))
    return examples


def _tiles(task: Task, contigs: Contigs) -> Iterator[tuple[str, int, str]]:
    for contig, bases in contigs.items():
        for start in range(0, len(bases) - task.data.window + 1, task.data.window):
            window = _window(contigs, contig, start, task.data.window)
            if window is not None:
                yield contig, start, window


def _shuffled(task: Task, contigs: Contigs) -> list[Example]:
    """Windows side by side, each once as it is and once with its dinucleotides shuffled."""
    draw = np.random.default_rng(task.seed)
    tiles = list(_tiles(task, contigs))
    if task.data.max_examples is not None and len(tiles) > task.data.max_examples // 2:
        chosen = draw.choice(len(tiles), max(1, task.data.max_examples // 2), replace=False)
        tiles = [tiles[i] for i in sorted(chosen)]
    return [
        Example(bases, label, contig, start, start + len(bases))
        for contig, start, window in tiles
        for bases, label in ((window, "real"), (shuffle_dinucleotides(window, draw), "shuffled"))
    ]


def _density(task: Task, contigs: Contigs) -> list[Example]:
    """Windows side by side between the first and the last record of a contig; the label is the
    number of records that start in it."""
    found: dict[str, list[int]] = {}
    for contig, start, _ in _rows(task, contigs):
        found.setdefault(contig, []).append(start)
    starts = {contig: np.array(places) for contig, places in found.items()}
    examples = []
    for contig, start, window in _tiles(task, contigs):
        places = starts.get(contig, np.empty(0, np.int64))
        if len(places) and places[0] <= start and start + len(window) <= places[-1]:
            first, last = np.searchsorted(places, [start, start + len(window)])
            examples.append(
                Example(window, (float(last - first),), contig, start, start + len(window))
            )
    return examples
