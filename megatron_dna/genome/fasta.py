"""FASTA files, plain, gzipped or bgzipped, read piece by piece in a few MB of memory.

Files are told apart by content, not by name. Every flaw that would silently lose sequence is an
error here: a file that ends early, an empty record, a name that comes twice, letters that are not
nucleotides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_dna.genome.compressed import CHUNK_BYTES, read_ahead, read_chunks
from megatron_dna.genome.sequence import clean_sequence

MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Contig:
    """One record of a FASTA file.

    Attributes:
        name: the first word of the header.
        sequence: cleaned (A, C, G, T, N); not to be changed.
        num_ambiguous: bases that were an IUPAC ambiguity code and are N now.
    """

    name: str
    sequence: bytearray
    num_ambiguous: int


@dataclass(frozen=True)
class ContigPiece:
    """The next bases of a record, at least one.

    Attributes:
        name: of the contig.
        start: where the piece lies in the contig; 0 opens a new contig.
        bases: cleaned (A, C, G, T, N).
        num_ambiguous: how many of them were an IUPAC ambiguity code and are N now.
    """

    name: str
    start: int
    bases: bytes
    num_ambiguous: int


def read_pieces(paths: Sequence[Path], ahead: bool = False) -> Iterator[tuple[Path, ContigPiece]]:
    """The contigs of FASTA files in order, in pieces of at most some MB, each with its file.

    Lower case becomes upper case, IUPAC ambiguity codes N; CRLF, blank lines and spaces are fine.

    Args:
        paths: plain, gzipped or bgzipped.
        ahead: files are decompressed in a thread, a chunk ahead.

    Raises:
        ValueError: not FASTA, empty, truncated or damaged, a record without name or sequence, a
            name that comes twice, or a letter that is not a nucleotide. Names file and contig.
        OSError: a file cannot be read.
    """
    owners: dict[str, Path] = {}
    for path in paths:
        names: set[str] = set()
        for piece in _parse(path, ahead):
            if piece.start == 0:
                _check_name(path, piece.name, names, owners)
                names.add(piece.name)
            yield path, piece
        if not names:
            raise ValueError(f"{path}: no sequence in it; a FASTA file has at least one record")
        owners |= dict.fromkeys(names, path)


def _check_name(path: Path, name: str, names: set[str], owners: dict[str, Path]) -> None:
    """Raises if a contig's name was in this file already, or in one before it."""
    if name in names:
        raise ValueError(f"{path}: contig {name!r} comes twice; names must be unique")
    if name in owners:
        raise ValueError(
            f"contig {name!r} is in {owners[name]} and again in {path}; names must be "
            "unique: rename it, or make the files sources of a corpus file (--corpus)"
        )


def read_fasta(path: Path) -> Iterator[Contig]:
    """The whole contigs of a FASTA file in order. Memory: the largest contig and a few MB.

    Raises:
        ValueError, OSError: see `read_pieces`.
    """
    name, sequence, num_ambiguous = "", bytearray(), 0
    for _, piece in read_pieces([path]):
        if piece.start == 0 and sequence:
            yield Contig(name, sequence, num_ambiguous)
            sequence, num_ambiguous = bytearray(), 0
        name = piece.name
        sequence += piece.bases
        num_ambiguous += piece.num_ambiguous
    yield Contig(name, sequence, num_ambiguous)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes as they lie on the disk, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class _Record:
    """A record whose sequence is still being read."""

    def __init__(self, path: Path, header: bytes) -> None:
        try:
            words = header.decode().split(maxsplit=1)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: header {header[:80]!r} is not UTF-8 text") from error
        if not words or header[:1].isspace():
            raise ValueError(f"{path}: header {'>' + header.decode()[:80]!r} has no contig name")
        self.path = path
        self.name = words[0]
        self.length = 0

    def add(self, raw: memoryview) -> ContigPiece | None:
        """The piece that some lines of the record make, unless they are blank."""
        try:
            bases, num_ambiguous = clean_sequence(raw, self.length)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: contig {self.name!r}: {error}; is this DNA, not protein or RNA?"
            ) from error
        start, self.length = self.length, self.length + len(bases)
        return ContigPiece(self.name, start, bases, num_ambiguous) if bases else None

    def finish(self) -> None:
        if not self.length:
            raise ValueError(f"{self.path}: contig {self.name!r} has no sequence")


def _parse(path: Path, ahead: bool) -> Iterator[ContigPiece]:
    record: _Record | None = None
    in_header = False
    rest = b"\n"  # a file's first line counts as the start of a line
    chunks = read_chunks(path, "FASTA file")
    for chunk in read_ahead(chunks) if ahead else chunks:
        text = rest + chunk
        position = 0
        while True:
            if in_header:
                end = text.find(b"\n", position)
                if end < 0:
                    break
                record = _Record(path, text[position:end])
                position, in_header = end, False
            start = _find_header(text, position)
            # A line end that closes the chunk may open a header with the next one: keep it back.
            end = start if start >= 0 else len(text) - text.endswith(b"\n")
            piece = _add(path, record, memoryview(text)[position:end])
            if piece is not None:
                yield piece
            position = end
            if start < 0:
                break
            if record is not None:
                record.finish()
                record = None
            position, in_header = start + 2, True
        rest = text[position:]
        if in_header and len(rest) > MAX_HEADER_BYTES:
            raise ValueError(f"{path}: a header is longer than {MAX_HEADER_BYTES} bytes")
    if in_header:
        record = _Record(path, rest)
    if record is not None:
        record.finish()


def _find_header(text: bytes, start: int) -> int:
    """Where the first line end before a '>' is, or -1; much faster than to look for both."""
    found = text.find(b">", start)
    while found == start or (found > 0 and text[found - 1] != ord("\n")):
        found = text.find(b">", found + 1)
    return found - (found >= 0)


def _add(path: Path, record: _Record | None, raw: memoryview) -> ContigPiece | None:
    """Gives sequence to its record; before the first header there can only be blank lines."""
    if record is not None:
        return record.add(raw)
    if bytes(raw).strip():
        start = bytes(raw).strip()[:20]
        raise ValueError(
            f"{path}: does not start with '>' but with {start!r}; FASTA is read plain, gzipped "
            "or bgzipped"
        )
    return None
