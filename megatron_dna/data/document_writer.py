"""Documents of one split: their ids in .bin/.idx, and where they come from beside them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from megatron_dna.data.coordinates import CoordinateWriter
from megatron_dna.data.writer import IndexedWriter
from megatron_dna.genome.corpus import Document


class DocumentWriter:
    """An `IndexedWriter` and a `CoordinateWriter` of one prefix, to be used as the first is.

    Attributes:
        dtype: see `IndexedWriter`.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        """Opens the temporary files; see `IndexedWriter`."""
        self._ids = IndexedWriter(prefix, vocab_size)
        self._coordinates = CoordinateWriter(prefix)

    def append(self, ids: npt.NDArray[np.int32]) -> None:
        """Adds ids to the document that is open; see `IndexedWriter.append`."""
        self._ids.append(ids)

    def end_document(self, document: Document) -> None:
        """Closes the open document, whose ids these were."""
        self._ids.end_document()
        self._coordinates.add_document(document)

    def prepare(self) -> None:
        """Puts all on the disk, still under temporary names: a full disk shows here.

        Raises:
            ValueError, OSError: see `IndexedWriter.prepare`.
        """
        self._ids.prepare()
        self._coordinates.prepare()

    def publish(self) -> None:
        """Gives the files their names, the .idx last."""
        self._coordinates.publish()
        self._ids.publish()

    @property
    def dtype(self) -> np.dtype[np.uint16] | np.dtype[np.int32]:
        return self._ids.dtype

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._coordinates.abort()
        self._ids.__exit__(kind, error, traceback)
