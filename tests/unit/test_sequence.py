"""The C++ functions on sequence, each against a slow oracle in Python."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_dna.genome.sequence import (
    MIN_GAP_LENGTH,
    clean_sequence,
    find_stretches,
    reverse_complement,
)

BASES = b"ACGTNacgtn"
CODES = b"RYSWKMBDHVryswkmbdhv"
BLANKS = b" \t\r\n\v\f"


def texts(alphabet: bytes, max_size: int = 300) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(alphabet), max_size=max_size).map(bytes)


def slow_clean(raw: bytes, num_before: int) -> tuple[bytes, int]:
    cleaned, num_ambiguous = bytearray(), 0
    for byte in raw:
        if byte in BLANKS:
            continue
        if byte not in BASES + CODES:
            raise ValueError(f"at position {num_before + len(cleaned) + 1} ")
        num_ambiguous += byte in CODES
        cleaned += b"N" if byte in CODES else bytes([byte]).upper()
    return bytes(cleaned), num_ambiguous


@settings(deadline=None)
@given(texts(BASES * 10 + CODES + BLANKS * 2))
@example(b"")
@example(b"\n\n")
@example(b"ACGT\r\nAC" + b"A" * 100 + b"r\n")
def test_cleaning_equals_the_oracle(raw: bytes) -> None:
    """A failure would change bases, or lose some, in every file that is read."""
    assert clean_sequence(raw) == slow_clean(raw, 0)


@settings(deadline=None)
@given(st.binary(max_size=40), texts(BASES + BLANKS), st.integers(0, 10**12))
def test_any_other_byte_is_an_error_with_its_position(
    noise: bytes, start: bytes, num_before: int
) -> None:
    """A failure would let protein or damaged text in as DNA, or point at the wrong place."""
    raw = start + noise
    try:
        expected = slow_clean(raw, num_before)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            clean_sequence(raw, num_before)
    else:
        assert clean_sequence(raw, num_before) == expected


@pytest.mark.parametrize(("byte", "shown"), [(b"E", "'E'"), (b"\x00", "0x00"), (b"\xff", "0xff")])
def test_the_error_shows_the_byte(byte: bytes, shown: str) -> None:
    with pytest.raises(ValueError, match=f"byte {shown} at position 3 "):
        clean_sequence(b"A\nC" + byte)


@settings(deadline=None)
@given(texts(b"ACGTNNNN"), st.integers(1, 12))
@example(b"N" * 10, 10)
@example(b"N" * 9, 10)
@example(b"A" + b"N" * 10 + b"N" * 9 + b"C", 10)
def test_stretches_equal_the_oracle(sequence: bytes, min_run: int) -> None:
    """A failure would move the borders of documents."""
    runs = [match.span() for match in re.finditer(b"N{%d,}" % min_run, sequence)]
    bounds = [0, *(bound for run in runs for bound in run), len(sequence)]
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    assert find_stretches(sequence, min_run) == [(a, b) for a, b in pairs if a < b]


def test_stretches_part_where_the_tokenizer_would_write_a_gap() -> None:
    assert MIN_GAP_LENGTH == 10  # as GENA-LM's normalizer has it
    assert find_stretches(b"A" * 5 + b"N" * 9 + b"C" + b"N" * 10) == [(0, 15)]
    with pytest.raises(ValueError, match="at least one N"):
        find_stretches(b"A", 0)


@settings(deadline=None)
@given(texts(b"ACGTN"))
def test_reverse_complement_equals_the_oracle(sequence: bytes) -> None:
    """A failure would train on a strand that does not exist."""
    expected = sequence.translate(bytes.maketrans(b"ACGTN", b"TGCAN"))[::-1]
    assert reverse_complement(sequence) == expected
    assert reverse_complement(expected) == sequence


def test_reverse_complement_refuses_what_is_not_clean() -> None:
    with pytest.raises(ValueError, match="'a' at position 2 "):
        reverse_complement(b"Ca")


def test_sequence_may_be_any_contiguous_bytes() -> None:
    view = memoryview(bytearray(b"xACGTx"))
    assert clean_sequence(view[1:5]) == (b"ACGT", 0)
    assert reverse_complement(view[1:3]) == b"GT"
    with pytest.raises(ValueError, match="contiguous"):
        reverse_complement(view[1:5:2])
