"""Opening .bin/.idx pairs: a failure means a damaged file crashes a run or feeds it garbage."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dna.data.indexed import IndexedTokens
from tests.unit.data_files import write_pair

DOCUMENTS = [list(range(6, 40)), [], [7], list(range(1000, 1300))]


@pytest.fixture(params=[np.uint16, np.int32])
def prefix(request, tmp_path) -> str:
    return write_pair(tmp_path / "genome", DOCUMENTS, request.param)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[str, bytes, bytes]:
    """A pair that tests overwrite, and what it held."""
    prefix = write_pair(tmp_path_factory.mktemp("fuzz") / "genome", DOCUMENTS)
    return prefix, Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()


def test_ranges_of_documents_are_read_without_a_copy(prefix):
    tokens = IndexedTokens(prefix)
    assert len(tokens) == 4
    assert tokens.num_tokens == 335
    assert tokens.lengths.tolist() == [34, 0, 1, 300]
    for document, ids in enumerate(DOCUMENTS):
        assert tokens.read(document, 0, len(ids)).tolist() == ids
    part = tokens.read(3, 250, 50)
    assert part.tolist() == DOCUMENTS[3][250:]
    assert not part.flags.owndata
    assert not part.flags.writeable


@pytest.mark.parametrize("place", [(4, 0, 1), (-1, 0, 1), (0, -1, 3), (0, 30, 5), (1, 0, 1)])
def test_a_range_outside_its_document_is_refused(prefix, place):
    with pytest.raises(IndexError):
        IndexedTokens(prefix).read(*place)


def check_damaged(prefix, idx, bin_):
    """Either one ValueError that names a file and a fix, or the tokens are as they were."""
    Path(f"{prefix}.idx").write_bytes(idx)
    Path(f"{prefix}.bin").write_bytes(bin_)
    try:
        tokens = IndexedTokens(prefix)
    except ValueError as error:
        message = str(error)
    else:
        content = [tokens.read(i, 0, n).tolist() for i, n in enumerate(tokens.lengths)]
        assert content == DOCUMENTS
        return True
    assert message.startswith((f"{prefix}.idx is damaged", f"{prefix}.bin is damaged"))
    assert "tools/preprocess_genome.py" in message
    return False


def test_every_flipped_bit_of_an_idx_is_an_error_or_harmless(pair):
    prefix, idx, bin_ = pair
    harmless = []
    for i in range(len(idx)):
        for bit in range(8):
            flipped = bytes([*idx[:i], idx[i] ^ 1 << bit, *idx[i + 1 :]])
            if check_damaged(prefix, flipped, bin_):
                harmless.append(i)
    # Where documents end is not used, only that they divide the sequences.
    assert all(i >= len(idx) - 8 * (len(DOCUMENTS) + 1) for i in harmless)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_cut_grown_and_overwritten_files_are_errors_or_harmless(pair, data):
    prefix, idx, bin_ = pair
    at = data.draw(st.integers(0, len(idx)))
    noise = data.draw(st.binary(min_size=1, max_size=24))
    check_damaged(prefix, idx[:at] + noise + idx[at + len(noise) :], bin_)
    if at < len(idx):
        assert not check_damaged(prefix, idx[:at], bin_)
    assert not check_damaged(prefix, idx[:at] + noise + idx[at:], bin_)
    assert not check_damaged(prefix, idx, bin_[: data.draw(st.integers(0, len(bin_) - 1))])
    assert not check_damaged(prefix, idx, bin_ + noise)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda idx: b"", "has 0 bytes, fewer than its header's 34"),
        (lambda idx: b"X" + idx[1:], "does not start as an .idx file does"),
        (lambda idx: idx[:9] + struct.pack("<Q", 2) + idx[17:], "has version 2, not 1"),
        (lambda idx: idx[:17] + b"\x07" + idx[18:], "has dtype code 7"),
        (lambda idx: idx[:18] + struct.pack("<Q", 2**63) + idx[26:], "9223372036854775808 sequ"),
        (lambda idx: idx[:34] + struct.pack("<i", -1) + idx[38:], "negative length"),
        (lambda idx: idx[:34] + struct.pack("<i", 35) + idx[38:], "wrong places for 3 sequences"),
        (lambda idx: idx[:-1] + b"\x01", "do not divide its 4 sequences"),
    ],
)
def test_the_error_says_what_is_wrong(pair, edit, message):
    prefix, idx, bin_ = pair
    Path(f"{prefix}.idx").write_bytes(edit(idx))
    Path(f"{prefix}.bin").write_bytes(bin_)
    with pytest.raises(ValueError, match=message):
        IndexedTokens(prefix)


def test_missing_and_empty_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.idx is not a file; make it with tools/"):
        IndexedTokens(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="lists no token"):
        IndexedTokens(write_pair(tmp_path / "none", []))
    with pytest.raises(ValueError, match="lists no token"):
        IndexedTokens(write_pair(tmp_path / "empty", [[], []]))
