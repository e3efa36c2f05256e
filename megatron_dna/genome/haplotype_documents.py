"""Haplotypes as documents: whole stretches, or windows around variants; held-out regions cut them.

As on the reference, a document ends where 10 or more N begin: where the reference has them, and
where an edit brings shorter runs together. Held-out regions are those of the reference, found on
each haplotype.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_dna.genome.coordinates import CoordinateMap, Positions
from megatron_dna.genome.corpus import Document, Part
from megatron_dna.genome.regions import Interval, merge_intervals
from megatron_dna.genome.sequence import MIN_GAP_LENGTH
from megatron_dna.genome.variants import Haplotype

BLOCK_LENGTH = 1 << 16
"""Bases that are read at once to find the ends of a run of N."""


@dataclass(frozen=True)
class HaplotypePart:
    """A part of a haplotype as a `SequenceLike`; `offset` is its first base on the haplotype."""

    haplotype: Haplotype
    offset: int
    length: int

    def read(self, start: int, end: int) -> bytes:
        """See `SequenceLike.read`."""
        return self.haplotype.read(self.offset + start, self.offset + end)


@dataclass(frozen=True)
class HaplotypeDocument(Document):
    """A part of a haplotype, on which `start` and `end` count."""

    haplotype: Haplotype

    @property
    def sequence(self) -> str:
        """See `Document.sequence`."""
        return (
            f"contig {self.contig!r}, haplotype {self.haplotype.number} of sample "
            f"{self.haplotype.sample!r}"
        )

    @property
    def forward(self) -> HaplotypePart:
        """Its forward strand."""
        return HaplotypePart(self.haplotype, self.start, self.length)


def plan_haplotype(
    haplotype: Haplotype, regions: Sequence[Part], gaps: Sequence[Interval], context: int | None
) -> Iterator[HaplotypeDocument]:
    """The documents of a haplotype in order, forward strand only.

    An edit that reaches into a held-out region, or an insertion at its border, belongs to the
    held-out document alone; edits of equal length are parted base by base.

    Args:
        haplotype: to be cut.
        regions: of its contig, from `Plan.regions`.
        gaps: of its contig, from `ContigSummary.gaps`.
        context: bases on both sides of each variant; windows that meet are one. None: whole
            stretches.
    """
    coordinates = haplotype.coordinates()
    windows = None if context is None else _windows(haplotype, context)
    own_gaps = find_gaps(haplotype, coordinates, gaps)
    for region, split in regions:
        starts, ends = _inside(region, windows)
        if split == "train":
            starts, ends = _without_borders(coordinates, haplotype, starts, ends)
        else:
            starts, ends = coordinates.lower(starts), coordinates.upper(ends)
        for start, end in _cut_out(own_gaps, starts, ends):
            yield HaplotypeDocument(haplotype.contig, start, end, "+", split, haplotype)


def find_gaps(
    haplotype: Haplotype, coordinates: CoordinateMap, gaps: Sequence[Interval]
) -> list[Interval]:
    """The runs of 10 or more N of a haplotype, in its own coordinates.

    Those of the reference that no edit touches are only moved. What edits make, join, part or end
    is looked up around the edits that have an N in them or next to them.

    Args:
        haplotype: to be looked at.
        coordinates: of it.
        gaps: of the reference.
    """
    edit_starts, ref_lengths, alt_lengths = haplotype.edits()
    shifts = np.cumsum(alt_lengths - ref_lengths) - (alt_lengths - ref_lengths)
    beside_n = haplotype.edits_beside_n()
    starts, ends = np.array(gaps, np.int64).reshape(-1, 2).T
    is_moved = np.ones(len(gaps), bool)
    found: list[Interval] = []
    for start, ref_length, alt_length, shift in np.stack(
        [edit_starts, ref_lengths, alt_lengths, shifts], 1
    )[beside_n].tolist():
        touched = slice(
            int(np.searchsorted(ends, start)),
            int(np.searchsorted(starts, start + ref_length, side="right")),
        )
        is_moved[touched] = False
        found += _runs_of_n(haplotype, start + shift, start + shift + alt_length)
    moved = coordinates.upper(starts[is_moved]), coordinates.lower(ends[is_moved])
    return merge_intervals([*found, *zip(moved[0].tolist(), moved[1].tolist(), strict=True)])


def _runs_of_n(haplotype: Haplotype, start: int, end: int) -> list[Interval]:
    """The runs of 10 or more N that touch or lie inside bases of a haplotype, in full."""
    is_n = True
    while is_n and start > 0:
        block = haplotype.read(max(start - BLOCK_LENGTH, 0), start)
        start -= len(block) - len(block.rstrip(b"N"))
        is_n = block.count(b"N") == len(block)
    is_n = True
    while is_n and end < haplotype.length:
        block = haplotype.read(end, min(end + BLOCK_LENGTH, haplotype.length))
        end += len(block) - len(block.lstrip(b"N"))
        is_n = block.count(b"N") == len(block)
    runs = re.finditer(rb"N{%d,}" % MIN_GAP_LENGTH, haplotype.read(start, end))
    return [(start + run.start(), start + run.end()) for run in runs]


def _cut_out(gaps: Sequence[Interval], starts: Positions, ends: Positions) -> Iterator[Interval]:
    """What intervals have outside of gaps; none are empty. All are sorted and do not overlap."""
    gap_starts, gap_ends = np.array(gaps, np.int64).reshape(-1, 2).T
    first = np.searchsorted(gap_ends, starts, side="right").tolist()
    last = np.searchsorted(gap_starts, ends).tolist()
    for start, end, low, high in zip(starts.tolist(), ends.tolist(), first, last, strict=True):
        bounds = [start, *(bound for gap in gaps[low:high] for bound in gap), end]
        for piece in zip(bounds[::2], bounds[1::2], strict=True):
            if piece[0] < piece[1]:
                yield piece


def _windows(haplotype: Haplotype, context: int) -> tuple[Positions, Positions]:
    """Starts and ends of the windows around a haplotype's edits, on the reference."""
    edit_starts, ref_lengths, _ = haplotype.edits()
    starts, ends = edit_starts - context, edit_starts + ref_lengths + context
    opens = np.concatenate(([True], starts[1:] > ends[:-1]))[: len(starts)]
    closes = np.concatenate((opens[1:], [True]))[: len(starts)]
    return starts[opens], ends[closes]


def _inside(
    region: Interval, windows: tuple[Positions, Positions] | None
) -> tuple[Positions, Positions]:
    """What a region has of the windows, or all of it."""
    start, end = region
    if windows is None:
        return np.array([start]), np.array([end])
    starts, ends = windows
    meets = slice(
        int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(starts, end))
    )
    return np.maximum(starts[meets], start), np.minimum(ends[meets], end)


def _without_borders(
    coordinates: CoordinateMap, haplotype: Haplotype, starts: Positions, ends: Positions
) -> tuple[Positions, Positions]:
    """On the haplotype, without the edits that touch a border; a contig's ends are no borders."""
    at_start, at_end = starts == 0, ends == haplotype.reference.length
    return (
        np.where(at_start, coordinates.lower(starts), coordinates.upper(starts)),
        np.where(at_end, coordinates.upper(ends), coordinates.lower(ends)),
    )
