"""What the tests of variants share: files to read, and a slow way to know their haplotypes."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pysam
import pytest

from megatron_dna.genome.variants import ContigVariants, VariantOptions, read_variants
from megatron_dna.genome.vcf import SampleChoice, choose_samples, open_vcf
from tests.unit.genome_files import ROOT

EXAMPLE_VCF = ROOT / "examples/data/human_kgp_chr20_20samples.vcf.gz"
SAMPLES = ("a", "b")
VARIANT_HOLDOUT = ("x:901-1500", "x:2301-2310", "y")
SHARED_VCF = ROOT / "../shared/data/human_kgp_chr20/reference.vcf.gz"

needs_bcftools = pytest.mark.skipif(
    shutil.which("bcftools") is None, reason="bcftools is not installed (apt-get install bcftools)"
)


class Record(NamedTuple):
    """A line of a VCF file; `position` is 0-based."""

    contig: str
    position: int
    ref: str
    alts: tuple[str, ...]
    genotypes: tuple[str, ...]

    def line(self) -> str:
        fixed = [self.contig, str(self.position + 1), ".", self.ref, ",".join(self.alts) or "."]
        return "\t".join([*fixed, ".", ".", ".", "GT", *self.genotypes]) + "\n"


class Edit(NamedTuple):
    """The bases [start, end) of the reference become `alt`."""

    start: int
    end: int
    alt: str


@dataclass(frozen=True)
class Text:
    """A sequence in memory, as `SequenceLike` wants it."""

    bases: str

    @property
    def length(self) -> int:
        return len(self.bases)

    def read(self, start: int, end: int) -> bytes:
        assert 0 <= start <= end <= len(self.bases)
        return self.bases[start:end].encode()


def real_records(start: int, end: int, samples: Sequence[str]) -> list[Record]:
    """The example's records from a base of contig 20 to another one, with these samples only."""
    with pysam.VariantFile(str(EXAMPLE_VCF)) as file:
        lines = [str(record).rstrip().split("\t") for record in file.fetch("20", start, end)]
        columns = [list(file.header.samples).index(sample) for sample in samples]
    return [
        Record(
            "20",
            int(line[1]) - 1,
            line[3],
            tuple(line[4].split(",")),
            tuple(line[9 + column] for column in columns),
        )
        for line in lines
    ]


def vcf_text(
    records: Sequence[Record], samples: Sequence[str], contigs: Sequence[str] | None = None
) -> str:
    names = dict.fromkeys(record.contig for record in records) if contigs is None else contigs
    header = "##fileformat=VCFv4.2\n" + "".join(f"##contig=<ID={name}>\n" for name in names)
    header += '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    fixed = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"]
    return header + "\t".join([*fixed, *samples]) + "\n" + "".join(r.line() for r in records)


def write_vcf(path: Path, text: str) -> Path:
    """A bgzipped and indexed VCF file."""
    plain = path.with_suffix(".txt")
    plain.write_text(text)
    pysam.tabix_compress(str(plain), str(path), force=True)
    pysam.tabix_index(str(path), preset="vcf", force=True)
    return path


def read_all(
    path: Path, contigs: dict[str, str], options: VariantOptions | None = None
) -> list[ContigVariants]:
    """Every sample's haplotypes."""
    vcf = open_vcf(path)
    texts = {name: Text(bases) for name, bases in contigs.items()}
    samples = choose_samples(vcf, SampleChoice())
    return list(read_variants([vcf], samples, texts, options or VariantOptions()))


def bcftools_consensus(fasta: Path, vcf: Path, sample: str, number: int) -> dict[str, str]:
    """The haplotype of every contig by `bcftools consensus`, in upper case."""
    command = ["bcftools", "consensus", "-s", sample, "-H", str(number), "-f", fasta, vcf]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    contigs = {}
    for entry in done.stdout.split(">")[1:]:
        name, *lines = entry.split("\n")
        contigs[name] = "".join(lines).upper()
    return contigs


def edits_of(records: Sequence[Record], sample: int, number: int) -> list[Edit]:
    """A haplotype's edits by the rules of docs/data.md; the genotypes are phased."""
    edits: list[Edit] = []
    taken, inserted = -1, False  # the last base of the REFs applied; if the last one was longer
    for record in records:
        allele = record.genotypes[sample].split("|")[number - 1]
        if allele in ".0":
            continue
        alt = record.alts[int(allele) - 1]
        prefix = common_prefix(record.ref, alt)
        suffix = common_prefix(record.ref[prefix:][::-1], alt[prefix:][::-1])
        is_indel = len(record.ref) != len(alt)
        is_indel &= prefix + suffix == min(len(record.ref), len(alt)) and prefix > 0
        follows = record.position == taken and is_indel and not inserted
        if record.position <= taken and not follows:
            continue
        taken, inserted = record.position + len(record.ref) - 1, len(alt) > len(record.ref)
        end = record.position + len(record.ref) - suffix
        edits.append(Edit(record.position + prefix, end, alt[prefix : len(alt) - suffix]))
    return edits


def common_prefix(a: str, b: str) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def spell(reference: str, edits: Sequence[Edit], start: int = 0, end: int | None = None) -> str:
    """Bases of the reference with the edits applied that lie inside or at the ends.

    An edit of equal length is applied base by base.
    """
    end = len(reference) if end is None else end
    parts, position = [], start
    for edit in edits:
        if len(edit.alt) == edit.end - edit.start:
            inside = range(max(edit.start, start), min(edit.end, end))
            edit = Edit(
                inside.start, inside.stop, "".join(edit.alt[i - edit.start] for i in inside)
            )
            if not inside:
                continue
        if start <= edit.start and edit.end <= end:
            parts += [reference[position : edit.start], edit.alt]
            position = edit.end
    return "".join([*parts, reference[position:end]])


def random_records(draw: random.Random, contig: str, reference: str) -> list[Record]:
    """Records that overlap, touch, come twice, and lie at the contig's ends."""
    records = []
    at = draw.choice([0, 0, draw.randrange(len(reference))])
    while at < len(reference):
        ref = reference[at : at + draw.choice([1, 1, 1, 2, 3, 5])]
        alts: list[str] = []
        while len(alts) < draw.choice([1, 1, 2, 3]):
            alt = draw.choice([random_allele(draw), ref[0] + random_allele(draw)])
            alt = draw.choice([alt, alt, ref[:1], ref + random_allele(draw), alt + ref[-1:]])
            if alt != ref and alt not in alts:
                alts.append(alt)
        alleles = ["0", ".", *map(str, range(1, len(alts) + 1)), *map(str, range(1, len(alts) + 1))]
        genotypes = tuple(f"{draw.choice(alleles)}|{draw.choice(alleles)}" for _ in SAMPLES)
        records.append(Record(contig, at, ref, tuple(alts), genotypes))
        at += draw.choice([0, 0, 1, 1, 2, 3, draw.randrange(1, 30)])
    return records


def random_allele(draw: random.Random) -> str:
    return "".join(draw.choice("ACGT") for _ in range(draw.choice([1, 1, 2, 3, 6])))


def random_case(seed: int, num_contigs: int = 12) -> tuple[dict[str, str], list[Record]]:
    draw = random.Random(seed)
    letters = draw.choice(["ACGT", "AC", "A"])  # few letters: alleles that can be aligned anywhere
    contigs = {
        f"c{i}": "".join(draw.choice(letters) for _ in range(draw.choice([1, 5, 60, 61, 200])))
        for i in range(num_contigs)
    }
    contigs[f"c{num_contigs}"] = "ACGT"  # ends the file: no variants in it
    records = [r for name in list(contigs)[:-1] for r in random_records(draw, name, contigs[name])]
    return contigs, records
