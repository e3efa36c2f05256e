"""The haplotypes of VCF files as documents to be encoded, and what the manifest says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_dna.genome.corpus import SPLITS, Plan
from megatron_dna.genome.haplotype_documents import HaplotypeDocument, plan_haplotype
from megatron_dna.genome.store import SequenceStore
from megatron_dna.genome.variants import ContigVariants, Haplotype, VariantOptions, read_variants
from megatron_dna.genome.vcf import SampleChoice, VcfFile, choose_samples, open_vcf


@dataclass(frozen=True)
class HaplotypeOptions:
    """Which haplotypes to write, and how much of each.

    Attributes:
        vcf: VCF or BCF files; the records of a contig must all be in one.
        samples: of the files to be read.
        variants: how genotypes become haplotypes.
        context: bases on both sides of each variant; windows that meet are one document. None
            writes whole contigs.
    """

    vcf: tuple[Path, ...]
    samples: SampleChoice = field(default_factory=SampleChoice)
    variants: VariantOptions = field(default_factory=VariantOptions)
    context: int | None = None


class HaplotypeSource:
    """The documents of haplotypes, and a row for each haplotype of each contig.

    Attributes:
        samples: those that are read, in the order of the first file.
    """

    def __init__(self, options: HaplotypeOptions) -> None:
        """Reads the headers.

        Raises:
            ValueError: a file is none of VCF, or has not the samples; or `context` is below 1.
            OSError: a file cannot be read.
        """
        if options.context is not None and options.context < 1:
            raise ValueError(f"variant_context ({options.context}) must be at least 1, or all")
        self._options = options
        self._files: list[VcfFile] = [open_vcf(path) for path in options.vcf]
        self.samples = choose_samples(self._files[0], options.samples)
        for file in self._files[1:]:
            choose_samples(file, replace(options.samples, names=self.samples, num_samples=None))
        self._contigs: list[dict[str, Any]] = []
        self._rows: dict[tuple[str, str, int], dict[str, Any]] = {}

    def documents(
        self, plan: Plan, store: SequenceStore, min_length: int, both_strands: bool
    ) -> Iterator[HaplotypeDocument]:
        """The documents, contig by contig and haplotype by haplotype.

        Args:
            plan: of the reference; its parts are cut out of every haplotype.
            store: has the reference.
            min_length: shorter documents are dropped (bases).
            both_strands: each document is followed by its reverse complement.

        Raises:
            ValueError, OSError: see `read_variants`.
        """
        contigs = {contig.name: store.stretch(contig.name) for contig in plan.contigs}
        parts = plan.parts()
        for variants in read_variants(self._files, self.samples, contigs, self._options.variants):
            self._contigs.append(_describe_contig(variants))
            for haplotype in variants.haplotypes:
                row = self._add_row(haplotype)
                for document in plan_haplotype(
                    haplotype, parts[haplotype.contig], self._options.context
                ):
                    if document.length < min_length:
                        row["short_documents_dropped"] += 1
                        continue
                    yield document
                    if both_strands:
                        yield replace(document, strand="-")

    def count(self, document: HaplotypeDocument, num_tokens: int) -> None:
        """Notes a document that was encoded."""
        haplotype = document.haplotype
        row = self._rows[haplotype.contig, haplotype.sample, haplotype.number][document.split]
        row["documents"] += 1
        row["bases"] += document.length
        row["tokens"] += num_tokens

    def describe(self) -> dict[str, Any]:
        """What the manifest says: options, and what was read and written so far."""
        variants = self._options.variants
        return {
            "options": {**asdict(variants), "variant_context": self._options.context or "all"},
            "samples": list(self.samples),
            "contigs": self._contigs,
            "haplotypes": list(self._rows.values()),
        }

    def totals(self) -> dict[str, dict[str, int]]:
        """Documents, bases and tokens of each split."""
        return {
            split: {
                key: sum(row[split][key] for row in self._rows.values())
                for key in ("documents", "bases", "tokens")
            }
            for split in SPLITS
        }

    def _add_row(self, haplotype: Haplotype) -> dict[str, Any]:
        row: dict[str, Any] = {
            "contig": haplotype.contig,
            "sample": haplotype.sample,
            "haplotype": haplotype.number,
            "bases": haplotype.length,
            "alleles": dict(haplotype.counts),
            "short_documents_dropped": 0,
            **{split: {"documents": 0, "bases": 0, "tokens": 0} for split in SPLITS},
        }
        self._rows[haplotype.contig, haplotype.sample, haplotype.number] = row
        return row


def _describe_contig(variants: ContigVariants) -> dict[str, Any]:
    return {
        "contig": variants.contig,
        "records": variants.num_records,
        "records_left_out_for_their_ref": variants.num_ref_mismatches,
        "haplotypes": len(variants.haplotypes),
    }
