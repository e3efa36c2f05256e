"""Windows of sequence that are there already: found by hash, over any number of sequences.

The sequence itself says where it is cut: in the middle of each run of 32 bases whose hash is the
smallest for `window_length` bases around it. So equal sequence is cut alike wherever it lies, after
any insertion and on either strand. Windows are compared by 128 bits of BLAKE2b of the lesser
of their two strands, and sorted in buckets on the disk.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_dna.genome.regions import Interval
from megatron_dna.genome.sequence import reverse_complement
from megatron_dna.genome.store import SequenceLike

KMER = 32
MAX_LENGTHS = 64
"""A window is cut at so many times its mean length where the sequence (a tandem repeat) has no cut
of its own."""
CHUNK_LENGTH = 1 << 20
NUM_BUCKETS = 64
"""Files that windows are sorted in, one at a time in memory."""

_CODES = np.zeros(256, np.uint64)
_CODES[[ord(base) for base in "ACGT"]] = range(4)
_NEVER = np.uint64(2**64 - 1)
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<i8")])
_WINDOW = np.dtype([("end", "<i8"), ("kept", "?")])


class DuplicateWindows:
    """Finds the windows of sequences that are the same as a window before them.

    First every sequence is added, then `find` is called; then each one's parts that are new are
    given out, in the same order. Memory: 24 bytes a window, divided by `NUM_BUCKETS`, and 8 bytes a
    sequence.

    Attributes:
        window_length: in the mean (bases).
        num_windows: of all sequences.
        num_dropped: of these, those that were there already; known after `find`.
        num_bases_dropped: their bases.
    """

    def __init__(self, folder: Path, window_length: int) -> None:
        """Opens scratch files, which have no names.

        Args:
            folder: where their space is taken from: 33 bytes a window.
            window_length: of windows, in the mean (bases).

        Raises:
            ValueError: `window_length` is too short for cuts that depend on the sequence.
            OSError: no file can be made.
        """
        if window_length < 2 * KMER:
            raise ValueError(
                f"a window of duplicates ({window_length}) has at least {2 * KMER} bases"
            )
        self.num_windows = self.num_dropped = self.num_bases_dropped = 0
        self.window_length = window_length
        self._counts = array("q")  # windows of each sequence
        self._stack = ExitStack()
        self._windows, *self._buckets = (
            self._stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
            for _ in range(1 + NUM_BUCKETS)
        )

    def add(self, sequence: SequenceLike) -> None:
        """Adds a sequence's windows.

        Raises:
            OSError: the disk is full or fails.
        """
        before = self.num_windows
        for start, end in itertools.pairwise(
            itertools.chain([0], find_cuts(sequence, self.window_length))
        ):
            forward = sequence.read(start, end)
            text = min(forward, reverse_complement(forward))
            digest = hashlib.blake2b(text, digest_size=16).digest()
            number = self.num_windows.to_bytes(8, "little")
            self._buckets[digest[-1] % NUM_BUCKETS].write(digest + number)
            self._windows.write(np.array([(end, True)], _WINDOW).tobytes())
            self.num_windows += 1
        self._counts.append(self.num_windows - before)

    @property
    def num_sequences(self) -> int:
        """How many were added."""
        return len(self._counts)

    def find(self) -> None:
        """Settles which windows are new; call it once, when every sequence is added.

        Raises:
            OSError: the disk is full or fails.
        """
        self._windows.flush()
        windows = self._map()
        for bucket in self._buckets:
            bucket.seek(0)
            records = np.frombuffer(bucket.read(), _RECORD)
            records = records[np.lexsort((records["number"], records["low"], records["high"]))]
            same = np.zeros(len(records), bool)
            same[1:] = (records["high"][1:] == records["high"][:-1]) & (
                records["low"][1:] == records["low"][:-1]
            )
            windows["kept"][records["number"][same]] = False
        for own in self._by_sequence(0):
            dropped = ~own["kept"]
            self.num_dropped += int(dropped.sum())
            self.num_bases_dropped += int(np.diff(own["end"], prepend=0)[dropped].sum())

    def new_parts(self, first: int = 0) -> Iterator[list[Interval]]:
        """Of each sequence, the parts that none before it has; none are empty. See `find`.

        Args:
            first: the sequence to begin with, in the order of `add`.
        """
        for windows in self._by_sequence(first):
            parts: list[Interval] = []
            start = 0
            for end, kept in windows.tolist():
                if kept and parts and parts[-1][1] == start:
                    parts[-1] = (parts[-1][0], end)
                elif kept:
                    parts.append((start, end))
                start = end
            yield parts

    def _map(self) -> npt.NDArray[Any]:
        return np.memmap(self._windows, _WINDOW, "r+") if self.num_windows else np.empty(0, _WINDOW)

    def _by_sequence(self, first: int) -> Iterator[npt.NDArray[Any]]:
        windows, begin = self._map(), sum(self._counts[:first])
        for count in self._counts[first:]:
            yield windows[begin : begin + count]
            begin += count

    def __enter__(self) -> DuplicateWindows:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def find_cuts(sequence: SequenceLike, window_length: int) -> Iterator[int]:
    """Where the windows of a sequence end, in order; the last one is its end."""
    last = 0
    longest = MAX_LENGTHS * window_length
    for start in range(0, sequence.length, CHUNK_LENGTH):
        end = min(start + CHUNK_LENGTH, sequence.length)
        cuts = _cuts_within(sequence, start, end, window_length // 2)
        for cut in itertools.chain(cuts, [sequence.length] if end == sequence.length else []):
            while cut - last > longest:
                last += longest
                yield last
            if cut > last:
                yield cut
                last = cut


def _cuts_within(sequence: SequenceLike, start: int, end: int, reach: int) -> list[int]:
    """The positions in [start, end) whose hash is smaller than all others within `reach`."""
    half = KMER // 2
    first = max(start - reach - half, 0)
    bases = np.frombuffer(sequence.read(first, min(end + reach + half, sequence.length)), np.uint8)
    if len(bases) < KMER:
        return []
    hashes = _hash_kmers(bases)  # that of position p is at p - half - first
    low, high = start - half - first, end - half - first
    centre = np.arange(max(low, 0), min(high, len(hashes)))
    if not len(centre):
        return []
    padded = np.concatenate((np.full(reach, _NEVER), hashes, np.full(reach, _NEVER)))
    lowest = _sliding_minimum(padded, reach)
    left, right = lowest[centre], lowest[centre + reach + 1]
    own = hashes[centre]
    cuts: list[int] = (centre[(own < left) & (own < right)] + half + first).tolist()
    return cuts


def _sliding_minimum(values: npt.NDArray[np.uint64], width: int) -> npt.NDArray[Any]:
    """The least of values[i : i + width], for every i."""
    found, have = values, 1
    while have * 2 <= width:
        found = np.minimum(found[:-have], found[have:])
        have *= 2
    rest = width - have
    return np.minimum(found[: len(found) - rest], found[rest:])


def _hash_kmers(bases: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """A hash of each run of 32 bases, the same on both strands; with an N in it, the greatest."""
    forward = _CODES[bases]
    reverse = np.uint64(3) - forward
    width = 1
    while width < KMER:
        shift = np.uint64(2 * width)
        forward = forward[:-width] << shift | forward[width:]
        reverse = reverse[width:] << shift | reverse[:-width]
        width *= 2
    code: npt.NDArray[np.uint64] = np.minimum(forward, reverse)
    code ^= code >> np.uint64(31)
    code *= np.uint64(0x9E3779B97F4A7C15)
    code ^= code >> np.uint64(29)
    code *= np.uint64(0xBF58476D1CE4E5B9)
    code ^= code >> np.uint64(32)
    unknown = np.concatenate(([0], np.cumsum(bases == ord("N"))))
    return np.where(unknown[KMER:] > unknown[:-KMER], _NEVER, code)
