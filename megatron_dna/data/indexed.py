"""Megatron's .bin/.idx pairs, opened with Megatron-Core's own reader after a check of every byte.

`IndexedDataset` trusts an .idx: a truncated or flipped one makes it assert, or read outside the
file. Everything an .idx says is redundant, so `validate_pair` can tell a damaged one: a mapped
file is only read when header, lengths, offsets and both file sizes agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.int32]
"""Ids as they lie in a .bin file."""

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = np.dtype(
    [("magic", "V9"), ("version", "<u8"), ("dtype", "u1"), ("sequences", "<u8"), ("ends", "<u8")]
)
_DTYPES = {DType.code_from_dtype(dtype): np.dtype(dtype) for dtype in (np.uint16, np.int32)}
_REMAKE = "make the pair again with tools/preprocess_genome.py, or copy it again"


class IndexedTokens:
    """Read-only documents of token ids in a .bin/.idx pair.

    A document is a sequence of the file: a contiguous run of tokens.

    Attributes:
        prefix: path of the pair, without extension.
        lengths: int32 [documents], tokens of each.
    """

    def __init__(self, prefix: str) -> None:
        """Opens and checks a pair; reads the whole .idx, and no token of the .bin.

        Raises:
            ValueError: a file is missing, damaged, or holds no token; names file, fault and fix.
        """
        validate_pair(prefix)
        self.prefix = prefix
        self._dataset = IndexedDataset(prefix, mmap=True)
        # A copy: Megatron-Core unmaps its own when the reader goes.
        self.lengths: npt.NDArray[np.int32] = np.array(self._dataset.sequence_lengths, np.int32)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum(dtype=np.int64))

    def iter_chunks(self, num_tokens: int = 1 << 22) -> Iterator[TokenArray]:
        """All tokens in the order of the file, at most `num_tokens` at a time, in memory."""
        dtype = np.dtype(self._dataset.index.dtype)
        with Path(f"{self.prefix}.bin").open("rb") as file:
            while (chunk := np.fromfile(file, dtype, num_tokens)).size:
                yield chunk

    def read(self, document: int, start: int, length: int) -> TokenArray:
        """Tokens [start, start + length) of a document: a view of the mapped file, no copy.

        The view is valid only as long as this object is: the file is unmapped with it.

        Raises:
            IndexError: the range is not within the document.
        """
        if not 0 <= document < len(self.lengths):
            raise IndexError(f"document ({document}) must be below {len(self.lengths)}")
        if start < 0 or length < 0 or start + length > self.lengths[document]:
            raise IndexError(
                f"tokens [{start}, {start + length}) must lie within document {document} "
                f"of {self.lengths[document]} tokens in {self.prefix}.bin"
            )
        tokens: TokenArray = self._dataset.get(document, start, length)
        return tokens


def validate_pair(prefix: str) -> None:
    """Checks that an .idx is whole and fits its .bin.

    Raises:
        ValueError: names the file, what is wrong with it, and the fix.
    """
    idx, bin_ = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for path in (idx, bin_):
        if not path.is_file():
            raise ValueError(f"{path} is not a file; make it with tools/preprocess_genome.py")
    dtype, count, num_ends = _read_header(idx)
    num_tokens = _count_tokens(idx, dtype, count, num_ends)
    size, expected = bin_.stat().st_size, num_tokens * dtype.itemsize
    _require(
        size == expected, bin_,
        f"has {size} bytes, but {idx} lists {num_tokens} tokens of {expected} bytes",
    )  # fmt: skip


def _read_header(path: Path) -> tuple[np.dtype[Any], int, int]:
    """Token dtype, number of sequences, number of document ends (one more than documents)."""
    size = path.stat().st_size
    _require(size >= _HEADER.itemsize, path, f"has {size} bytes, fewer than its header's 34")
    header = np.fromfile(path, _HEADER, count=1)[0]
    _require(header["magic"].tobytes() == _MAGIC, path, "does not start as an .idx file does")
    _require(header["version"] == 1, path, f"has version {header['version']}, not 1")
    code = int(header["dtype"])
    _require(code in _DTYPES, path, f"has dtype code {code}, not {sorted(_DTYPES)} (int32, uint16)")
    count, num_ends = int(header["sequences"]), int(header["ends"])
    expected = _HEADER.itemsize + 12 * count + 8 * num_ends
    _require(
        size == expected, path,
        f"has {size} bytes, but {count} sequences and {num_ends} document ends need {expected}",
    )  # fmt: skip
    return _DTYPES[code], count, num_ends


def _count_tokens(path: Path, dtype: np.dtype[Any], count: int, num_ends: int) -> int:
    """Number of tokens, if the sequences lie end to end and the documents divide them."""
    offset = _HEADER.itemsize
    lengths = np.fromfile(path, "<i4", count, offset=offset)
    pointers = np.fromfile(path, "<i8", count, offset=offset + 4 * count)
    ends = np.fromfile(path, "<i8", num_ends, offset=offset + 12 * count)
    _require(bool((lengths >= 0).all()), path, "lists a sequence of negative length")
    token_ends = np.cumsum(lengths, dtype=np.int64)
    misplaced = np.flatnonzero(pointers != (token_ends - lengths) * dtype.itemsize)
    _require(misplaced.size == 0, path, f"lists wrong places for {misplaced.size} sequences")
    divides = num_ends > 0 and ends[0] == 0 and ends[-1] == count and (np.diff(ends) >= 0).all()
    _require(bool(divides), path, f"lists documents that do not divide its {count} sequences")
    num_tokens = int(token_ends[-1]) if count else 0
    _require(num_tokens > 0, path, "lists no token: all of its documents are empty")
    return num_tokens


def _require(holds: bool, path: Path, fault: str) -> None:
    if not holds:
        raise ValueError(f"{path} is damaged: it {fault}; {_REMAKE}")
