"""Coordinates of a haplotype against those of its reference, through insertions and deletions.

All coordinates are 0-based half-open. A coordinate is a place between two bases: `p` lies before
the base of number p.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


class ReferenceIntervals(NamedTuple):
    """Where parts of a haplotype come from.

    The reference's bases [starts, ends), with every edit applied that lies inside of them or at
    their ends, spell a string that has the part at `offsets`. So a part with no insertion at its
    start has the offset 0, and a part of an insertion alone an empty interval: `starts == ends`.

    Attributes:
        starts: int64 [parts].
        ends: int64 [parts].
        offsets: int64 [parts], bases.
    """

    starts: Positions
    ends: Positions
    offsets: Positions


class CoordinateMap:
    """The edits of a haplotype that change its length, in the order of the reference.

    Edits of equal length (SNPs, MNPs) move nothing and map base by base: they need not be in it.

    Attributes:
        starts: int64 [edits], the first base that is replaced; an insertion comes before it.
        ref_lengths: int64 [edits], bases that are replaced.
        alt_lengths: int64 [edits], bases that take their place.
    """

    def __init__(self, starts: Positions, ref_lengths: Positions, alt_lengths: Positions) -> None:
        """Takes the edits; see the attributes. None may overlap the one before."""
        self.starts = starts
        self.ref_lengths = ref_lengths
        self.alt_lengths = alt_lengths

    @cached_property
    def _shifts(self) -> Positions:
        """int64 [edits + 1], what the edits before each one (last: all) add to the length."""
        return np.concatenate(([0], np.cumsum(self.alt_lengths - self.ref_lengths))).astype(
            np.int64
        )

    @cached_property
    def _ref_ends(self) -> Positions:
        return self.starts + self.ref_lengths

    @cached_property
    def _hap_starts(self) -> Positions:
        return self.starts + self._shifts[:-1]

    @cached_property
    def _hap_ends(self) -> Positions:
        return self._hap_starts + self.alt_lengths

    @property
    def growth(self) -> int:
        """What all edits add to the length, in bases."""
        return int(self._shifts[-1])

    def to_reference(self, starts: Positions, ends: Positions) -> ReferenceIntervals:
        """Where parts of the haplotype come from.

        Args:
            starts: int64 [parts], on the haplotype.
            ends: int64 [parts], each larger than its start.
        """
        first, inside = self._find(starts)
        ref_starts = np.where(inside, _at(self.starts, first), starts - self._shifts[first])
        last, inside = self._find(ends - 1)
        ref_ends = np.where(inside, _at(self._ref_ends, last), ends - self._shifts[last])
        return ReferenceIntervals(ref_starts, ref_ends, starts - self.lower(ref_starts))

    def lower(self, positions: Positions) -> Positions:
        """The haplotype's coordinates before all that touches coordinates of the reference.

        An insertion touches its place, any other edit the places inside of it.
        """
        index = np.searchsorted(self.starts, positions, side="left")  # edits that start before
        inside = (index > 0) & (_at(self._ref_ends, index - 1) > positions)
        plain = positions + self._shifts[index]
        return np.where(inside, _at(self._hap_starts, index - 1), plain)

    def upper(self, positions: Positions) -> Positions:
        """The haplotype's coordinates after all that touches coordinates of the reference."""
        index = np.searchsorted(self._ref_ends, positions, side="right")  # edits that end before
        inside = (index < len(self.starts)) & (_at(self.starts, index) < positions)
        plain = positions + self._shifts[index]
        return np.where(inside, _at(self._hap_ends, index), plain)

    def _find(self, bases: Positions) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """For bases of the haplotype, how many edits end before each, and if the next has it."""
        index = np.searchsorted(self._hap_ends, bases, side="right")
        return index, (index < len(self.starts)) & (_at(self._hap_starts, index) <= bases)


def _at(values: Positions, index: npt.NDArray[np.intp]) -> Positions:
    """Values by number; where there is none, at -1 and len(values), any number."""
    if not len(values):
        return np.zeros_like(index, np.int64)
    return values.take(index, mode="clip")
