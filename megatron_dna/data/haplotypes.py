"""The haplotypes of VCF files as documents to be encoded, and what the manifest says of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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
        self._first_sequence = 0  # of `_duplicates` that is ours
        self._contigs: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._row_of = array("q")  # for each document
        self._lengths = array("q")
        self._splits = array("b")  # numbers of SPLITS

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
        self._first_sequence = windows.num_sequences
        for variants in self._read(plan, store):
            for _, documents in self._cut(variants, plan):
                for document in documents:
                    if document.split == "train":
                        windows.add(document.forward)
                        advance(document.length)
        self._duplicates = windows

    def plan(self, plan: Plan, store: SequenceStore) -> list[tuple[Split, int]]:
        """Split and length of each document; memory: 17 bytes a document, and what is returned.

        Args:
            plan: of the reference; its held-out regions are cut out of every haplotype.
            store: has the reference.

        Raises:
            ValueError, OSError: see `read_variants`.
        """
        new_parts = self._new_parts()
        for variants in self._read(plan, store):
            self._contigs.append(_describe_contig(variants))
            for row, documents in self._cut(variants, plan):
                for document in self._keep_new(documents, new_parts):
                    self._row_of.append(len(self._rows))
                    self._lengths.append(document.length)
                    self._splits.append(SPLITS.index(document.split))
                self._rows.append(row)
        return [
            (SPLITS[split], length)
            for split, length in zip(self._splits, self._lengths, strict=True)
        ]

    def documents(self, plan: Plan, store: SequenceStore) -> Iterator[HaplotypeDocument]:
        """The documents, contig by contig and haplotype by haplotype; see `plan`."""
        new_parts = self._new_parts()
        for variants in self._read(plan, store):
            for _, documents in self._cut(variants, plan):
                yield from self._keep_new(documents, new_parts)

    def describe(self, first: int, tokens: Sequence[int]) -> dict[str, Any]:
        """What the manifest says.

        Args:
            first: number of the first document that was encoded.
            tokens: of each that was.
        """
        written = slice(first, first + len(tokens))
        row_of = np.array(self._row_of[written], np.int64)
        columns = {
            "documents": np.ones(len(tokens), np.int64),
            "bases": np.array(self._lengths[written], np.int64),
            "tokens": np.array(tokens, np.int64),
        }
        rows = [dict(row) for row in self._rows]
        for number, split in enumerate(SPLITS):
            inside = np.array(self._splits[written], np.int8) == number
            for key, values in columns.items():
                sums = np.zeros(len(rows), np.int64)
                np.add.at(sums, row_of[inside], values[inside])
                for row, total in zip(rows, sums.tolist(), strict=True):
                    row.setdefault(split, {})[key] = total
        return {"samples": list(self._samples), "contigs": self._contigs, "haplotypes": rows}

    def _read(self, plan: Plan, store: SequenceStore) -> Iterator[ContigVariants]:
        contigs = {contig.name: store.stretch(contig.name) for contig in plan.contigs}
        excluded = {contig.name for contig in plan.excluded}
        return read_variants(self._files, self._samples, contigs, self._options.variants, excluded)

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

    def _new_parts(self) -> Iterator[list[Interval]] | None:
        if self._duplicates is None:
            return None
        return self._duplicates.new_parts(self._first_sequence)

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
