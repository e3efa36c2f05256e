"""What a designed sequence must have: its length, fixed motifs, and a range of GC content."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Letters = npt.NDArray[np.uint8]
"""ASCII codes of bases; 0 where any base may stand."""

_IS_GC = np.zeros(256, np.bool_)
_IS_GC[list(b"GC")] = True
_MOTIF = re.compile(r"([^@]*)@([0-9]+)")


@dataclass(frozen=True)
class Constraints:
    """Made by `make_constraints`, which checks that some sequence meets them."""

    fixed: Letters
    """[length], the motifs' letters at their places."""
    min_gc: int
    """Fewest G and C of the whole sequence."""
    max_gc: int
    """Most of them."""

    def are_met_by(self, sequence: str) -> bool:
        """Whether the sequence has the length, the motifs and a GC content in the range."""
        letters = np.frombuffer(sequence.encode(), np.uint8)
        return (
            len(letters) == len(self.fixed)
            and bool(((self.fixed == 0) | (self.fixed == letters)).all())
            and self.min_gc <= count_gc(letters) <= self.max_gc
        )

    def draw(self, draw: np.random.Generator) -> str:
        """A random sequence that meets them: even odds for all letters as far as GC allows."""
        letters = self.fixed.copy()
        free = np.flatnonzero(letters == 0)
        fixed_gc = count_gc(letters)
        num_gc = int(draw.binomial(len(free), 0.5))
        num_gc = min(max(num_gc, self.min_gc - fixed_gc), self.max_gc - fixed_gc)
        draw.shuffle(free)
        letters[free[:num_gc]] = draw.choice(np.frombuffer(b"GC", np.uint8), num_gc)
        letters[free[num_gc:]] = draw.choice(np.frombuffer(b"AT", np.uint8), len(free) - num_gc)
        return bytes(letters).decode()


def count_gc(letters: Letters) -> int:
    """Number of G and C."""
    return int(_IS_GC[letters].sum())


def make_constraints(
    length: int, motifs: Sequence[str], gc_range: tuple[float, float]
) -> Constraints:
    """Constraints from what a user writes.

    Args:
        length: bases of the sequence.
        motifs: `TATAAA@31`: those letters from base 31 (1-based) on.
        gc_range: least and greatest share of G and C.

    Raises:
        ValueError: no sequence meets them, or letters could never change; says which and why.
    """
    if length < 1:
        raise ValueError(f"--length ({length}) must be at least 1")
    fixed = np.zeros(length, np.uint8)
    for text in motifs:
        _fix(fixed, text)
    low, high = gc_range
    if not 0 <= low <= high <= 1:
        raise ValueError(f"--gc ({low} {high}) must be two shares, 0 <= LOW <= HIGH <= 1")
    # 1e-9: 0.3 of 10 bases is 3, though 0.3 * 10 may not be.
    min_gc, max_gc = math.ceil(low * length - 1e-9), math.floor(high * length + 1e-9)
    fixed_gc, free = count_gc(fixed), int((fixed == 0).sum())
    if not free:
        raise ValueError(f"--motif: the motifs leave no base of --length ({length}) to design")
    min_gc, max_gc = max(min_gc, fixed_gc), min(max_gc, fixed_gc + free)
    if min_gc > max_gc:
        raise ValueError(
            f"--gc ({low} {high}) cannot be reached: with these motifs a sequence of {length} "
            f"bases has {fixed_gc} to {fixed_gc + free} G and C, that is "
            f"{fixed_gc / length:.3f} to {(fixed_gc + free) / length:.3f}"
        )
    if min_gc == max_gc and fixed_gc < min_gc < fixed_gc + free:
        raise ValueError(
            f"--gc ({low} {high}) allows one number of G and C only ({min_gc} of {length}), so "
            "that no single base could change between A or T and G or C; widen it"
        )
    return Constraints(fixed, min_gc, max_gc)


def _fix(fixed: Letters, text: str) -> None:
    """Put a motif in its place."""
    match = _MOTIF.fullmatch(text)
    if match is None:
        raise ValueError(f"--motif ({text}) must be LETTERS@BASE, as in TATAAA@31")
    letters, start = match[1].upper(), int(match[2]) - 1
    strange = next((letter for letter in letters if letter not in "ACGT"), None)
    if strange is not None or not letters:
        raise ValueError(
            f"--motif ({text}) must have the letters A, C, G and T"
            + (f", not {strange!r}: is this DNA, not protein or RNA?" if strange else "")
        )
    if start < 0 or start + len(letters) > len(fixed):
        raise ValueError(
            f"--motif ({text}) must lie within bases 1 to {len(fixed)} (--length {len(fixed)})"
        )
    place = fixed[start : start + len(letters)]
    wanted = np.frombuffer(letters.encode(), np.uint8)
    clash = np.flatnonzero((place != 0) & (place != wanted))
    if len(clash):
        raise ValueError(
            f"--motif ({text}) wants {letters[clash[0]]} at base {start + clash[0] + 1}, where "
            f"another motif has {chr(place[clash[0]])}"
        )
    place[:] = wanted
