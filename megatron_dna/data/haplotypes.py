"""The haplotypes of VCF files as documents to be encoded, and what the manifest says of them."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_dna.genome.corpus import SPLITS, Plan, Split, keep_new
from megatron_dna.genome.duplicates import DuplicateWindows
from megatron_dna.genome.haplotype_documents import HaplotypeDocument, plan_haplotype
from megatron_dna.genome.regions import Interval
from megatron_dna.genome.store import SequenceStore
from megatron_dna.genome.variants import ContigVariants, Haplotype, VariantOptions, read_variants
from megatron_dna.genome.vcf import (
    SampleChoice,
    VcfFile,
    choose_samples,
    open_vcf,
    read_sample_names,
)

HAPLOTYPE_KEYS = (
    "vcf",
    "samples",
    "samples_file",
    "num_samples",
    "seed",
    "haplotypes",
    "unphased",
    "on_ref_mismatch",
    "variant_context",
    "no_reference",
)
"""As users name them, on the command line and in a corpus file."""

_CHOICES = {
    "haplotypes": ("both", "1", "2"),
    "unphased": ("error", "skip", "random"),
    "on_ref_mismatch": ("error", "skip"),
}


@dataclass(frozen=True)
class HaplotypeOptions:
    """Which haplotypes to write, and how much of each.

    Attributes:
        vcf: VCF or BCF files; the records of a contig must all be in one.
        samples: of the files to be read.
        variants: how genotypes become haplotypes.
        context: bases on both sides of each variant; windows that meet are one document. None
            writes whole contigs.
        no_reference: leave the reference's own documents out, to blend the two by weight.
    """

    vcf: tuple[Path, ...]
    samples: SampleChoice = field(default_factory=SampleChoice)
    variants: VariantOptions = field(default_factory=VariantOptions)
    context: int | None = None
    no_reference: bool = False

    def describe(self) -> dict[str, Any]:
        """All that shapes the output, but for the content of the files."""
        return {
            **asdict(self.variants),
            **asdict(self.samples),
            "names": list(self.samples.names),
            "variant_context": self.context or "all",
            "no_reference": self.no_reference,
        }


def parse_haplotype_options(
    values: Mapping[str, Any], root: Path = Path()
) -> HaplotypeOptions | None:
    """Options from values named as in `HAPLOTYPE_KEYS`; None without `vcf`.

    Args:
        values: those that are given; `samples` and `vcf` are lists.
        root: what paths are relative to.

    Raises:
        ValueError: a value is not one that there is, or goes with `vcf` alone; names the key.
    """
    given = {key: v for key, v in values.items() if v is not None and v is not False and v != []}
    if "vcf" not in given:
        if given:
            raise ValueError(f"{next(iter(given))} goes with vcf, which is not given")
        return None
    for key, choices in _CHOICES.items():
        if given.get(key, choices[0]) not in choices:
            raise ValueError(f"{key} ({given[key]}) must be one of {', '.join(choices)}")
    if "samples" in given and "samples_file" in given:
        raise ValueError("samples and samples_file exclude each other; give one of them")
    names = tuple(given.get("samples", ()))
    if "samples_file" in given:
        names = read_sample_names(root / given["samples_file"])
    context = str(given.get("variant_context", "all"))
    if context != "all" and (not context.isdecimal() or int(context) < 1):
        raise ValueError(f"variant_context ({context}) must be a number of bases from 1 on, or all")
    seed = int(given.get("seed", 0))
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed ({seed}) must be at least 0 and below 2^64")
    choices_given = {key: given[key] for key in _CHOICES if key in given}
    return HaplotypeOptions(
        vcf=tuple(root / path for path in given["vcf"]),
        samples=SampleChoice(names, given.get("num_samples"), seed),
        variants=VariantOptions(**choices_given, seed=seed),
        context=None if context == "all" else int(context),
        no_reference="no_reference" in given,
    )


def count_haplotypes(options: HaplotypeOptions) -> int:
    """How many there are of a contig with two of each sample; reads a header alone.

    Raises:
        ValueError: the file is none of VCF, or has not the samples.
        OSError: the file cannot be read.
    """
    samples = choose_samples(open_vcf(options.vcf[0]), options.samples)
    return len(samples) * (2 if options.variants.haplotypes == "both" else 1)


class HaplotypeSource:
    """The documents of haplotypes: read once to plan them, and once more to encode them.

    Where windows that training has already are to be left out, once before that to find them.
    """

    def __init__(self, options: HaplotypeOptions, min_length: int, both_strands: bool) -> None:
        """Reads the headers.

        Args:
            options: see there.
            min_length: shorter documents are dropped (bases).
            both_strands: each document is followed by its reverse complement.

        Raises:
            ValueError: a file is none of VCF, or has not the samples.
            OSError: a file cannot be read.
        """
        self._options = options
        self._min_length = min_length
        self._both_strands = both_strands
        self._files: list[VcfFile] = [open_vcf(path) for path in options.vcf]
        self._samples = choose_samples(self._files[0], options.samples)
        for file in self._files[1:]:
            choose_samples(file, SampleChoice(self._samples))
        self._duplicates: DuplicateWindows | None = None
        self._first_sequences = array("q")  # of each haplotype in `_duplicates`
        self._contigs: list[dict[str, Any]] = []
        self._paths: list[Path] = []  # of each contig
        self._first_rows = [0]  # of each contig, and the number of all
        self._rows: list[dict[str, Any]] = []  # of each haplotype of each contig
        self._bases = {split: array("q") for split in SPLITS}  # of the documents of each row
        self._positions = np.zeros(1, np.int64)  # [rows + 1], bases of all documents before each
        self._part = self._taken = range(0)  # bases of the part, and rows that have some of them
        self._written = np.zeros((0, len(SPLITS), 2), np.int64)  # documents and bases of each row

    def add_windows(
        self,
        plan: Plan,
        store: SequenceStore,
        windows: DuplicateWindows,
        advance: Callable[[int], object],
    ) -> None:
        """Adds the documents for training; `plan` and `documents` then leave out what is not new.

        Args:
            plan, store: see `plan`.
            windows: has the reference's documents already; `find` is called by the caller.
            advance: told the number of bases after each document.

        Raises:
            ValueError, OSError: see `read_variants`.
        """
        for variants in self._read(plan, store):
            self._add_contig(variants, plan, windows, advance)
            del variants  # before the next contig is read
        self._first_sequences.append(windows.num_sequences)
        self._duplicates = windows

    def _add_contig(
        self,
        variants: ContigVariants,
        plan: Plan,
        windows: DuplicateWindows,
        advance: Callable[[int], object],
    ) -> None:
        for _, documents in self._cut(variants, plan):
            self._first_sequences.append(windows.num_sequences)
            for document in documents:
                if document.split == "train":
                    windows.add(document.forward)
                    advance(document.length)

    def plan(self, plan: Plan, store: SequenceStore) -> dict[Split, int]:
        """The bases of all documents, by split. Memory: a row of the manifest a haplotype.

        Args:
            plan: of the reference; its held-out regions are cut out of every haplotype.
            store: has the reference.

        Raises:
            ValueError, OSError: see `read_variants`.
        """
        new_parts = self._new_parts(0)
        for variants in self._read(plan, store):
            self._plan_contig(variants, plan, new_parts)
            del variants  # before the next contig is read
        return {split: sum(self._bases[split]) for split in SPLITS}

    def _plan_contig(
        self, variants: ContigVariants, plan: Plan, new_parts: Iterator[list[Interval]] | None
    ) -> None:
        self._contigs.append(_describe_contig(variants))
        self._paths.append(variants.path)
        for row, documents in self._cut(variants, plan):
            bases: dict[Split, int] = dict.fromkeys(SPLITS, 0)
            for document in self._keep_new(documents, new_parts):
                bases[document.split] += document.length
            for split in SPLITS:
                self._bases[split].append(bases[split])
            self._rows.append(row)
        self._first_rows.append(len(self._rows))

    def take_part(self, first: int, last: int) -> set[Split]:
        """Settles which documents to give out: those whose first base is in [first, last).

        Args:
            first, last: numbers of bases, of all documents laid end to end.

        Returns:
            The splits that they can be of.
        """
        train, valid = (np.array(self._bases[split], np.int64) for split in SPLITS)
        self._positions = np.concatenate(([0], np.cumsum(train + valid)))
        starts, ends = self._positions[:-1], self._positions[1:]
        rows = np.flatnonzero((ends > first) & (starts < last))
        self._part = range(first, last)
        self._taken = range(int(rows[0]), int(rows[-1]) + 1) if len(rows) else range(0)
        self._written = np.zeros((len(self._rows), len(SPLITS), 2), np.int64)
        start, stop = self._taken.start, self._taken.stop
        return {split for split in SPLITS if any(self._bases[split][start:stop])}

    def documents(self, plan: Plan, store: SequenceStore) -> Iterator[Iterator[HaplotypeDocument]]:
        """The documents of the part by contig, haplotype by haplotype; see `take_part`.

        A contig's documents are to be used up and let go before the next ones are asked for:
        then a single contig is in memory. Files that end before the part are not read, nor is what
        follows the contig that the part ends in.
        """
        if not self._taken:
            return
        contig = bisect_right(self._first_rows, self._taken.start) - 1
        paths = [file.path for file in self._files]
        contig = self._paths.index(self._paths[contig])  # the first one of that file
        new_parts = self._new_parts(self._taken.start)
        for variants in self._read(plan, store, paths.index(self._paths[contig])):
            yield self._documents_of(variants, plan, self._first_rows[contig], new_parts)
            contig += 1
            if self._first_rows[contig] >= self._taken.stop:
                return
            del variants  # before the next contig is read

    def _documents_of(
        self,
        variants: ContigVariants,
        plan: Plan,
        first_row: int,
        new_parts: Iterator[list[Interval]] | None,
    ) -> Iterator[HaplotypeDocument]:
        """The documents that the part has of a contig, counted in `_written`."""
        start, stop = (max(row - first_row, 0) for row in (self._taken.start, self._taken.stop))
        variants = replace(variants, haplotypes=variants.haplotypes[start:stop])
        for row, (_, documents) in enumerate(self._cut(variants, plan), first_row + start):
            position = int(self._positions[row])
            for document in self._keep_new(documents, new_parts):
                if position >= self._part.stop:
                    return
                if position >= self._part.start:
                    self._written[row, SPLITS.index(document.split)] += 1, document.length
                    yield document
                position += document.length

    def describe(
        self, splits: npt.NDArray[np.int8], num_tokens: npt.NDArray[np.int64]
    ) -> dict[str, Any]:
        """What the manifest says.

        Args:
            splits: int8 [documents], numbers of `SPLITS`, of each document that was given out.
            num_tokens: int64 [documents], of each.
        """
        num_documents = self._written[:, :, 0].sum(axis=1)
        row_of = np.repeat(np.arange(len(self._rows)), num_documents)
        tokens = np.zeros((len(self._rows), len(SPLITS)), np.int64)
        np.add.at(tokens, (row_of, splits), num_tokens)
        rows = [
            row
            | {
                split: {"documents": documents, "bases": bases, "tokens": count}
                for split, (documents, bases), count in zip(SPLITS, sums, counts, strict=True)
            }
            for row, sums, counts in zip(
                self._rows, self._written.tolist(), tokens.tolist(), strict=True
            )
        ]
        return {"samples": list(self._samples), "contigs": self._contigs, "haplotypes": rows}

    def _read(
        self, plan: Plan, store: SequenceStore, first_file: int = 0
    ) -> Iterator[ContigVariants]:
        contigs = {contig.name: store.stretch(contig.name) for contig in plan.contigs}
        excluded = {contig.name for contig in plan.excluded}
        files = self._files[first_file:]
        return read_variants(files, self._samples, contigs, self._options.variants, excluded)

    def _cut(
        self, variants: ContigVariants, plan: Plan
    ) -> Iterator[tuple[dict[str, Any], Iterator[HaplotypeDocument]]]:
        """Each haplotype's row of the manifest, and its documents that are long enough."""
        regions, gaps = plan.regions(variants.contig), plan.contig(variants.contig).gaps
        for haplotype in variants.haplotypes:
            row = _describe_haplotype(haplotype)
            documents = plan_haplotype(haplotype, regions, gaps, self._options.context)
            yield row, self._drop_short(documents, row)

    def _drop_short(
        self, documents: Iterator[HaplotypeDocument], row: dict[str, Any]
    ) -> Iterator[HaplotypeDocument]:
        for document in documents:
            if document.length >= self._min_length:
                yield document
            else:
                row["short_documents_dropped"] += 1

    def _new_parts(self, row: int) -> Iterator[list[Interval]] | None:
        """Of the documents for training of a haplotype and all that follow it."""
        if self._duplicates is None:
            return None
        return self._duplicates.new_parts(self._first_sequences[row])

    def _keep_new(
        self, documents: Iterator[HaplotypeDocument], new_parts: Iterator[list[Interval]] | None
    ) -> Iterator[HaplotypeDocument]:
        return keep_new(documents, new_parts, self._min_length, self._both_strands)


def _describe_contig(variants: ContigVariants) -> dict[str, Any]:
    return {
        "contig": variants.contig,
        "records": variants.num_records,
        "records_left_out_for_their_ref": variants.num_ref_mismatches,
        "haplotypes": len(variants.haplotypes),
    }


def _describe_haplotype(haplotype: Haplotype) -> dict[str, Any]:
    return {
        "contig": haplotype.contig,
        "sample": haplotype.sample,
        "haplotype": haplotype.number,
        "bases": haplotype.length,
        "alleles": dict(haplotype.counts),
        "short_documents_dropped": 0,
    }
