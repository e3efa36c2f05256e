"""FASTA files, plain, gzipped or bgzipped, read contig by contig in bounded memory.

Files are told apart by content, not by name. Every flaw that would silently lose sequence is an
error here: a file that ends early, an empty record, a name that comes twice, letters that are not
nucleotides.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_dna.genome.sequence import clean_sequence

CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20

# The empty block that ends every bgzip file (SAM specification, 4.1.2).
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


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


def read_fasta(path: Path) -> Iterator[Contig]:
    """The contigs of a FASTA file in order. Memory: the largest contig and a few MB.

    Lower case becomes upper case, IUPAC ambiguity codes N; CRLF, blank lines and spaces are fine.

    Raises:
        ValueError: not FASTA, empty, truncated or damaged, a record without name or sequence, a
            name that comes twice, or a letter that is not a nucleotide. Names file and contig.
        OSError: the file cannot be read.
    """
    names: set[str] = set()
    for contig in _parse(path):
        if contig.name in names:
            raise ValueError(f"{path}: contig {contig.name!r} comes twice; names must be unique")
        names.add(contig.name)
        yield contig
        del contig  # or two contigs would be in memory while the next one is read
    if not names:
        raise ValueError(f"{path}: no sequence in it; a FASTA file has at least one record")


def read_fastas(paths: list[Path]) -> Iterator[tuple[Path, Contig]]:
    """The contigs of several FASTA files, each with its file.

    Raises:
        ValueError: as `read_fasta`, or two files have a contig of the same name.
    """
    owners: dict[str, Path] = {}
    for path in paths:
        for contig in read_fasta(path):
            first = owners.setdefault(contig.name, path)
            if first != path or paths.count(path) > 1:
                raise ValueError(
                    f"contig {contig.name!r} is in {first} and again in {path}; names must be "
                    "unique: rename it, or give the files in separate runs"
                )
            yield path, contig
            del contig


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
        self.sequence = bytearray()
        self.num_ambiguous = 0

    def add(self, raw: memoryview) -> None:
        try:
            bases, num_ambiguous = clean_sequence(raw, len(self.sequence))
        except ValueError as error:
            raise ValueError(
                f"{self.path}: contig {self.name!r}: {error}; is this DNA, not protein or RNA?"
            ) from error
        self.sequence += bases
        self.num_ambiguous += num_ambiguous

    def finish(self) -> Contig:
        if not self.sequence:
            raise ValueError(f"{self.path}: contig {self.name!r} has no sequence")
        return Contig(self.name, self.sequence, self.num_ambiguous)


def _parse(path: Path) -> Iterator[Contig]:
    record: _Record | None = None
    in_header = False
    rest = b"\n"  # a file's first line counts as the start of a line
    for chunk in _read_chunks(path):
        text = rest + chunk
        position = 0
        while True:
            if in_header:
                end = text.find(b"\n", position)
                if end < 0:
                    break
                record = _Record(path, text[position:end])
                position, in_header = end, False
            start = text.find(b"\n>", position)
            # A line end that closes the chunk may open a header with the next one: keep it back.
            end = start if start >= 0 else len(text) - text.endswith(b"\n")
            _add(path, record, memoryview(text)[position:end])
            position = end
            if start < 0:
                break
            if record is not None:
                yield record.finish()
                record = None
            position, in_header = start + 2, True
        rest = text[position:]
        if in_header and len(rest) > MAX_HEADER_BYTES:
            raise ValueError(f"{path}: a header is longer than {MAX_HEADER_BYTES} bytes")
    if in_header:
        record = _Record(path, rest)
    if record is not None:
        yield record.finish()


def _add(path: Path, record: _Record | None, raw: memoryview) -> None:
    """Gives sequence to its record; before the first header there can only be blank lines."""
    if record is not None:
        record.add(raw)
    elif bytes(raw).strip():
        start = bytes(raw).strip()[:20]
        raise ValueError(
            f"{path}: does not start with '>' but with {start!r}; FASTA is read plain, gzipped "
            "or bgzipped"
        )


def _read_chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, decompressed. A file that ends early is an error, never less content.

    Raises:
        ValueError: the compressed content is truncated or damaged.
    """
    if not path.is_file():
        what = "must be a regular file: it is read twice" if path.exists() else "is not there"
        raise ValueError(f"FASTA file {path} {what}")
    with path.open("rb") as raw:
        start = raw.read(18)
        raw.seek(0)
        if not start.startswith(b"\x1f\x8b"):
            while chunk := raw.read(CHUNK_BYTES):
                yield chunk
            return
        if start[12:14] == b"BC" and start[3] & 4:  # the extra field that makes gzip bgzip
            _check_bgzf_end(path, raw)
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
        except EOFError as error:
            raise ValueError(
                f"{path}: the gzip content ends early; the file is truncated, copy it again"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: the gzip content is damaged ({error})") from error


def _check_bgzf_end(path: Path, raw: BinaryIO) -> None:
    """A bgzip file that was cut between two blocks is still valid gzip: its last block tells."""
    raw.seek(0, 2)
    raw.seek(max(raw.tell() - len(_BGZF_END), 0))
    if raw.read() != _BGZF_END:
        raise ValueError(
            f"{path}: the end-of-file block of bgzip is missing; the file is truncated, copy it "
            "again"
        )
    raw.seek(0)
