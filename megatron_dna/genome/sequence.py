"""Cleaned sequence and what is done to it: a typed facade over `csrc/sequence.cpp`.

A cleaned sequence has the letters A, C, G, T and N only, in upper case. Every function is linear in
the length and releases the GIL.
"""

from __future__ import annotations

from megatron_dna import _core

MIN_GAP_LENGTH = 10
"""A run of at least this many N is a gap of unknown content: it parts documents."""

Bases = bytes | bytearray | memoryview


def clean_sequence(raw: Bases, num_before: int = 0) -> tuple[bytes, int]:
    """FASTA text as cleaned sequence.

    Lower case becomes upper case, the ambiguity codes of IUPAC (R Y S W K M B D H V) become N,
    spaces and line ends of any kind are left out.

    Args:
        raw: lines of sequence, without a header.
        num_before: bases of the same contig that came before; counts in the error's position.

    Returns:
        The sequence, and how many of its N were an ambiguity code.

    Raises:
        ValueError: any other byte; names it and its position (1-based, in bases).
    """
    return _core.clean_sequence(raw, num_before)


def find_stretches(sequence: Bases, min_run: int = MIN_GAP_LENGTH) -> list[tuple[int, int]]:
    """What lies between the runs of at least `min_run` N of a cleaned sequence.

    Returns:
        (start, end) of each stretch, 0-based half-open, in order, none empty. Shorter runs of N
        stay inside.
    """
    return _core.find_stretches(sequence, min_run)


class StretchFinder:
    """As `find_stretches`, of a sequence that comes in pieces and is not kept."""

    def __init__(self, min_run: int = MIN_GAP_LENGTH) -> None:
        """Starts a sequence; see `find_stretches`."""
        self.length = 0
        self._min_run = min_run
        self._found: list[tuple[int, int]] = []  # without the runs of N at the sequence's ends

    def add(self, sequence: Bases) -> None:
        """The next bases."""
        for start, end in find_stretches(sequence, min_run=1):
            start, end = start + self.length, end + self.length
            if self._found and start - self._found[-1][1] < self._min_run:
                start = self._found.pop()[0]
            self._found.append((start, end))
        self.length += len(sequence)

    def stretches(self) -> list[tuple[int, int]]:
        """What was found so far, as if the sequence ended here."""
        found = self._found or [(0, 0)]
        if found[0][0] < self._min_run:
            found = [(0, found[0][1]), *found[1:]]
        if self.length - found[-1][1] < self._min_run:
            found = [*found[:-1], (found[-1][0], self.length)]
        return [(start, end) for start, end in found if start < end]


def reverse_complement(sequence: Bases) -> bytes:
    """The other strand of a cleaned sequence, read from its own start.

    Raises:
        ValueError: a letter is not A, C, G, T or N; names it and its position (1-based).
    """
    return _core.reverse_complement(sequence)
