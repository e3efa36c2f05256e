"""A long sequence encoded in pieces, by several threads, with the ids of the whole.

Cutting a text changes its tokens near the cut. So pieces overlap, and two of them are joined at a
position where both have a border of tokens and a join is exact (`DnaTokenizer.may_join`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dna.tokenizer.bpe import DnaTokenizer

_ALL_KMERS = 840
"""Divisible by 1 to 8: where there is no N, pieces begin where the k-mers of the whole do."""
PIECE_LENGTH = 1_248 * _ALL_KMERS
"""Bases that each piece adds: long enough to hide its overhead, short enough for many threads."""
OVERLAP = 2 * _ALL_KMERS
"""Bases that a piece shares with the one before: many tokens, and most microsatellites whole."""

Ids = npt.NDArray[np.int32]


class Piece(NamedTuple):
    """A part of a sequence to be encoded on its own, 0-based half-open."""

    start: int
    end: int


def cut_pieces(
    length: int, piece_length: int = PIECE_LENGTH, overlap: int = OVERLAP
) -> Iterator[Piece]:
    """The pieces of a sequence in order; each but the first begins `overlap` before its bases."""
    for start in range(0, length, piece_length):
        yield Piece(max(start - overlap, 0), min(start + piece_length, length))


class Stitcher:
    """Joins the ids of the pieces of one sequence, given in order.

    Where two pieces have no border in common (a long tandem repeat, or k-mers after an N: each
    keeps the phase it began with), the second is encoded again from a border of the first one.
    """

    def __init__(self, tokenizer: DnaTokenizer, encode: Callable[[int, int], Ids]) -> None:
        """Starts a sequence.

        Args:
            tokenizer: has encoded the pieces.
            encode: gives the ids of any part of the sequence, without "-".
        """
        self._tokenizer = tokenizer
        self._spans = tokenizer.token_spans
        self._encode = encode
        self._last_done: int | None = None  # the last id that was given out
        self._ids: Ids = np.empty(0, np.int32)  # not given out yet
        self._start = self._end = 0  # of their bases

    def add(self, ids: Ids, piece: Piece) -> Ids:
        """Joins the next piece; returns the ids that no later piece can change.

        Raises:
            RuntimeError: no join was found, even from the start of the piece before.
        """
        if not self._end:
            self._ids, self._end = ids, piece.end
            return ids[:0]
        back = max(self._end - piece.start, 64)
        while (join := self._find_join(ids, piece.start)) is None:
            if piece.start == self._start:
                raise RuntimeError(f"encoding in pieces failed at {piece}; this is a bug")
            # The tokens' last letters are not to be trusted: go back by some, then by more.
            piece = Piece(self._border_before(self._end - back), piece.end)
            ids = self._encode(*piece)
            back *= 4
        position, left, right = join
        done, self._ids = self._ids[:left], ids[right:]
        if left:
            self._last_done = int(done[-1])
        self._start, self._end = position, piece.end
        return done

    def finish(self) -> Ids:
        """The ids that are left after the last piece."""
        return self._ids

    def _border_before(self, position: int) -> int:
        """The last border of tokens at or before `position`, or the start."""
        borders = self._borders(self._start, self._ids)
        return int(borders[max(np.searchsorted(borders, position, side="right") - 1, 0)])

    def _borders(self, start: int, ids: Ids) -> npt.NDArray[np.int64]:
        """int64 [tokens + 1], where tokens begin and the last one ends."""
        return start + np.concatenate(([0], np.cumsum(self._spans[ids])))

    def _find_join(self, ids: Ids, start: int) -> tuple[int, int, int] | None:
        """Where `ids`, whose text begins at `start`, can follow the ids that are kept.

        Returns:
            The position, how many of the kept ids come before it and how many of `ids`.
        """
        tail = min(self._end - start, len(self._ids))  # tokens: each has at least one base
        last, first = self._ids[len(self._ids) - tail :], ids[: self._end - start]
        tail_start = self._end - int(self._spans[last].sum())
        common, left, right = np.intersect1d(
            self._borders(tail_start, last),
            self._borders(start, first),
            assume_unique=True,
            return_indices=True,
        )
        left += len(self._ids) - tail
        middle = (start + self._end) / 2  # farthest from what the cuts have changed
        for i in np.argsort(np.abs(common - middle), kind="stable").tolist():
            before = int(self._ids[left[i] - 1]) if left[i] else self._last_done
            if before is None or self._tokenizer.may_join(before, int(ids[right[i]])):
                return int(common[i]), int(left[i]), int(right[i])
        return None
