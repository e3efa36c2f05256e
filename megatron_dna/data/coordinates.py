"""The way back from tokens to the reference: PREFIX.coordinates.npz beside each PREFIX.bin.

It holds where each document lies on its sequence (a contig, or a haplotype of it), and for every
haplotype the edits that change its length. All coordinates are 0-based half-open.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from megatron_dna.data.columns import ROWS_A_CHUNK, Table, open_npz, write_npz
from megatron_dna.genome.coordinates import CoordinateMap
from megatron_dna.genome.corpus import Document, Strand
from megatron_dna.genome.haplotype_documents import HaplotypeDocument

SUFFIX = ".coordinates.npz"
FORMAT = "megatron_dna coordinates 1"

REFERENCE = ""
"""Stands for the reference where a sample's name is expected."""


def coordinates_path(prefix: Path) -> Path:
    """The file that goes with a prefix."""
    return prefix.with_name(prefix.name + SUFFIX)


_EDIT = np.dtype([("start", np.int64), ("ref_length", np.uint32), ("alt_length", np.uint32)])
_DOCUMENT = np.dtype(
    [("sequence", np.int32), ("start", np.int64), ("length", np.int64), ("reverse", np.bool_)]
)


class CoordinateWriter:
    """Collects the documents of a prefix in their order; those of a sequence follow each other.

    Edits and documents go to scratch files beside the output: 16 bytes an edit and 21 a document.
    Memory: some 300 bytes a sequence.
    """

    def __init__(self, prefix: Path) -> None:
        """Writes nothing yet but scratch files."""
        self._path = coordinates_path(prefix)
        self._partial = self._path.with_name(self._path.name + ".partial")
        self._sequences: dict[tuple[str, str, int], int] = {}
        self._first_edit = array("q", [0])
        self._edits = Table(prefix.parent, _EDIT)
        self._documents = Table(prefix.parent, _DOCUMENT)

    def add_document(self, document: Document) -> None:
        """Adds the next document of the .bin file."""
        haplotype = document.haplotype if isinstance(document, HaplotypeDocument) else None
        sample, number = (haplotype.sample, haplotype.number) if haplotype else (REFERENCE, 0)
        key = (document.contig, sample, number)
        if key not in self._sequences:
            self._add_sequence(key, haplotype.coordinates() if haplotype else _IDENTITY)
        sequence, reverse = self._sequences[key], document.strand == "-"
        row = (sequence, document.start, document.length, reverse)
        self._documents.append(np.array([row], _DOCUMENT))

    def add_all(self, other: DocumentCoordinates) -> None:
        """Adds the documents of another prefix, in their order."""
        numbers = np.zeros(other.num_sequences, np.int32)  # here, of each sequence there
        for sequence in range(other.num_sequences):
            key = other.sequence(sequence)
            if key not in self._sequences:
                self._add_sequence(key, other.sequence_edits(sequence))
            numbers[sequence] = self._sequences[key]
        for start in range(0, len(other), ROWS_A_CHUNK):
            chunk = slice(start, start + ROWS_A_CHUNK)
            rows = np.empty(len(other.arrays["document_start"][chunk]), _DOCUMENT)
            rows["sequence"] = numbers[other.arrays["document_sequence"][chunk]]
            for name in ("start", "length", "reverse"):
                rows[name] = other.arrays[f"document_{name}"][chunk]
            self._documents.append(rows)

    def _add_sequence(self, key: tuple[str, str, int], edits: CoordinateMap) -> None:
        self._sequences[key] = len(self._sequences)
        rows = np.empty(len(edits.starts), _EDIT)
        rows["start"] = edits.starts
        rows["ref_length"] = edits.ref_lengths
        rows["alt_length"] = edits.alt_lengths
        self._edits.append(rows)
        self._first_edit.append(len(self._edits))

    def prepare(self) -> None:
        """Puts all on the disk under a temporary name.

        Raises:
            OSError: the disk is full or fails.
        """
        write_npz(self._partial, self._arrays())

    def publish(self) -> None:
        """Gives the file its name."""
        self._partial.replace(self._path)
        self._close()

    def abort(self) -> None:
        """Removes what was not published."""
        self._partial.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        self._edits.close()
        self._documents.close()

    def _arrays(self) -> dict[str, npt.NDArray[Any] | tuple[Table, str]]:
        keys = list(self._sequences)
        contigs = _number(contig for contig, _, _ in keys)
        samples = _number(sample for _, sample, _ in keys)
        return {
            "format": np.array(FORMAT),
            "contigs": np.array(list(contigs)),
            "samples": np.array(list(samples)),
            "sequence_contig": np.array([contigs[contig] for contig, _, _ in keys], np.int32),
            "sequence_sample": np.array([samples[sample] for _, sample, _ in keys], np.int32),
            "sequence_haplotype": np.array([haplotype for _, _, haplotype in keys], np.int8),
            "sequence_first_edit": np.array(self._first_edit, np.int64),
            **{f"edit_{name}": (self._edits, name) for name in _EDIT.names or ()},
            **{f"document_{name}": (self._documents, name) for name in _DOCUMENT.names or ()},
        }


def _number(names: Iterable[str]) -> dict[str, int]:
    """Numbers names in the order in which they first come."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


_EMPTY = np.zeros(0, np.int64)
_IDENTITY = CoordinateMap(_EMPTY, _EMPTY, _EMPTY)


class DocumentOrigin(NamedTuple):
    """What a document is a part of; 0-based half-open, on that sequence's forward strand.

    Attributes:
        contig: of the reference.
        sample: "" for the reference itself.
        haplotype: 1 or 2; 0 for the reference itself.
        strand: "-" if the document reads from `end` to `start`.
        start: on the haplotype, or on the reference.
        end: the same.
    """

    contig: str
    sample: str
    haplotype: int
    strand: Strand
    start: int
    end: int


class TokenIntervals(NamedTuple):
    """Where tokens come from, on the reference's forward strand.

    The bases [starts, ends) of the reference, with every edit of the haplotype applied that lies
    inside of them or at their ends, spell a string that has the token at `offsets` (on the strand
    "-" its reverse complement). See `ReferenceIntervals`.
    """

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


@dataclass(frozen=True)
class DocumentCoordinates:
    """The coordinate map of a prefix.

    Attributes:
        path: of the file.
        arrays: its content, by name; docs/data.md says what each is.
    """

    path: Path
    arrays: dict[str, npt.NDArray[Any]]
    _maps: dict[int, CoordinateMap] = field(default_factory=dict)  # that of the last sequence

    @classmethod
    def open(cls, prefix: Path) -> DocumentCoordinates:
        """Opens PREFIX.coordinates.npz: it is mapped, and what is looked at is read.

        Raises:
            ValueError: it is no such file.
            OSError: it cannot be read.
        """
        path = coordinates_path(prefix)
        try:
            arrays = open_npz(path)
        except (ValueError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is no coordinate map, or is damaged ({error})") from error
        if str(arrays.get("format")) != FORMAT:
            raise ValueError(f"{path} is no coordinate map of this version ({FORMAT!r})")
        return cls(path, arrays)

    def __len__(self) -> int:
        """Documents."""
        return len(self.arrays["document_start"])

    @property
    def num_sequences(self) -> int:
        """Contigs of the reference, and haplotypes of them."""
        return len(self.arrays["sequence_contig"])

    def sequence(self, sequence: int) -> tuple[str, str, int]:
        """Contig, sample and haplotype of a sequence; see `DocumentOrigin`."""
        of = self.arrays
        return (
            str(of["contigs"][of["sequence_contig"][sequence]]),
            str(of["samples"][of["sequence_sample"][sequence]]),
            int(of["sequence_haplotype"][sequence]),
        )

    def first_documents(self) -> npt.NDArray[np.int64]:
        """int64 [sequences + 1], the first document of each sequence, and the number of all."""
        sequences = np.arange(self.num_sequences + 1, dtype=np.int32)
        return np.searchsorted(self.arrays["document_sequence"], sequences).astype(np.int64)

    def origin(self, document: int) -> DocumentOrigin:
        """What a document is a part of."""
        of = self.arrays
        start, length = int(of["document_start"][document]), int(of["document_length"][document])
        return DocumentOrigin(
            *self.sequence(int(of["document_sequence"][document])),
            "-" if of["document_reverse"][document] else "+",
            start,
            start + length,
        )

    def locate(
        self, document: int, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> TokenIntervals:
        """Where parts of a document come from.

        Args:
            document: its number in the .idx file.
            starts: int64 [parts], bases of the document before each part: for its tokens the sums
                of `DnaTokenizer.token_lengths` before each.
            ends: int64 [parts], each larger than its start.
        """
        origin = self.origin(document)
        if origin.strand == "+":
            first, last = origin.start + starts, origin.start + ends
        else:
            first, last = origin.end - ends, origin.end - starts
        return TokenIntervals(*self.edits(document).to_reference(first, last))

    def edits(self, document: int) -> CoordinateMap:
        """The edits that change the length of the sequence that a document is a part of."""
        return self.sequence_edits(int(self.arrays["document_sequence"][document]))

    def sequence_edits(self, sequence: int) -> CoordinateMap:
        """The edits that change the length of a sequence."""
        if sequence not in self._maps:
            bounds = self.arrays["sequence_first_edit"][sequence : sequence + 2].tolist()
            edits = (self.arrays[f"edit_{name}"] for name in ("start", "ref_length", "alt_length"))
            self._maps.clear()
            self._maps[sequence] = CoordinateMap(
                *(column[slice(*bounds)].astype(np.int64) for column in edits)
            )
        return self._maps[sequence]
