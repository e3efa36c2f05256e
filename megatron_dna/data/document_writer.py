"""Documents of one split: their ids in .bin/.idx, and where they come from beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_dna.data.coordinates import CoordinateWriter
from megatron_dna.data.writer import IndexedWriter


class DocumentWriter(IndexedWriter):
    """An `IndexedWriter` whose documents' places go to PREFIX.coordinates.npz.

    Attributes:
        coordinates: is to be told each document, in order: those too that were finished before.
    """

    def __init__(self, prefix: Path, vocab_size: int, finished: Sequence[int] = ()) -> None:
        """Opens the temporary files; see `IndexedWriter`."""
        super().__init__(prefix, vocab_size, finished)
        self.coordinates = CoordinateWriter(prefix)

    def prepare(self) -> None:
        """Puts all on the disk; see `IndexedWriter.prepare`."""
        super().prepare()
        self.coordinates.prepare()

    def publish(self) -> None:
        """Gives the files their names, the .idx last."""
        self.coordinates.publish()
        super().publish()

    def abort(self) -> None:
        """Gives up and removes the temporary files."""
        self.coordinates.abort()
        super().abort()

    def leave(self) -> None:
        """Gives up, but leaves PREFIX.bin.partial; see `IndexedWriter.leave`."""
        self.coordinates.abort()
        super().leave()
