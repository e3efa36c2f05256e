"""What a preprocessing run writes: a .bin/.idx pair for each split, and the journal to go on from.

The journal lists what is safe on the disk: after a kill, the same run keeps that and encodes the
rest. It is one line of JSON for every `CHECKPOINT_BASES`, each with a checksum of itself and of all
bytes written so far, so that whatever a kill left behind the last good line can be told.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import zlib
from array import array
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dna.data import manifest as manifests
from megatron_dna.data.coordinates import SUFFIX
from megatron_dna.data.document_writer import DocumentWriter
from megatron_dna.genome.corpus import SPLITS, Document, Split
from megatron_dna.tokenizer.pieces import Ids

logger = logging.getLogger(__name__)

CHECKPOINT_BASES = 1 << 25
"""After at least so many bases, at the end of a document, the journal gets a line."""
READ_BYTES = 1 << 24


class Finished:
    """Splits and tokens of finished documents, in order. Memory: 9 bytes a document.

    Attributes:
        tokens: of each.
    """

    def __init__(self) -> None:
        """Begins with none."""
        self._splits = array("b")  # numbers of SPLITS
        self.tokens = array("q")

    def append(self, split: Split, num_tokens: int) -> None:
        """Adds a document."""
        self._splits.append(SPLITS.index(split))
        self.tokens.append(num_tokens)

    def __len__(self) -> int:
        """Documents."""
        return len(self.tokens)

    def rest(self, first: int = 0) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
        """Numbers of `SPLITS`, and tokens, from a document on; both [documents]."""
        return np.array(self._splits[first:], np.int8), np.array(self.tokens[first:], np.int64)


class _State(NamedTuple):
    """The bytes of a split's .bin so far, and their CRC-32."""

    size: int
    crc32: int


class Output:
    """The files of an output prefix P, written document by document, in the order of the plan.

    Leaving the `with` block before `publish` removes them; but if the run was interrupted, by a
    signal or by the disk, and the journal has a line, P_*.bin.partial and P.journal.partial stay
    for the next run.

    Attributes:
        finished: the finished documents, those included that an earlier run finished.
    """

    def __init__(
        self, prefix: Path, splits: Collection[Split], vocab_size: int, fingerprint: str
    ) -> None:
        """Opens the temporary files, and keeps what an interrupted run left in them.

        Args:
            prefix: P.
            splits: those that documents can be in.
            vocab_size: number of ids.
            fingerprint: of everything that shapes the output; another one starts anew.

        Raises:
            OSError: a file cannot be created; BlockingIOError: another process is writing it.
        """
        self._prefix = prefix
        self._journal = _Journal(self._path(".journal.partial"), fingerprint)
        self._writers: dict[Split, DocumentWriter] = {}
        try:
            self.finished, self._states = self._journal.resume(
                {split: self._path(f"_{split}.bin.partial") for split in SPLITS if split in splits}
            )
            for split in self._states:
                numbers, tokens = self.finished.rest()
                lengths = tokens[numbers == SPLITS.index(split)].tolist()
                self._writers[split] = DocumentWriter(self._path(f"_{split}"), vocab_size, lengths)
        except BaseException:
            self._close(keep=True)
            raise
        self._num_safe = len(self.finished)
        self._num_tokens = 0
        self._num_bases = 0

    def _path(self, suffix: str) -> Path:
        return self._prefix.with_name(self._prefix.name + suffix)

    def append(self, split: Split, ids: Ids) -> None:
        """Adds ids to the document that is open; see `IndexedWriter.append`."""
        self._writers[split].append(ids)
        self._num_tokens += len(ids)

    def skip_document(self, document: Document) -> None:
        """Notes where a document lies that an earlier run finished; all of these come first."""
        self._writers[document.split].coordinates.add_document(document)

    def end_document(self, document: Document) -> None:
        """Closes the document, whose ids these were.

        Raises:
            OSError: the disk is full or fails.
        """
        writer = self._writers[document.split]
        writer.end_document()
        writer.coordinates.add_document(document)
        self.finished.append(document.split, self._num_tokens)
        self._num_tokens = 0
        self._num_bases += document.length
        if self._num_bases >= CHECKPOINT_BASES:
            self._checkpoint()
            self._num_bases = 0

    def _checkpoint(self) -> None:
        for split, writer in self._writers.items():
            writer.sync()
            size = writer.num_tokens * writer.dtype.itemsize
            path = self._path(f"_{split}.bin.partial")
            self._states[split] = _extend(path, self._states[split], size)
        self._journal.add(self.finished, self._num_safe, self._states)
        self._num_safe = len(self.finished)

    def publish(self, manifest: dict[str, Any]) -> None:
        """Gives all files their names, where there is a document; see `publish`."""
        writers = {split: writer for split, writer in self._writers.items() if writer.num_documents}
        publish(self._prefix, writers, manifest, self._journal.remove)

    def _close(self, keep: bool) -> None:
        for writer in self._writers.values():
            if keep:
                writer.leave()
            else:
                writer.abort()
        self._journal.close(keep)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        interrupted = isinstance(error, (OSError, KeyboardInterrupt, SystemExit))
        keep = interrupted and self._num_safe > 0 and self._journal.is_there
        if keep:
            logger.warning(
                "%d documents are kept in %s_*.partial; the same command goes on from there",
                *(self._num_safe, self._prefix),
            )
        self._close(keep)


def publish(
    prefix: Path,
    writers: Mapping[Split, DocumentWriter],
    manifest: dict[str, Any],
    forget: Callable[[], object] = lambda: None,
) -> None:
    """Brings everything to the disk, then gives all files their names, the manifest last.

    Args:
        prefix: P.
        writers: of the splits that there are; files of another split are removed.
        manifest: for P.json.
        forget: called when the content is safe, and before the first file has its name.

    Raises:
        OSError: the disk is full or fails.
    """
    for writer in writers.values():
        writer.prepare()
    path, partial = (prefix.with_name(prefix.name + end) for end in (".json", ".json.partial"))
    try:
        manifests.write_durably(partial, manifests.encode_manifest(manifest))
        forget()
        path.unlink(missing_ok=True)
        # Held-out files of an older run must not stay beside a training file that has them.
        for split in SPLITS:
            stem = f"{prefix.name}_{split}"
            old = [".idx"] if split in writers else [".idx", ".bin", ".bin.partial", SUFFIX]
            for end in old:
                prefix.with_name(stem + end).unlink(missing_ok=True)
        for writer in writers.values():
            writer.publish()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Journal:
    """The file P.journal.partial, locked by this process."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise BlockingIOError(error.errno, f"another process is writing {path}") from error
        except OSError:  # a file system without locks: go on unguarded, as `PartialFile` does
            logger.debug("%s cannot be locked", path)
        self.is_there = True

    def resume(self, bins: dict[Split, Path]) -> tuple[Finished, dict[Split, _State]]:
        """The documents that are safe, and the state of each file; the rest is dropped.

        Args:
            bins: the .bin.partial of each split.
        """
        finished = Finished()
        states = {split: _State(0, 0) for split in bins}
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        good = 0
        if lines and _decode(lines[0]) == {"fingerprint": self._fingerprint}:
            good = len(lines[0])
            for line in lines[1:]:
                record = _decode(line)
                found = record and _find_states(record["states"], bins, states)
                if not record or not found:
                    break
                for split, num_tokens in record["documents"]:
                    finished.append(split, num_tokens)
                states = found
                good += len(line)
        self._file.truncate(good)
        if not good:
            self._write({"fingerprint": self._fingerprint})
        return finished, states

    def add(self, finished: Finished, first: int, states: dict[Split, _State]) -> None:
        """Lists more documents as safe, from `first` on."""
        documents = [
            [SPLITS[split], int(n)] for split, n in zip(*finished.rest(first), strict=True)
        ]
        self._write({"documents": documents, "states": states})
        os.fsync(self._file.fileno())

    def _write(self, record: dict[str, Any]) -> None:
        text = json.dumps(record).encode()
        rest = memoryview(b"%08x %s\n" % (zlib.crc32(text), text))
        while rest:
            rest = rest[self._file.write(rest) :]

    def remove(self) -> None:
        """There is nothing to go on with any more."""
        if self.is_there:
            self._path.unlink(missing_ok=True)
        self.is_there = False

    def close(self, keep: bool) -> None:
        """Lets go of the file."""
        if not keep:
            self.remove()
        self._file.close()


def _decode(line: bytes) -> dict[str, Any] | None:
    """The record of a line, unless it was cut or damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def _find_states(
    recorded: dict[str, list[int]], bins: dict[Split, Path], states: dict[Split, _State]
) -> dict[Split, _State] | None:
    """The recorded states, if the files are as they say."""
    found = {}
    for split, path in bins.items():
        if split not in recorded:
            return None
        expected = _State(*recorded[split])
        if not path.exists() or path.stat().st_size < expected.size:
            return None
        if _extend(path, states[split], expected.size) != expected:
            return None
        found[split] = expected
    return found


def _extend(path: Path, state: _State, size: int) -> _State:
    """The state of a file at a later `size`."""
    position, crc32 = state
    with path.open("rb") as stream:
        stream.seek(position)
        while position < size:
            chunk = stream.read(min(READ_BYTES, size - position))
            if not chunk:
                raise OSError(f"{path} is shorter than what was written to it")
            crc32 = zlib.crc32(chunk, crc32)
            position += len(chunk)
    return _State(position, crc32)
