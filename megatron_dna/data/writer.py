"""Writer of Megatron-Core's indexed datasets: a typed facade over `csrc/indexed_writer.cpp`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_dna import _core

MAX_UINT16_VOCAB_SIZE = 65_499
"""With more ids than these, Megatron's DType.optimal_dtype chooses int32."""


def dtype_of(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.int32]:
    """How ids are stored."""
    return np.dtype(np.uint16 if vocab_size <= MAX_UINT16_VOCAB_SIZE else np.int32)


# An .idx file: magic (9 bytes), version (8), dtype (1), documents (8), the same + 1 (8), lengths.
_COUNT_OFFSET = 18
_LENGTHS_OFFSET = 34


class IndexedWriter:
    """Writes PREFIX.bin and PREFIX.idx, one sequence for each document.

    Until `publish` the content lies in PREFIX.bin.partial and PREFIX.idx.partial, which leaving the
    `with` block removes. A killed process leaves them behind; the next writer of the same prefix
    takes them over, empties them or goes on. Memory grows by 4 bytes a document.

    Attributes:
        num_documents: documents added.
        num_tokens: their tokens.
        dtype: how ids are stored: uint16 if vocab_size < 65,500, as Megatron chooses, else int32.
    """

    def __init__(self, prefix: Path, vocab_size: int, finished: Sequence[int] = ()) -> None:
        """Opens the temporary files.

        Args:
            prefix: PREFIX.
            vocab_size: number of ids.
            finished: tokens of each document that PREFIX.bin.partial begins with, left there by
                `leave` or a kill; they stay, what follows them goes.

        Raises:
            OSError: they cannot be created; BlockingIOError: another process is writing them.
            ValueError: the vocabulary is empty, or too large for int32; PREFIX.bin.partial is
                shorter than `finished`.
        """
        self._writer = _core.IndexedWriter(str(prefix), vocab_size, finished)

    def add_document(self, ids: npt.NDArray[np.int32]) -> None:
        """Adds a document, int32 [tokens].

        Raises:
            ValueError: it has no token, over 2,147,483,647 tokens, or an id outside the vocabulary.
            OSError: the disk is full or fails.
        """
        self.append(ids)
        self.end_document()

    def append(self, ids: npt.NDArray[np.int32]) -> None:
        """Adds ids, int32 [tokens], to the document that is open.

        Raises:
            ValueError: the document passes 2,147,483,647 tokens, or an id outside the vocabulary.
            OSError: the disk is full or fails.
        """
        self._writer.append(ids)

    def end_document(self) -> None:
        """Closes the open document.

        Raises:
            ValueError: it has no token.
        """
        self._writer.end_document()

    def sync(self) -> None:
        """Puts what was added so far on the disk, in PREFIX.bin.partial.

        Raises:
            OSError: the disk is full or fails.
        """
        self._writer.sync()

    def abort(self) -> None:
        """Gives up and removes the temporary files; no effect once published."""
        self._writer.abort()

    def leave(self) -> None:
        """Gives up, but leaves PREFIX.bin.partial for a writer that goes on with it."""
        self._writer.leave()

    def prepare(self) -> None:
        """Puts all content on the disk, still under temporary names: a full disk shows here.

        Raises:
            ValueError: there is no document; no reader could map an empty file.
            OSError: the disk is full or fails.
        """
        self._writer.prepare()

    def publish(self) -> None:
        """Renames .bin, then .idx, so an .idx is never beside a .bin it does not describe.

        Older files of the same prefix are replaced. Calls `prepare` if it was not called.

        Raises:
            ValueError, OSError: as `prepare`.
        """
        self._writer.publish()

    @property
    def num_documents(self) -> int:
        return self._writer.num_documents

    @property
    def num_tokens(self) -> int:
        return self._writer.num_tokens

    @property
    def dtype(self) -> np.dtype[np.uint16] | np.dtype[np.int32]:
        return np.dtype(np.uint16) if self._writer.bytes_per_token == 2 else np.dtype(np.int32)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.abort()


def document_lengths(prefix: Path) -> list[int]:
    """Tokens of each document of a pair that `IndexedWriter` has published.

    Raises:
        OSError: the .idx file cannot be read.
    """
    path = prefix.with_name(prefix.name + ".idx")
    count = int(np.fromfile(path, np.uint64, 1, offset=_COUNT_OFFSET)[0])
    lengths: list[int] = np.fromfile(path, np.int32, count, offset=_LENGTHS_OFFSET).tolist()
    return lengths
