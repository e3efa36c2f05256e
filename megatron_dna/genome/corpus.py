"""Genomes as documents: which stretch of which contig goes to training, which is held out.

A document is a contig's whole stretch between runs of 10 or more N; held-out regions cut it. The
plan is made of coordinates alone (0-based half-open), before any sequence is encoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from megatron_dna.genome.duplicates import DuplicateWindows
from megatron_dna.genome.fasta import ContigPiece, read_pieces
from megatron_dna.genome.regions import (
    Interval,
    Region,
    is_bed,
    merge_intervals,
    parse_region,
    read_bed,
    split_interval,
)
from megatron_dna.genome.sequence import StretchFinder
from megatron_dna.genome.store import SequenceStore

Split = Literal["train", "valid"]
Strand = Literal["+", "-"]
Part = tuple[Interval, Split]
SPLITS: tuple[Split, Split] = ("train", "valid")


@dataclass(frozen=True)
class ContigSummary:
    """What the first pass learns of a contig.

    Attributes:
        name: unique over all files.
        path: the FASTA file it is in.
        length: bases.
        num_ambiguous: IUPAC ambiguity codes that became N.
        stretches: intervals between runs of 10 or more N.
    """

    name: str
    path: Path
    length: int
    num_ambiguous: int
    stretches: tuple[Interval, ...]

    @property
    def gap_bases(self) -> int:
        """Bases in runs of 10 or more N, which belong to no document."""
        return self.length - sum(end - start for start, end in self.stretches)

    @property
    def num_gaps(self) -> int:
        """Runs of 10 or more N."""
        bounds = [0, *(bound for stretch in self.stretches for bound in stretch), self.length]
        return sum(bounds[i] < bounds[i + 1] for i in range(0, len(bounds), 2))


@dataclass(frozen=True)
class Document:
    """A stretch of a contig on one strand; `start` and `end` count on the forward strand."""

    contig: str
    start: int
    end: int
    strand: Strand
    split: Split

    @property
    def length(self) -> int:
        """Bases."""
        return self.end - self.start


@dataclass(frozen=True)
class Plan:
    """Which documents a corpus has.

    Attributes:
        contigs: in the order of the files.
        holdout: merged and sorted.
        documents: in the order of the files; a reverse strand follows its forward strand.
        dropped: stretches that are too short to be documents, forward strand only.
    """

    contigs: tuple[ContigSummary, ...]
    holdout: tuple[Region, ...]
    documents: tuple[Document, ...]
    dropped: tuple[Document, ...]

    def parts(self, name: str) -> list[Part]:
        """The parts of a contig that documents are made of."""
        contig = next(contig for contig in self.contigs if contig.name == name)
        cuts = [(region.start, region.end) for region in self.holdout if region.contig == name]
        return contig_parts(contig, cuts)


def scan(
    paths: Sequence[Path],
    advance: Callable[[int], object],
    keep: Callable[[ContigPiece], object] = lambda piece: None,
) -> list[ContigSummary]:
    """Reads and checks all sequence of FASTA files in a few MB of memory.

    Args:
        paths: FASTA files; names of contigs are unique over all of them.
        advance: told the number of bases after each piece.
        keep: given each piece, such as `SequenceStore.append`.

    Raises:
        ValueError, OSError: see `read_pieces`.
    """
    summaries = []
    by_contig = itertools.groupby(read_pieces(paths), lambda item: (item[0], item[1].name))
    for (path, name), pieces in by_contig:
        finder, num_ambiguous = StretchFinder(), 0
        for _, piece in pieces:
            keep(piece)
            finder.add(piece.bases)
            num_ambiguous += piece.num_ambiguous
            advance(len(piece.bases))
        stretches = tuple(finder.stretches())
        summaries.append(ContigSummary(name, path, finder.length, num_ambiguous, stretches))
    return summaries


def contig_parts(contig: ContigSummary, cuts: Iterable[Interval]) -> list[Part]:
    """A contig's stretches between runs of N, cut at held-out regions; each part with its split."""
    return [
        (part, "valid" if inside else "train")
        for stretch in contig.stretches
        for part, inside in split_interval(stretch, cuts)
    ]


def plan_documents(
    contigs: Sequence[ContigSummary],
    holdout: Sequence[str] = (),
    min_length: int = 0,
    both_strands: bool = False,
) -> Plan:
    """Cuts contigs into training and held-out documents.

    Args:
        contigs: from `scan`.
        holdout: regions in samtools' syntax, for example `20:3000001-4000000` or `20`, and BED
            files. What lies in them makes the documents of `valid`, and is in no document of
            `train`.
        min_length: shorter stretches, after the cuts, are dropped (bases).
        both_strands: each document is followed by its reverse complement, a document too.

    Raises:
        ValueError: a region is not there, or a split would have no document.
    """
    lengths = {contig.name: contig.length for contig in contigs}
    held_out: dict[str, list[Interval]] = {}
    for text in holdout:
        for region in (
            read_bed(Path(text), lengths) if is_bed(text) else [parse_region(text, lengths)]
        ):
            held_out.setdefault(region.contig, []).append((region.start, region.end))
    cuts = {name: merge_intervals(intervals) for name, intervals in held_out.items()}

    documents: list[Document] = []
    dropped: list[Document] = []
    for contig in contigs:
        for (start, end), split in contig_parts(contig, cuts.get(contig.name, ())):
            forward = Document(contig.name, start, end, "+", split)
            if forward.length < min_length:
                dropped.append(forward)
                continue
            documents.append(forward)
            if both_strands:
                documents.append(Document(contig.name, start, end, "-", split))
    regions = [Region(name, *cut) for name in lengths for cut in cuts.get(name, ())]
    plan = Plan(tuple(contigs), tuple(regions), tuple(documents), tuple(dropped))
    _check_splits(plan, min_length)
    return plan


def drop_duplicates(
    plan: Plan, store: SequenceStore, folder: Path, window_length: int, min_length: int = 0
) -> tuple[Plan, dict[str, int]]:
    """Leaves the windows out of training that it has already; `valid` stays as it is.

    Args:
        plan: of the documents; what is left of one makes shorter ones.
        store: has their sequence.
        folder: for scratch files.
        window_length: see `DuplicateWindows`.
        min_length: what is left and shorter is dropped too (bases).

    Returns:
        The plan, and what was dropped, counted on the forward strand.

    Raises:
        ValueError: `window_length` is too short.
        OSError: the disk is full or fails.
    """
    forward = [d for d in plan.documents if d.split == "train" and d.strand == "+"]
    both_strands = any(document.strand == "-" for document in plan.documents)
    kept: dict[Document, list[Document]] = {}
    with DuplicateWindows(folder, window_length) as windows:
        for document in forward:
            windows.add(store.stretch(document.contig, document.start, document.end))
        for document, parts in zip(forward, windows.new_parts(), strict=True):
            kept[document] = [
                replace(document, start=document.start + a, end=document.start + b, strand=strand)
                for a, b in parts
                if b - a >= min_length
                for strand in (("+", "-") if both_strands else ("+",))
            ]
    documents = [
        part
        for document in plan.documents
        if document.split != "train" or document.strand == "+"
        for part in kept.get(document, [document])
    ]
    return replace(plan, documents=tuple(documents)), {
        "window_length": window_length,
        "windows": windows.num_windows,
        "windows_dropped": windows.num_dropped,
        "bases_dropped": windows.num_bases_dropped,
    }


def _check_splits(plan: Plan, min_length: int) -> None:
    """No split may be empty: a file without documents cannot be read by anyone."""
    present = {document.split for document in plan.documents}
    short = {document.split for document in plan.dropped}
    for split in SPLITS:
        if split in present or (split == "valid" and not plan.holdout):
            continue
        if split in short:
            why = f"every stretch for it is shorter than min_length ({min_length})"
        elif split == "valid":
            why = "the held-out regions have runs of N only"
        else:
            why = "the contigs have runs of N only, or all is held out"
        raise ValueError(f"there is no document for {split}: {why}")
