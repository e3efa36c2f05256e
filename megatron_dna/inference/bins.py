"""Token states pooled into bins of equal width along a contig, in order, in constant memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass
class Open:
    """The bin that the next token may still add to."""

    number: int
    """Of the bin; -1 before the first token."""
    total: Floats
    """[hidden] sum (or maximum) so far."""
    weight: float
    """Bases in it so far."""


class Bins:
    """One contig's bins. A bin is given out when a token lies behind it."""

    def __init__(self, resolution: int, hidden_size: int, pool: str) -> None:
        """`pool`: `mean` (over bases: a token counts as often as it has bases there) or `max`."""
        self.resolution, self.pool = resolution, pool
        self.open = Open(-1, np.zeros(hidden_size, np.float32), 0.0)

    def add(self, starts: Ints, ends: Ints, states: Floats) -> tuple[Ints, Floats]:
        """Add tokens, and take out what is now complete.

        Args:
            starts: [tokens] first base of each, ascending, behind those of the call before.
            ends: [tokens] base after the last.
            states: [tokens, hidden].

        Returns:
            Numbers of bins, ascending, and their vectors [bins, hidden]; bins without a token are
            left out.
        """
        width = self.resolution
        first, last = starts // width, (ends - 1) // width
        copies = last - first + 1
        token = np.repeat(np.arange(len(starts)), copies)
        bins = first[token] + np.arange(len(token)) - np.repeat(np.cumsum(copies) - copies, copies)
        bases = np.minimum(ends[token], (bins + 1) * width) - np.maximum(
            starts[token], bins * width
        )
        rows = np.flatnonzero(np.diff(bins, prepend=-1))  # where another bin begins
        if self.pool == "mean":
            totals = np.add.reduceat(states[token] * bases[:, None].astype(np.float32), rows)
        else:
            totals = np.maximum.reduceat(states[token], rows)
        numbers, weights = bins[rows], np.add.reduceat(bases, rows).astype(np.float64)
        return self._close(numbers, totals, weights)

    def _close(
        self, numbers: Ints, totals: Floats, weights: npt.NDArray[np.float64]
    ) -> tuple[Ints, Floats]:
        """Join with the open bin, keep the last one open, finish the others."""
        if self.open.number == numbers[0]:
            join = np.add if self.pool == "mean" else np.maximum
            totals[0] = join(totals[0], self.open.total)
            weights[0] += self.open.weight
        elif self.open.number >= 0:
            numbers = np.concatenate(([self.open.number], numbers))
            totals = np.concatenate((self.open.total[None], totals))
            weights = np.concatenate(([self.open.weight], weights))
        self.open = Open(int(numbers[-1]), totals[-1].copy(), float(weights[-1]))
        return numbers[:-1], self._finish(totals[:-1], weights[:-1])

    def flush(self) -> tuple[Ints, Floats]:
        """The open bin, at the end of a contig."""
        if self.open.number < 0:
            return np.empty(0, np.int64), self.open.total[None][:0]
        numbers = np.array([self.open.number], np.int64)
        return numbers, self._finish(self.open.total[None], np.array([self.open.weight]))

    def _finish(self, totals: Floats, weights: npt.NDArray[np.float64]) -> Floats:
        if self.pool == "max":
            return totals
        return (totals / weights[:, None]).astype(np.float32)
