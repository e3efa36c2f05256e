"""Cleaned sequence on the disk, one byte a base, that any thread reads any part of.

What is to be encoded is a `SequenceLike`: a stretch of a stored contig, its other strand, or
anything else that knows its length and gives out any part of itself. So memory does not grow with
the length of a contig, and parts of one contig are encoded at the same time.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatron_dna.genome.fasta import ContigPiece
from megatron_dna.genome.sequence import reverse_complement


class SequenceLike(Protocol):
    """Cleaned sequence (A, C, G, T, N) of a known length; any thread may read any part of it."""

    @property
    def length(self) -> int:
        """Bases."""

    def read(self, start: int, end: int) -> bytes:
        """The bases from `start` to `end`, 0-based half-open, 0 <= start <= end <= length."""


@dataclass(frozen=True)
class Stretch:
    """A part of a stored contig.

    Attributes:
        store: has the contig.
        offset: of the first base in the store's file.
        length: bases.
    """

    store: SequenceStore
    offset: int
    length: int

    def read(self, start: int, end: int) -> bytes:
        """See `SequenceLike.read`."""
        return self.store.read_bytes(self.offset + start, end - start)


@dataclass(frozen=True)
class ReverseComplement:
    """The other strand of a sequence, read from its own start."""

    forward: SequenceLike

    @property
    def length(self) -> int:
        """Bases."""
        return self.forward.length

    def read(self, start: int, end: int) -> bytes:
        """See `SequenceLike.read`; positions count on this strand."""
        return reverse_complement(self.forward.read(self.length - end, self.length - start))


class SequenceStore:
    """The cleaned contigs of FASTA files in one scratch file, which has no name in its folder.

    The kernel gives its space back when the store is closed or the process ends, however it ends.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the scratch file.

        Args:
            folder: where the space is taken from: one byte a base.

        Raises:
            OSError: no file can be made there.
        """
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._size = 0
        self._offsets: dict[str, int] = {}
        self._lengths: dict[str, int] = {}

    def append(self, piece: ContigPiece) -> None:
        """Keeps the next piece of a contig; see `read_pieces` and `scan`.

        Raises:
            OSError: the scratch file cannot be written: a full disk shows here.
        """
        if piece.start == 0:
            self._offsets[piece.name] = self._size
        rest = memoryview(piece.bases)
        try:
            while rest:
                count = os.pwrite(self._file.fileno(), rest, self._size)
                self._size += count
                rest = rest[count:]
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write the scratch file in {self._folder}, which takes a byte for each "
                f"base of the FASTA files: {error.strerror}",
            ) from error
        self._lengths[piece.name] = piece.start + len(piece.bases)

    def stretch(self, contig: str, start: int = 0, end: int | None = None) -> Stretch:
        """A part of a contig, 0-based half-open; all of it unless told."""
        length = self._lengths[contig]
        end = length if end is None else end
        if not 0 <= start <= end <= length:
            raise ValueError(f"{contig}:{start}-{end} is not inside its {length} bases")
        return Stretch(self, self._offsets[contig] + start, end - start)

    def read(self, contig: str, start: int, end: int) -> bytes:
        """Bases of a contig, 0-based half-open. Any thread may call it."""
        return self.stretch(contig, start, end).read(0, end - start)

    def read_bytes(self, offset: int, size: int) -> bytes:
        """Bases by their place in the file.

        Raises:
            OSError: the disk fails.
        """
        parts = []
        while size:
            part = os.pread(self._file.fileno(), size, offset)
            if not part:
                raise OSError(f"the scratch file in {self._folder} ends early")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def __enter__(self) -> SequenceStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
