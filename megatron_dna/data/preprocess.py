"""FASTA files to Megatron's .bin/.idx: the whole way from genomes to token ids on the disk.

The files are read once, checked and put as cleaned sequence into a scratch file on the disk; the
documents are planned by coordinates. Threads then read and encode them piece by piece (the C++ core
works without the GIL), and the pieces are joined and written in the order of the plan: the output
depends neither on the number of workers nor on the pieces, and no memory grows with a contig.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_dna.data import manifest as manifests
from megatron_dna.data.encode import encode_in_order
from megatron_dna.data.haplotypes import HaplotypeSource
from megatron_dna.data.options import PreprocessOptions, check_options, describe_run
from megatron_dna.data.output import Output
from megatron_dna.data.writer import dtype_of
from megatron_dna.genome.corpus import (
    ContigSummary,
    Document,
    Plan,
    Split,
    keep_new,
    plan_documents,
    scan,
)
from megatron_dna.genome.duplicates import DuplicateWindows
from megatron_dna.genome.folders import output_folder
from megatron_dna.genome.haplotype_documents import HaplotypeDocument
from megatron_dna.genome.store import ReverseComplement, SequenceLike, SequenceStore
from megatron_dna.tokenizer.bpe import DnaTokenizer


def preprocess(options: PreprocessOptions) -> dict[str, Any]:
    """Writes the files of `options.output_prefix` and returns the manifest.

    Nothing has its real name before everything is encoded and on the disk. Older files of the same
    prefix are then replaced as a set: the old manifest goes first, the new one comes last. A run
    that was killed or interrupted goes on where it stopped, to the same bytes.

    Raises:
        ValueError: an option, a region, a FASTA file or the tokenizer is at fault; nothing is left.
        OSError: a file cannot be read or written; nothing is left but what can be gone on with.
    """
    check_options(options)
    source = _open_haplotypes(options)
    folder = options.output_prefix.parent
    with output_folder(folder), SequenceStore(folder) as store, _open_windows(options) as windows:
        tokenizer, contigs = _read_inputs(options, store)
        head = describe_run(options, tokenizer)
        plan = plan_documents(
            contigs,
            options.holdout,
            options.min_length,
            both_strands=options.reverse_complement,
            exclude=options.exclude,
        )
        if options.haplotypes and options.haplotypes.no_reference:
            plan = replace(plan, documents=())
        if windows:
            plan = _drop_duplicates(plan, source, store, windows, options)
        plan, splits, num_bases = _take_part(plan, source, store, options.part)
        groups = _read_part(plan, source, store)
        fingerprint = hashlib.sha256(json.dumps(head).encode()).hexdigest()
        with Output(options.output_prefix, splits, tokenizer.vocab_size, fingerprint) as output:
            _encode_all(groups, num_bases, store, tokenizer, options.workers, output)
            num_in_reference = len(plan.documents)
            tokens = output.finished.tokens[:num_in_reference].tolist()
            manifest = {
                "format": manifests.FORMAT,
                "command": list(options.command),
                **head,
                "dtype": dtype_of(tokenizer.vocab_size).name,
                **({"duplicate_windows": _describe_windows(windows)} if windows else {}),
                **manifests.describe(plan, tokens),
            }
            if source:
                of_haplotypes = output.finished.rest(num_in_reference)
                manifests.add_haplotypes(manifest, source.describe(*of_haplotypes))
            output.publish(manifest)
    return manifest


def _read_inputs(
    options: PreprocessOptions, store: SequenceStore
) -> tuple[DnaTokenizer, list[ContigSummary]]:
    """The tokenizer, whose tables take a while, and at the same time, if there are two workers, the
    sequence. An error of either ends both."""
    with ThreadPoolExecutor(1) as pool, _progress("reading", None) as bar:
        opened = pool.submit(_open_tokenizer, options.tokenizer)
        if options.workers == 1:
            opened.result()

        def advance(num_bases: int) -> None:
            bar.update(num_bases)
            if opened.done():
                opened.result()

        contigs = scan(options.fasta, advance, store.append, options.workers > 1, options.exclude)
        return opened.result(), contigs


def _open_tokenizer(path: Path) -> DnaTokenizer:
    tokenizer = DnaTokenizer.from_file(path)
    missing = [base for base in "ACGT" if tokenizer.unk_id in tokenizer.encode(base)]
    if missing:
        raise ValueError(f"tokenizer {path} has no token for {', '.join(missing)}")
    return tokenizer


def _open_haplotypes(options: PreprocessOptions) -> HaplotypeSource | None:
    if options.haplotypes is None:
        return None
    return HaplotypeSource(options.haplotypes, options.min_length, options.reverse_complement)


def _open_windows(
    options: PreprocessOptions,
) -> AbstractContextManager[DuplicateWindows | None]:
    if not options.drop_duplicate_windows:
        return nullcontext()
    return DuplicateWindows(options.output_prefix.parent, options.drop_duplicate_windows)


def _drop_duplicates(
    plan: Plan,
    source: HaplotypeSource | None,
    store: SequenceStore,
    windows: DuplicateWindows,
    options: PreprocessOptions,
) -> Plan:
    """The plan without the windows that training has already; haplotypes come after it."""
    forward = [document for document in plan.documents if document.strand == "+"]
    with _progress("comparing", None) as bar:
        for document in forward:
            if document.split == "train":
                windows.add(_sequence_of(document, store))
                bar.update(document.length)
        if source:
            source.add_windows(plan, store, windows, bar.update)
    windows.find()
    kept = keep_new(forward, windows.new_parts(), options.min_length, options.reverse_complement)
    return replace(plan, documents=tuple(kept))


def _describe_windows(windows: DuplicateWindows) -> dict[str, int]:
    """What was dropped, counted on the forward strand."""
    return {
        "window_length": windows.window_length,
        "windows": windows.num_windows,
        "windows_dropped": windows.num_dropped,
        "bases_dropped": windows.num_bases_dropped,
    }


def _take_part(
    plan: Plan,
    source: HaplotypeSource | None,
    store: SequenceStore,
    part: tuple[Fraction, Fraction],
) -> tuple[Plan, set[Split], int]:
    """The documents whose first base is in a part of all bases, laid end to end.

    Returns:
        The plan with these of the reference alone, as `source` knows its own; the splits that they
        can be of; about their bases.
    """
    positions = list(accumulate((document.length for document in plan.documents), initial=0))
    num_bases, num_for_train = positions[-1], _count_bases(plan.documents, "train")
    if source:
        by_split = source.plan(plan, store)
        num_bases += sum(by_split.values())
        num_for_train += by_split["train"]
    if not num_for_train:
        raise ValueError("there is no document for train: no variant lies outside the holdout")
    first, last = (math.ceil(bound * num_bases) for bound in part)
    taken = plan.documents[bisect_left(positions, first) : bisect_left(positions, last)]
    splits = {document.split for document in taken}
    if source:
        splits |= source.take_part(first - positions[-1], last - positions[-1])
    return replace(plan, documents=taken), splits, last - first


def _count_bases(documents: Sequence[Document], split: Split) -> int:
    return sum(document.length for document in documents if document.split == split)


def _read_part(
    plan: Plan, source: HaplotypeSource | None, store: SequenceStore
) -> Iterator[Iterator[Document]]:
    """The documents of a part: those of the reference, then those of haplotypes, by contig."""
    yield iter(plan.documents)
    if source:
        yield from source.documents(plan, store)


def _progress(action: str, num_bases: int | None) -> tqdm[Any]:
    """A progress bar in bases, on a terminal only."""
    return tqdm(total=num_bases, desc=action, unit="bp", unit_scale=True, disable=None)


def _encode_all(
    groups: Iterator[Iterator[Document]],
    num_bases: int,
    store: SequenceStore,
    tokenizer: DnaTokenizer,
    workers: int,
    output: Output,
) -> None:
    """Encodes and adds what an interrupted run has not finished.

    Each group of documents is done, and nothing of it is kept, before the next one is asked for.
    """
    num_finished = len(output.finished)
    with _progress("encoding", num_bases) as bar:
        for documents in groups:
            num_finished -= _skip(documents, num_finished, output, bar)
            _encode(documents, store, tokenizer, workers, output, bar)


def _skip(documents: Iterator[Document], most: int, output: Output, bar: tqdm[Any]) -> int:
    """Takes the first documents, at most so many, for finished; returns their number."""
    num_skipped = 0
    for document in islice(documents, most):
        output.skip_document(document)
        bar.update(document.length)
        num_skipped += 1
    return num_skipped


def _encode(
    documents: Iterator[Document],
    store: SequenceStore,
    tokenizer: DnaTokenizer,
    workers: int,
    output: Output,
    bar: tqdm[Any],
) -> None:
    items = ((document, _sequence_of(document, store)) for document in documents)
    for document, ids, is_last in encode_in_order(items, tokenizer, workers):
        output.append(document.split, ids)
        if is_last:
            output.end_document(document)
            bar.update(document.length)


def _sequence_of(document: Document, store: SequenceStore) -> SequenceLike:
    """What a document spells, on its own strand."""
    forward: SequenceLike
    if isinstance(document, HaplotypeDocument):
        forward = document.forward
    else:
        forward = store.stretch(document.contig, document.start, document.end)
    return forward if document.strand == "+" else ReverseComplement(forward)
