"""The way back from tokens to the reference: PREFIX.coordinates.npz beside each PREFIX.bin.

It holds where each document lies on its sequence (a contig, or a haplotype of it), and for every
haplotype the edits that change its length. All coordinates are 0-based half-open.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

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


class CoordinateWriter:
    """Collects the documents of a prefix in their order. Memory: 25 bytes a document."""

    def __init__(self, prefix: Path) -> None:
        """Writes nothing yet."""
        self._path = coordinates_path(prefix)
        self._partial = self._path.with_name(self._path.name + ".partial")
        self._sequences: dict[tuple[str, str, int], int] = {}
        self._edits: list[CoordinateMap] = []
        self._documents = {"sequence": array("q"), "start": array("q"), "length": array("q")}
        self._reverse = array("b")

    def add_document(self, document: Document) -> None:
        """Adds the next document of the .bin file."""
        sample, number = REFERENCE, 0
        if isinstance(document, HaplotypeDocument):
            sample, number = document.haplotype.sample, document.haplotype.number
        key = (document.contig, sample, number)
        if key not in self._sequences:
            self._sequences[key] = len(self._sequences)
            self._edits.append(
                document.haplotype.coordinates()
                if isinstance(document, HaplotypeDocument)
                else _IDENTITY
            )
        self._add(key, document.start, document.length, document.strand == "-")

    def add_all(self, other: DocumentCoordinates) -> None:
        """Adds the documents of another prefix, in their order."""
        for number in range(len(other)):
            contig, sample, haplotype, strand, start, end = other.origin(number)
            key = (contig, sample, haplotype)
            if key not in self._sequences:
                self._sequences[key] = len(self._sequences)
                self._edits.append(other.edits(number))
            self._add(key, start, end - start, strand == "-")

    def _add(self, key: tuple[str, str, int], start: int, length: int, reverse: bool) -> None:
        self._documents["sequence"].append(self._sequences[key])
        self._documents["start"].append(start)
        self._documents["length"].append(length)
        self._reverse.append(reverse)

    def prepare(self) -> None:
        """Puts all on the disk under a temporary name.

        Raises:
            OSError: the disk is full or fails.
        """
        with self._partial.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **self._arrays())
            stream.flush()
            os.fsync(stream.fileno())

    def publish(self) -> None:
        """Gives the file its name."""
        self._partial.replace(self._path)

    def abort(self) -> None:
        """Removes what was not published."""
        self._partial.unlink(missing_ok=True)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        contigs = list(dict.fromkeys(contig for contig, _, _ in self._sequences))
        samples = list(dict.fromkeys(sample for _, sample, _ in self._sequences))
        counts = [len(edits.starts) for edits in self._edits]
        return {
            "format": np.array(FORMAT),
            "contigs": np.array(contigs),
            "samples": np.array(samples),
            "sequence_contig": np.array(
                [contigs.index(key[0]) for key in self._sequences], np.int32
            ),
            "sequence_sample": np.array(
                [samples.index(key[1]) for key in self._sequences], np.int32
            ),
            "sequence_haplotype": np.array([key[2] for key in self._sequences], np.int8),
            "sequence_first_edit": np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            "edit_start": np.concatenate([edits.starts for edits in self._edits]),
            "edit_ref_length": np.concatenate([edits.ref_lengths for edits in self._edits]).astype(
                np.uint32
            ),
            "edit_alt_length": np.concatenate([edits.alt_lengths for edits in self._edits]).astype(
                np.uint32
            ),
            "document_sequence": np.array(self._documents["sequence"], np.int32),
            "document_start": np.array(self._documents["start"], np.int64),
            "document_length": np.array(self._documents["length"], np.int64),
            "document_reverse": np.array(self._reverse, np.bool_),
        }


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
        """Reads PREFIX.coordinates.npz.

        Raises:
            ValueError: it is no such file.
            OSError: it cannot be read.
        """
        path = coordinates_path(prefix)
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
        except (ValueError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is no coordinate map, or is damaged ({error})") from error
        if str(arrays.get("format")) != FORMAT:
            raise ValueError(f"{path} is no coordinate map of this version ({FORMAT!r})")
        return cls(path, arrays)

    def __len__(self) -> int:
        """Documents."""
        return len(self.arrays["document_start"])

    def origin(self, document: int) -> DocumentOrigin:
        """What a document is a part of."""
        of = self.arrays
        sequence = of["document_sequence"][document]
        start, length = int(of["document_start"][document]), int(of["document_length"][document])
        return DocumentOrigin(
            str(of["contigs"][of["sequence_contig"][sequence]]),
            str(of["samples"][of["sequence_sample"][sequence]]),
            int(of["sequence_haplotype"][sequence]),
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
        sequence = int(self.arrays["document_sequence"][document])
        if sequence not in self._maps:
            bounds = self.arrays["sequence_first_edit"][sequence : sequence + 2].tolist()
            edits = (self.arrays[f"edit_{name}"] for name in ("start", "ref_length", "alt_length"))
            self._maps.clear()
            self._maps[sequence] = CoordinateMap(
                *(column[slice(*bounds)].astype(np.int64) for column in edits)
            )
        return self._maps[sequence]
