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


def reverse_complement(sequence: Bases) -> bytes:
    """The other strand of a cleaned sequence, read from its own start.

    Raises:
        ValueError: a letter is not A, C, G, T or N; names it and its position (1-based).
    """
    return _core.reverse_complement(sequence)
