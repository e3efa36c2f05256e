"""FASTA files to Megatron's .bin/.idx: the whole way from genomes to token ids on the disk.

The files are read once, checked and put as cleaned sequence into a scratch file on the disk; the
documents are planned by coordinates. Threads then read and encode them piece by piece (the C++ core
works without the GIL), and the pieces are joined and written in the order of the plan: the output
depends neither on the number of workers nor on the pieces, and no memory grows with a contig.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_dna.data import manifest as manifests
from megatron_dna.data.coordinates import SUFFIX
from megatron_dna.data.document_writer import DocumentWriter
from megatron_dna.data.encode import encode_in_order
from megatron_dna.data.haplotypes import HaplotypeOptions, HaplotypeSource
from megatron_dna.genome.corpus import (
    SPLITS,
    Document,
    Plan,
    Split,
    plan_documents,
    scan,
)
from megatron_dna.genome.fasta import sha256_of
from megatron_dna.genome.haplotype_documents import HaplotypeDocument
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
        haplotypes: VCF files, whose haplotypes follow the reference.
        workers: threads that encode.
        command: recorded in the manifest.
    """

    fasta: tuple[Path, ...]
    tokenizer: Path
    output_prefix: Path
    reverse_complement: bool = False
    holdout: tuple[str, ...] = ()
    min_length: int = 0
    haplotypes: HaplotypeOptions | None = None
    workers: int = 1
    command: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The genomes' files."""
        return (*self.fasta, *(self.haplotypes.vcf if self.haplotypes else ()))

    def output(self, suffix: str) -> Path:
        """A file (or, for `_train`, a prefix) of the output."""
        return self.output_prefix.with_name(self.output_prefix.name + suffix)


def preprocess(options: PreprocessOptions) -> dict[str, Any]:
    """Writes the files of `options.output_prefix` and returns the manifest.

    Nothing has its real name before everything is encoded and on the disk. Older files of the same
    prefix are then replaced as a set: the old manifest goes first, the new one comes last.

    Raises:
        ValueError: an option, a region, a FASTA file or the tokenizer is at fault; nothing is left.
        OSError: a file cannot be read or written; nothing is left.
    """
    _check_options(options)
    tokenizer = DnaTokenizer.from_file(options.tokenizer)
    _check_alphabet(options.tokenizer, tokenizer)
    source = HaplotypeSource(options.haplotypes) if options.haplotypes else None
    inputs = [_describe_input(path) for path in options.inputs]
    with ExitStack() as stack:
        store = stack.enter_context(SequenceStore(_make_folder(options.output_prefix.parent)))
        with _progress("reading", None) as bar:
            contigs = scan(options.fasta, bar.update, store.append)
        plan = plan_documents(
            contigs, options.holdout, options.min_length, both_strands=options.reverse_complement
        )
        writers: dict[Split, DocumentWriter] = {
            split: stack.enter_context(
                DocumentWriter(options.output(f"_{split}"), tokenizer.vocab_size)
            )
            for split in SPLITS
            if any(document.split == split for document in plan.documents)
        }
        tokens = _encode_all(options, plan, source, store, tokenizer, writers)
        manifest = {
            "format": manifests.FORMAT,
            "command": list(options.command),
            "versions": manifests.versions(),
            "options": {
                "reverse_complement": options.reverse_complement,
                "holdout": list(options.holdout),
                "min_length": options.min_length,
            },
            "inputs": inputs,
            "tokenizer": {
                "path": str(options.tokenizer),
                "sha256": tokenizer.sha256,
                "vocab_size": tokenizer.vocab_size,
            },
            "dtype": writers["train"].dtype.name,
            **manifests.describe(plan, tokens),
        }
        if source is not None:
            manifests.add_haplotypes(manifest, source.describe(), source.totals())
        _publish(options, writers, manifest)
    return manifest


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
    for path in (*options.inputs, options.tokenizer):
        if not path.is_file():
            raise ValueError(f"input file {path} is not there, or not a regular file")
    _check_outputs(options)


def _check_outputs(options: PreprocessOptions) -> None:
    """No output may take the place of a file that this tool did not make."""
    manifest = options.output(".json")
    outputs = [
        options.output(f"_{split}{suffix}")
        for split in SPLITS
        for suffix in (".bin", ".idx", SUFFIX)
    ]
    for path in (*options.inputs, options.tokenizer):
        if path.resolve() in [output.resolve() for output in (manifest, *outputs)]:
            raise ValueError(
                f"output_prefix ({options.output_prefix}) would overwrite input {path}"
            )
    manifests.check_replaceable(manifest)


def _check_alphabet(path: Path, tokenizer: DnaTokenizer) -> None:
    missing = [base for base in "ACGT" if tokenizer.unk_id in tokenizer.encode(base)]
    if missing:
        raise ValueError(f"tokenizer {path} has no token for {', '.join(missing)}")


def _describe_input(path: Path) -> dict[str, Any]:
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _progress(action: str, num_bases: int | None) -> tqdm[Any]:
    """A progress bar in bases, on a terminal only."""
    return tqdm(total=num_bases, desc=action, unit="bp", unit_scale=True, disable=None)


def _encode_all(
    options: PreprocessOptions,
    plan: Plan,
    source: HaplotypeSource | None,
    store: SequenceStore,
    tokenizer: DnaTokenizer,
    writers: dict[Split, DocumentWriter],
) -> list[int]:
    """Encodes and adds every document; returns the tokens of each of the plan."""
    tokens: list[int] = []
    num_tokens = 0
    documents: Iterable[Document] = plan.documents
    if source is not None:
        haplotypes = source.documents(plan, store, options.min_length, options.reverse_complement)
        documents = chain(documents, haplotypes)
    items = ((document, _sequence_of(document, store)) for document in documents)
    total = sum(document.length for document in plan.documents)
    with _progress("encoding", total) as bar:
        for document, ids, is_last in encode_in_order(items, tokenizer, options.workers):
            writers[document.split].append(ids)
            num_tokens += len(ids)
            if is_last:
                writers[document.split].end_document(document)
                if source is not None and isinstance(document, HaplotypeDocument):
                    source.count(document, num_tokens)
                else:
                    tokens.append(num_tokens)
                num_tokens = 0
                bar.update(document.length)
    return tokens


def _sequence_of(document: Document, store: SequenceStore) -> SequenceLike:
    """What a document spells, on its own strand."""
    forward: SequenceLike
    if isinstance(document, HaplotypeDocument):
        forward = document.forward
    else:
        forward = store.stretch(document.contig, document.start, document.end)
    return forward if document.strand == "+" else ReverseComplement(forward)


def _publish(
    options: PreprocessOptions, writers: dict[Split, DocumentWriter], manifest: dict[str, Any]
) -> None:
    """Brings everything to the disk, then gives all files their names, the manifest last."""
    for writer in writers.values():
        writer.prepare()
    path, partial = options.output(".json"), options.output(".json.partial")
    try:
        manifests.write_durably(partial, manifests.encode_manifest(manifest))
        path.unlink(missing_ok=True)
        # Held-out files of an older run must not stay beside a training file that may hold them.
        for split in SPLITS:
            options.output(f"_{split}.idx").unlink(missing_ok=True)
            if split not in writers:
                for suffix in (".bin", SUFFIX):
                    options.output(f"_{split}{suffix}").unlink(missing_ok=True)
        for writer in writers.values():
            writer.publish()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
