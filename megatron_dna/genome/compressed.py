"""Files that may be compressed, read from start to end without believing what is not there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from isal import igzip, igzip_lib  # checks as gzip does, at 2.7 times its speed

CHUNK_BYTES = 1 << 18  # stays in a core's cache while it is parsed

# The empty block that ends every bgzip file (SAM specification, 4.1.2).
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def read_chunks(path: Path, kind: str) -> Iterator[bytes]:
    """The content of a file, decompressed. A file that ends early is an error, never less content.

    Args:
        path: plain, gzipped or bgzipped, told apart by content.
        kind: what the file is called in an error: "FASTA file".

    Raises:
        ValueError: the compressed content is truncated or damaged.
    """
    if not path.is_file():
        what = "must be a regular file" if path.exists() else "is not there"
        raise ValueError(f"{kind} {path} {what}")
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
            with igzip.GzipFile(fileobj=raw) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
        except EOFError as error:
            raise ValueError(
                f"{path}: the gzip content ends early; the file is truncated, copy it again"
            ) from error
        except (igzip.BadGzipFile, igzip_lib.IsalError) as error:  # type: ignore[misc]  # stubs
            raise ValueError(f"{path}: the gzip content is damaged ({error})") from error


def read_ahead(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks; a thread reads the next one while the caller works on one."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        following = pool.submit(next, chunks, None)
        while (chunk := following.result()) is not None:
            following = pool.submit(next, chunks, None)
            yield chunk


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
