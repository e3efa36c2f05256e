"""Shards of a source joined to the files that one run over all of it would have written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from megatron_dna.data import manifest as manifests
from megatron_dna.data.coordinates import DocumentCoordinates
from megatron_dna.data.document_writer import DocumentWriter
from megatron_dna.data.output import publish
from megatron_dna.data.preprocess import PreprocessOptions, describe_run
from megatron_dna.data.writer import document_lengths
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
        OSError: a file cannot be read or written.
    """
    tokenizer = DnaTokenizer.from_file(options.tokenizer)
    found = [_read_part(part, describe_run(part, tokenizer)) for part in parts]
    manifest = {
        "format": manifests.FORMAT,
        "command": list(options.command),
        **describe_run(options, tokenizer),
        "dtype": found[0]["dtype"],
        **manifests.join(found),
    }
    with ExitStack() as stack:
        writers: dict[Split, DocumentWriter] = {}
        for split in SPLITS:
            prefixes = [
                part.output(f"_{split}")
                for part, found_part in zip(parts, found, strict=True)
                if found_part["totals"][split]["documents"]
            ]
            if not prefixes:
                continue
            _join_bins(options, parts, split)
            writer = DocumentWriter(
                options.output(f"_{split}"),
                tokenizer.vocab_size,
                [length for path in prefixes for length in document_lengths(path)],
            )
            writers[split] = writer
            stack.enter_context(writer)
            for path in prefixes:
                writer.coordinates.add_all(DocumentCoordinates.open(path))
        publish(options.output_prefix, writers, manifest)
    return manifest


def _join_bins(
    options: PreprocessOptions, parts: Sequence[PreprocessOptions], split: Split
) -> None:
    """Writes the .bin.partial that the whole's writer goes on with, with nothing to add."""
    with options.output(f"_{split}.bin.partial").open("wb") as joined:
        for part in parts:
            path = part.output(f"_{split}.bin")
            if path.exists():
                with path.open("rb") as stream:
                    shutil.copyfileobj(stream, joined, COPY_BYTES)


def _read_part(part: PreprocessOptions, head: Mapping[str, Any]) -> dict[str, Any]:
    path = part.output(".json")
    if not path.exists():
        raise ValueError(f"{path} is not there: run its shard, then --merge again")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key, value in head.items():
        if manifest[key] != json.loads(json.dumps(value)):
            raise ValueError(
                f"{path}: {key} is not what it is now; run its shard again, or undo the change"
            )
    for split, total in manifest["totals"].items():
        size = total["tokens"] * np.dtype(manifest["dtype"]).itemsize
        bin_path = part.output(f"_{split}.bin")
        if (bin_path.stat().st_size if bin_path.exists() else 0) != size:
            raise ValueError(f"{bin_path} must have {size} bytes; run its shard again")
    return manifest
