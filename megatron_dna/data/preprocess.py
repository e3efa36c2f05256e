"""FASTA files to Megatron's .bin/.idx: the whole way from genomes to token ids on the disk.

The files are read once, checked and put as cleaned sequence into a scratch file on the disk; the
documents are planned by coordinates. Threads then read and encode them piece by piece (the C++ core
works without the GIL), and the pieces are joined and written in the order of the plan: the output
depends neither on the number of workers nor on the pieces, and no memory grows with a contig.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_dna.data import manifest as manifests
from megatron_dna.data.encode import encode_in_order
from megatron_dna.data.output import Output
from megatron_dna.genome.corpus import (
    SPLITS,
    Document,
    plan_documents,
    scan,
)
from megatron_dna.genome.fasta import sha256_of
from megatron_dna.genome.store import ReverseComplement, SequenceLike, SequenceStore
from megatron_dna.tokenizer.bpe import DnaTokenizer


@dataclass(frozen=True)
class PreprocessOptions:
    """What to make of which files.

    Attributes:
        fasta: FASTA files, plain, gzipped or bgzipped; contig names unique over all of them.
        tokenizer: a tokenizer.json.
        output_prefix: P; makes P_train.{bin,idx}, P_valid.{bin,idx} and the manifest P.json.
        reverse_complement: each document's reverse complement follows it, encoded from sequence.
        holdout: regions for P_valid, which P_train has nothing of: `20:3000001-4000000` (1-based,
            inclusive) or a whole contig.
        min_length: shorter stretches are dropped (bases).
        workers: threads that encode.
        command: recorded in the manifest.
    """

    fasta: tuple[Path, ...]
    tokenizer: Path
    output_prefix: Path
    reverse_complement: bool = False
    holdout: tuple[str, ...] = ()
    min_length: int = 0
    workers: int = 1
    command: tuple[str, ...] = ()

    def output(self, suffix: str) -> Path:
        """A file (or, for `_train`, a prefix) of the output."""
        return self.output_prefix.with_name(self.output_prefix.name + suffix)


def preprocess(options: PreprocessOptions) -> dict[str, Any]:
    """Writes the files of `options.output_prefix` and returns the manifest.

    Nothing has its real name before everything is encoded and on the disk. Older files of the same
    prefix are then replaced as a set: the old manifest goes first, the new one comes last. A run
    that was killed or interrupted goes on where it stopped, to the same bytes.

    Raises:
        ValueError: an option, a region, a FASTA file or the tokenizer is at fault; nothing is left.
        OSError: a file cannot be read or written; nothing is left but what can be gone on with.
    """
    _check_options(options)
    tokenizer = DnaTokenizer.from_file(options.tokenizer)
    _check_alphabet(options.tokenizer, tokenizer)
    head = _describe_run(options, tokenizer)
    options.output_prefix.parent.mkdir(parents=True, exist_ok=True)
    with SequenceStore(options.output_prefix.parent) as store:
        with _progress("reading", None) as bar:
            contigs = scan(options.fasta, bar.update, store.append)
        plan = plan_documents(
            contigs, options.holdout, options.min_length, both_strands=options.reverse_complement
        )
        splits = [document.split for document in plan.documents]
        fingerprint = hashlib.sha256(json.dumps(head).encode()).hexdigest()
        with Output(options.output_prefix, splits, tokenizer.vocab_size, fingerprint) as output:
            _encode_all(plan.documents, store, tokenizer, options.workers, output)
            manifest = {
                "format": manifests.FORMAT,
                "command": list(options.command),
                **head,
                "dtype": output.dtype.name,
                **manifests.describe(plan, output.tokens),
            }
            output.publish(manifest)
    return manifest


def _describe_run(options: PreprocessOptions, tokenizer: DnaTokenizer) -> dict[str, Any]:
    """All that shapes the output: where it is the same, an interrupted run can go on."""
    return {
        "versions": manifests.versions(),
        "options": {
            "reverse_complement": options.reverse_complement,
            "holdout": list(options.holdout),
            "min_length": options.min_length,
        },
        "inputs": [
            {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in options.fasta
        ],
        "tokenizer": {
            "path": str(options.tokenizer),
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
        },
    }


def _check_options(options: PreprocessOptions) -> None:
    if not options.fasta:
        raise ValueError("fasta must name at least one file")
    for key, value, minimum in (
        ("workers", options.workers, 1),
        ("min_length", options.min_length, 0),
    ):
        if value < minimum:
            raise ValueError(f"{key} ({value}) must be at least {minimum}")
    if not options.output_prefix.name or options.output_prefix.is_dir():
        raise ValueError(
            f"output_prefix ({options.output_prefix}) is a folder; add a name: files begin with it"
        )
    for path in (*options.fasta, options.tokenizer):
        if not path.is_file():
            raise ValueError(f"input file {path} is not there, or not a regular file")
    _check_outputs(options)


def _check_outputs(options: PreprocessOptions) -> None:
    """No output may take the place of a file that this tool did not make."""
    manifest = options.output(".json")
    outputs = [
        options.output(f"_{split}{suffix}") for split in SPLITS for suffix in (".bin", ".idx")
    ]
    for path in (*options.fasta, options.tokenizer):
        if path.resolve() in [output.resolve() for output in (manifest, *outputs)]:
            raise ValueError(
                f"output_prefix ({options.output_prefix}) would overwrite input {path}"
            )
    manifests.check_replaceable(manifest)


def _check_alphabet(path: Path, tokenizer: DnaTokenizer) -> None:
    missing = [base for base in "ACGT" if tokenizer.unk_id in tokenizer.encode(base)]
    if missing:
        raise ValueError(f"tokenizer {path} has no token for {', '.join(missing)}")


def _progress(action: str, num_bases: int | None) -> tqdm[Any]:
    """A progress bar in bases, on a terminal only."""
    return tqdm(total=num_bases, desc=action, unit="bp", unit_scale=True, disable=None)


def _encode_all(
    documents: Sequence[Document],
    store: SequenceStore,
    tokenizer: DnaTokenizer,
    workers: int,
    output: Output,
) -> None:
    """Encodes and adds every document that an interrupted run has not finished."""
    num_done = len(output.tokens)
    items = ((document, _sequence_of(document, store)) for document in documents[num_done:])
    with _progress("encoding", sum(document.length for document in documents)) as bar:
        bar.update(sum(document.length for document in documents[:num_done]))
        for document, ids, is_last in encode_in_order(items, tokenizer, workers):
            output.append(ids)
            if is_last:
                output.end_document(document.length)
                bar.update(document.length)


def _sequence_of(document: Document, store: SequenceStore) -> SequenceLike:
    """What a document spells, on its own strand."""
    forward = store.stretch(document.contig, document.start, document.end)
    return forward if document.strand == "+" else ReverseComplement(forward)
