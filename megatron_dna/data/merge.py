"""Shards of a source joined to the files that one run over all of it would have written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from megatron_dna.data import manifest as manifests
from megatron_dna.data.coordinates import DocumentCoordinates
from megatron_dna.data.document_writer import DocumentWriter
from megatron_dna.data.options import PreprocessOptions, describe_options, describe_run
from megatron_dna.data.output import publish
from megatron_dna.data.writer import IndexedWriter, document_lengths, dtype_of
from megatron_dna.genome.corpus import SPLITS, Split
from megatron_dna.tokenizer.bpe import DnaTokenizer

COPY_BYTES = 1 << 24


def merge_parts(options: PreprocessOptions, parts: Sequence[PreprocessOptions]) -> dict[str, Any]:
    """Joins the files of a source's parts, without encoding anything again.

    Args:
        options: of the whole source.
        parts: of each part, in order.

    Returns:
        The manifest of the whole.

    Raises:
        ValueError: a part is missing, or of other options, inputs or versions.
        OSError: a file cannot be read or written; nothing is left of the whole, the parts stay.
    """
    tokenizer = DnaTokenizer.from_file(options.tokenizer)
    head = describe_run(options, tokenizer)
    prefixes: dict[Split, list[Path]] = {split: [] for split in SPLITS}
    manifest = {
        "format": manifests.FORMAT,
        "command": list(options.command),
        **head,
        "dtype": dtype_of(tokenizer.vocab_size).name,
        **manifests.join(_read_parts(parts, head, prefixes)),
    }
    with ExitStack() as stack:
        writers: dict[Split, DocumentWriter] = {}
        for split in SPLITS:
            if prefixes[split]:
                prefix = options.output(f"_{split}")
                writers[split] = _join(prefix, prefixes[split], tokenizer.vocab_size)
                stack.enter_context(writers[split])
                for part in prefixes[split]:
                    writers[split].coordinates.add_all(DocumentCoordinates.open(part))
        publish(options.output_prefix, writers, manifest)
    return manifest


def _join(prefix: Path, parts: Sequence[Path], vocab_size: int) -> DocumentWriter:
    """A writer that has the documents of some pairs, in order, but not where they lie."""
    lengths: list[int] = []
    for part in parts:
        found = document_lengths(part)
        size = part.with_name(part.name + ".bin").stat().st_size
        if sum(found) * dtype_of(vocab_size).itemsize != size:
            raise ValueError(f"{part}.bin is not what its .idx describes; run its shard again")
        lengths += found
    _join_bins(prefix, parts, vocab_size)
    return DocumentWriter(prefix, vocab_size, lengths)


def _join_bins(prefix: Path, parts: Sequence[Path], vocab_size: int) -> None:
    """Copies all .bin to PREFIX.bin.partial, which a writer then goes on with.

    Another writer has the lock on the file meanwhile, and removes it after an error.
    """
    path = prefix.with_name(prefix.name + ".bin.partial")
    with IndexedWriter(prefix, vocab_size) as writer:
        try:
            with path.open("r+b") as joined:
                for part in parts:
                    with part.with_name(part.name + ".bin").open("rb") as stream:
                        shutil.copyfileobj(stream, joined, COPY_BYTES)
        except OSError as error:
            raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
        writer.leave()


def _read_parts(
    parts: Sequence[PreprocessOptions],
    head: Mapping[str, Any],
    prefixes: Mapping[Split, list[Path]],
) -> Iterator[dict[str, Any]]:
    """The manifest of each part, checked; `prefixes` gets those of its splits that have documents.

    Args:
        parts: in order.
        head: `describe_run` of the whole.
        prefixes: filled in.
    """
    for part in parts:
        manifest = _read_part(part, {**head, "options": describe_options(part)})
        for split, found in prefixes.items():
            if manifest["totals"][split]["documents"]:
                found.append(part.output(f"_{split}"))
        yield manifest


def _read_part(part: PreprocessOptions, head: Mapping[str, Any]) -> dict[str, Any]:
    path = part.output(".json")
    if not path.exists():
        raise ValueError(f"{path} is not there: run its shard, then --merge again")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key, value in head.items():
        if manifest.get(key) != json.loads(json.dumps(value)):
            raise ValueError(
                f"{path}: {key} is not what it is now; run its shard again, or undo the change"
            )
    for split, total in manifest["totals"].items():
        size = total["tokens"] * np.dtype(manifest["dtype"]).itemsize
        bin_path = part.output(f"_{split}.bin")
        if (bin_path.stat().st_size if bin_path.exists() else 0) != size:
            raise ValueError(f"{bin_path} must have {size} bytes; run its shard again")
    return manifest
