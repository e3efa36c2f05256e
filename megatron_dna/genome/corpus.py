"""Genomes as documents: which stretch of which contig goes to training, which is held out.

A document is a contig's whole stretch between runs of 10 or more N; held-out regions cut it. The
plan is made of coordinates alone (0-based half-open), before any sequence is encoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from megatron_dna.genome.fasta import ContigPiece, read_pieces
from megatron_dna.genome.regions import (
    Interval,
    Region,
    is_bed,
    is_excluded,
    merge_intervals,
    parse_region,
    read_bed,
    split_interval,
)
from megatron_dna.genome.sequence import StretchFinder

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
    def gaps(self) -> list[Interval]:
        """Runs of 10 or more N, which belong to no document."""
        bounds = [0, *(bound for stretch in self.stretches for bound in stretch), self.length]
        pairs = zip(bounds[::2], bounds[1::2], strict=True)
        return [(start, end) for start, end in pairs if start < end]


@dataclass(frozen=True)
class Document:
    """A stretch of a sequence on one strand; 0-based half-open, on the forward strand.

    Attributes:
        contig: the sequence, or what it is a haplotype of.
        start: its first base on the sequence.
        end: the base behind its last one.
        strand: "-" if it reads from `end` to `start`.
        split: the file it goes to.
    """

    contig: str
    start: int
    end: int
    strand: Strand
    split: Split

    @property
    def sequence(self) -> str:
        """What `start` and `end` count on, for messages."""
        return f"contig {self.contig!r}"

    @property
    def length(self) -> int:
        """Bases."""
        return self.end - self.start


AnyDocument = TypeVar("AnyDocument", bound=Document)


@dataclass(frozen=True)
class Plan:
    """Which documents a corpus has.

    Attributes:
        contigs: in the order of the files.
        holdout: merged and sorted.
        documents: in the order of the files; a reverse strand follows its forward strand.
        dropped: stretches that are too short to be documents, forward strand only.
        excluded: contigs of the files that are in no split.
    """

    contigs: tuple[ContigSummary, ...]
    holdout: tuple[Region, ...]
    documents: tuple[Document, ...]
    dropped: tuple[Document, ...]
    excluded: tuple[ContigSummary, ...] = ()

    def contig(self, name: str) -> ContigSummary:
        """A contig by its name."""
        return next(contig for contig in self.contigs if contig.name == name)

    def regions(self, name: str) -> list[Part]:
        """All of a contig, runs of N too, as held-out regions cut it; each with its split."""
        cuts = [(region.start, region.end) for region in self.holdout if region.contig == name]
        return _split_by(cuts, (0, self.contig(name).length))


def scan(
    paths: Sequence[Path],
    advance: Callable[[int], object],
    keep: Callable[[ContigPiece], object] = lambda piece: None,
    ahead: bool = False,
    exclude: Sequence[str] = (),
) -> list[ContigSummary]:
    """Reads and checks all sequence of FASTA files in a few MB of memory.

    Args:
        paths: FASTA files; names of contigs are unique over all of them.
        advance: told the number of bases after each piece.
        keep: given each piece, such as `SequenceStore.append`.
        ahead: see `read_pieces`.
        exclude: names and patterns of contigs that are checked, but not kept.

    Raises:
        ValueError, OSError: see `read_pieces`.
    """
    summaries = []
    by_contig = itertools.groupby(read_pieces(paths, ahead), lambda item: (item[0], item[1].name))
    for (path, name), pieces in by_contig:
        finder, num_ambiguous = StretchFinder(), 0
        is_kept = not is_excluded(name, exclude)
        for _, piece in pieces:
            if is_kept:
                keep(piece)
            finder.add(piece.bases)
            num_ambiguous += piece.num_ambiguous
            advance(len(piece.bases))
        stretches = tuple(finder.stretches())
        summaries.append(ContigSummary(name, path, finder.length, num_ambiguous, stretches))
    return summaries


def plan_documents(
    contigs: Sequence[ContigSummary],
    holdout: Sequence[str] = (),
    min_length: int = 0,
    both_strands: bool = False,
    exclude: Sequence[str] = (),
) -> Plan:
    """Cuts contigs into training and held-out documents.

    Args:
        contigs: from `scan`.
        holdout: regions in samtools' syntax, for example `20:3000001-4000000` or `20`, and BED
            files. What lies in them makes the documents of `valid`, and is in no document of
            `train`.
        min_length: shorter stretches, after the cuts, are dropped (bases).
        both_strands: each document is followed by its reverse complement, a document too.
        exclude: contigs that are in neither split, by name or shell pattern.

    Raises:
        ValueError: a region is not there, or is of a contig that is excluded; a pattern has no
            contig; a split would have no document.
    """
    _check_patterns(exclude, contigs)
    excluded = tuple(contig for contig in contigs if is_excluded(contig.name, exclude))
    cuts = _resolve(holdout, contigs, exclude)
    contigs = [contig for contig in contigs if not is_excluded(contig.name, exclude)]

    documents: list[Document] = []
    dropped: list[Document] = []
    for contig in contigs:
        for (start, end), split in (
            part
            for stretch in contig.stretches
            for part in _split_by(cuts.get(contig.name, ()), stretch)
        ):
            forward = Document(contig.name, start, end, "+", split)
            if forward.length < min_length:
                dropped.append(forward)
                continue
            documents.append(forward)
            if both_strands:
                documents.append(Document(contig.name, start, end, "-", split))
    regions = [Region(c.name, *cut) for c in contigs for cut in cuts.get(c.name, ())]
    plan = Plan(tuple(contigs), tuple(regions), tuple(documents), tuple(dropped), excluded)
    _check_splits(plan, min_length)
    return plan


def _check_patterns(exclude: Sequence[str], contigs: Sequence[ContigSummary]) -> None:
    for pattern in exclude:
        if not any(is_excluded(contig.name, [pattern]) for contig in contigs):
            known = ", ".join(contig.name for contig in contigs[:5])
            known += ", ..." if len(contigs) > 5 else ""
            raise ValueError(
                f"exclude ({pattern}) must match a contig of the FASTA files; they have {known}: "
                "mend it, or leave it out"
            )


def _resolve(
    holdout: Sequence[str], contigs: Sequence[ContigSummary], exclude: Sequence[str]
) -> dict[str, list[Interval]]:
    """What is held out of each contig, merged and sorted."""
    lengths = {contig.name: contig.length for contig in contigs}
    held_out: dict[str, list[Interval]] = {}
    for text in holdout:
        regions = read_bed(Path(text), lengths) if is_bed(text) else [parse_region(text, lengths)]
        for region in regions:
            if is_excluded(region.contig, exclude):
                raise ValueError(
                    f"holdout ({text}) must not name contig {region.contig!r}, which exclude "
                    f"({', '.join(exclude)}) leaves out of both files; take it out of one"
                )
            held_out.setdefault(region.contig, []).append((region.start, region.end))
    return {name: merge_intervals(intervals) for name, intervals in held_out.items()}


def keep_new(
    documents: Iterable[AnyDocument],
    new_parts: Iterator[list[Interval]] | None,
    min_length: int,
    both_strands: bool,
) -> Iterator[AnyDocument]:
    """What training has not had yet of documents, and all of those that are held out.

    Args:
        documents: on the forward strand.
        new_parts: of each document for training, from `DuplicateWindows.new_parts`; None where
            all is kept.
        min_length: shorter parts are dropped too (bases).
        both_strands: each part is followed by its reverse complement.
    """
    for document in documents:
        parts = [(0, document.length)]
        if new_parts is not None and document.split == "train":
            parts = next(new_parts)
        for start, end in parts:
            if end - start >= min_length:
                part = replace(document, start=document.start + start, end=document.start + end)
                yield part
                if both_strands:
                    yield replace(part, strand="-")


def _split_by(cuts: Iterable[Interval], interval: Interval) -> list[Part]:
    return [
        (part, "valid" if inside else "train") for part, inside in split_interval(interval, cuts)
    ]


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
            why = "the contigs have runs of N only, or all is held out or excluded"
        raise ValueError(f"there is no document for {split}: {why}")
