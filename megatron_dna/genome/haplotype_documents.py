"""Haplotypes as documents: whole stretches, or windows around variants; held-out regions cut them.

The parts of a contig are those of the reference (`corpus.contig_parts`), in its coordinates; here
they are found on each haplotype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_dna.genome.coordinates import CoordinateMap, Positions
from megatron_dna.genome.corpus import Document, Part
from megatron_dna.genome.regions import Interval
from megatron_dna.genome.variants import Haplotype


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
    """A part of a haplotype; `start` and `end` count on the reference.

    Attributes:
        haplotype: what it is a part of.
        hap_start: its first base on the haplotype, 0-based.
        hap_end: the base behind its last one.
    """

    haplotype: Haplotype
    hap_start: int
    hap_end: int

    @property
    def length(self) -> int:
        """Bases."""
        return self.hap_end - self.hap_start

    @property
    def forward(self) -> HaplotypePart:
        """Its forward strand."""
        return HaplotypePart(self.haplotype, self.hap_start, self.length)


def plan_haplotype(
    haplotype: Haplotype, parts: Sequence[Part], context: int | None
) -> Iterator[HaplotypeDocument]:
    """The documents of a haplotype in order, forward strand only.

    An edit that reaches into a held-out region, or an insertion at its border, belongs to the
    held-out document alone; edits of equal length are parted base by base.

    Args:
        haplotype: to be cut.
        parts: of its contig, from `corpus.contig_parts`.
        context: bases on both sides of each variant; windows that meet are one. None: whole parts.
    """
    coordinates = haplotype.coordinates()
    windows = None if context is None else _windows(haplotype, context)
    for part, split in parts:
        starts, ends = _inside(part, windows)
        hap_starts, hap_ends = coordinates.lower(starts), coordinates.upper(ends)
        if split == "train":
            hap_starts, hap_ends = _without_borders(coordinates, haplotype, starts, ends)
        for start, end, hap_start, hap_end in np.stack(
            [starts, ends, hap_starts, hap_ends], 1
        ).tolist():
            if hap_start < hap_end:
                yield HaplotypeDocument(
                    haplotype.contig, start, end, "+", split, haplotype, hap_start, hap_end
                )


def _windows(haplotype: Haplotype, context: int) -> tuple[Positions, Positions]:
    """Starts and ends of the windows around a haplotype's edits, on the reference."""
    edit_starts, ref_lengths, _ = haplotype.edits()
    starts, ends = edit_starts - context, edit_starts + ref_lengths + context
    opens = np.concatenate(([True], starts[1:] > ends[:-1]))[: len(starts)]
    closes = np.concatenate((opens[1:], [True]))[: len(starts)]
    return starts[opens], ends[closes]


def _inside(
    part: Interval, windows: tuple[Positions, Positions] | None
) -> tuple[Positions, Positions]:
    """What a part has of the windows, or all of it."""
    start, end = part
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
