"""Malformed VCF files: each is one error that says where it is, what the rule is and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pysam
import pytest

from megatron_dna.genome.variants import VariantOptions, read_variants
from megatron_dna.genome.vcf import SampleChoice, VcfFile, choose_samples, open_vcf
from tests.unit.variant_files import EXAMPLE_VCF, Record, Text, read_all, vcf_text, write_vcf

CONTIGS = {"c": "ACGTACGTAC", "d": "GGGG"}
GOOD = (
    Record("c", 1, "C", ("T",), ("0|1", "1|1")),
    Record("c", 4, "A", ("G",), ("1|0", "0|0")),
)


def broken(*records: Record) -> str:
    return vcf_text([*GOOD, *records], ("one", "two"), contigs=("c", "d", "chrX"))


def record(
    contig: str = "c",
    position: int = 5,
    ref: str = "C",
    alts: tuple[str, ...] = ("T",),
    genotypes: tuple[str, ...] = ("0|1", "0|0"),
) -> Record:
    return Record(contig, position, ref, alts, genotypes)


ERRORS = {
    "unknown contig": (
        broken(record("chrX")),
        r"contig 'chrX', position 6: the FASTA files have no such contig, but c, d; rename .*"
        r"bcftools annotate --rename-chrs.*bcftools view -t",
    ),
    "unsorted": (
        broken(record(), record(position=3)),
        r"contig 'c', position 4 comes after position 6; records must be sorted .*bcftools sort",
    ),
    "contig comes back": (
        broken(record("d", 0, "G"), record()),
        r"contig 'c', position 6: the contig comes a second time.*bcftools sort",
    ),
    "no GT": (
        broken(record()).replace("GT\t0|1\t0|0", "DP\t7\t8"),
        r"contig 'c', position 6: FORMAT has no GT; every record must",
    ),
    "one and two alleles": (
        broken(record(genotypes=("0|1", "1"))),
        r"contig 'c', position 6: sample 'two' has 1 allele.* here and 2 before; "
        r".*as many on all of a contig",
    ),
    "two alleles, first of REF, and one": (
        vcf_text([GOOD[1], record(genotypes=("0|1", "1"))], ("one", "two"), contigs="c"),
        r"contig 'c', position 6: sample 'two' has 1 allele.* here and 2 before; "
        r".*as many on all of a contig",
    ),
    "two alleles, one of them missing, and one": (
        vcf_text([record(position=4, ref="A", genotypes=(".|1",)), record(genotypes=("1",))], "a"),
        r"contig 'c', position 6: sample 'a' has 1 allele.* here and 2 before; ",
    ),
    "three alleles everywhere": (
        vcf_text([record(genotypes=("0|1|0", "0|1|1"))], ("one", "two")),
        r"contig 'c', position 6: sample 'one' has 3 allele.* here; a sample must have one or two",
    ),
    "three missing alleles": (
        broken(record(genotypes=(".|.|.", "0|0"))),
        r"contig 'c', position 6: sample 'one' has 3 allele.*one or two.*bcftools \+fixploidy",
    ),
    "three alleles": (
        broken(record(genotypes=("0|1|0", "0|0"))),
        r"contig 'c', position 6: sample 'one' has 3 allele.*one or two.*bcftools \+fixploidy",
    ),
    "sample twice": (
        broken().replace("one\ttwo", "one\tone"),
        r"sample 'one' is in the header twice; rename one \(bcftools reheader\)",
    ),
    "no sample": (
        re.sub(r"\tFORMAT.*", "", broken()),
        r"the line #CHROM names no samples; haplotypes need genotypes",
    ),
    "no record": (vcf_text([], ("one",)), r"there is no record in it; is the file complete"),
    "empty": ("", r"there is no line #CHROM in it; the file is empty or no VCF file"),
    "FASTA": (
        ">c\nACGT\n",
        r"there is no line #CHROM before the first record, but b'>c'; is this a VCF",
    ),
    "another REF": (
        broken(record(ref="G")),
        r"contig 'c', position 6: REF 'G' is not the FASTA's 'C'; give the FASTA .* or "
        r"--on-ref-mismatch skip",
    ),
    "REF behind the end": (
        broken(record(position=9, ref="CA")),
        r"contig 'c', position 10: REF 'CA' lies outside of the contig's 10 bases",
    ),
    "POS is the largest number": (
        broken(record(position=2**63 - 2)),
        r"contig 'c', position 9223372036854775807: REF 'C' lies outside of the contig's 10 bases",
    ),
    "unphased": (
        broken(record(genotypes=("0|1", "0/1"))),
        r"contig 'c', position 6: sample 'two' has an unphased genotype; phase the file, or give "
        r"--unphased skip or random",
    ),
    "no such allele": (
        broken(record(genotypes=("2|0", "0|0"))),
        r"contig 'c', position 6: sample 'one' has allele 2, and ALT has 1",
    ),
    **{
        f"no genotype: {text}": (
            broken(record(genotypes=("0|1", text))),
            rf"contig 'c', position 6: sample 'two': '{re.escape(text)}' does not have alleles "
            r"parted by",
        )
        for text in ("x|0", "-1|0", "0;1", "0|", "", "9999999999|0")
    },
    "no nucleotide": (
        broken(record(alts=("E",))),
        r"contig 'c', position 6: ALT 'E' has letters that are not nucleotides",
    ),
    "no nucleotide in REF": (
        broken(record(ref="E")),
        r"contig 'c', position 6: REF 'E' has letters that are not nucleotides",
    ),
    "a column is not there": (
        broken(record(genotypes=("0|1",))),
        r"contig 'c', position 6: there are 1 sample columns here and 2 in the header",
    ),
    "ends within a line": (
        broken(record())[:-20],
        r"contig 'c', position 6: the line ends early: there must be CHROM to FORMAT",
    ),
    "ends before the samples": (
        broken(record()).removesuffix("\t0|1\t0|0\n"),
        r"contig 'c', position 6: the line ends early: there must be CHROM to FORMAT",
    ),
    "REF is empty": (
        broken(record(ref="")),
        r"contig 'c', position 6: the line ends early: there must be CHROM to FORMAT",
    ),
    "ALT is empty": (
        broken(record()).replace("\t6\t.\tC\tT\t", "\t6\t.\tC\t\t"),
        r"contig 'c', position 6: the line ends early: there must be CHROM to FORMAT",
    ),
    "a column too many": (
        broken(record(genotypes=("0|1", "0|0", "0|0"))),
        r"contig 'c', position 6: there are 3 sample columns here and 2 in the header",
    ),
    "a negative number": (
        broken(record()).replace("\t6\t", "\t-6\t"),
        r"contig 'c', POS '-6' is not a number",
    ),
    "no number": (
        broken(record()).replace("\t6\t", "\t6x\t"),
        r"contig 'c', POS '6x' is not a number",
    ),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.values(), ids=list(ERRORS))
def test_a_malformed_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.vcf"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        read_all(path, CONTIGS)


def test_the_file_without_those_flaws_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.vcf"
    path.write_text(broken(record(), record("d", 0, "G")))
    assert [variants.contig for variants in read_all(path, CONTIGS)] == ["c", "d"]


def test_no_index_is_needed(tmp_path: Path) -> None:
    path = write_vcf(tmp_path / "v.vcf.gz", broken())
    expected = [h.read(0, h.length) for v in read_all(path, CONTIGS) for h in v.haplotypes]
    path.with_name("v.vcf.gz.tbi").unlink()
    assert [h.read(0, h.length) for v in read_all(path, CONTIGS) for h in v.haplotypes] == expected


@pytest.mark.parametrize("lost", [28, 29, 5000, 150_000])
def test_a_truncated_file_is_an_error(tmp_path: Path, lost: int) -> None:
    """Cut between two blocks (28: the one that marks the end) or inside of one."""
    path = tmp_path / "cut.vcf.gz"
    path.write_bytes(EXAMPLE_VCF.read_bytes()[:-lost])
    with pytest.raises(ValueError, match=f"{path}: .*truncated, copy it again"):
        open_vcf(path)


def test_a_damaged_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(EXAMPLE_VCF.read_bytes())
    content[100_000:100_010] = bytes(10)
    path = tmp_path / "damaged.vcf.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: the gzip content is damaged"):
        list(open_vcf(path).read_lines())


def test_a_truncated_bcf_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "v.bcf"
    with (
        pysam.VariantFile(str(EXAMPLE_VCF)) as source,
        pysam.VariantFile(str(path), "wb", header=source.header) as copy,
    ):
        for line in source:
            copy.write(line)
    path.write_bytes(path.read_bytes()[:-50_000])
    with pytest.raises(ValueError, match=f"{path}: .*truncated"):
        open_vcf(path)


def test_a_contig_in_two_files_is_an_error(tmp_path: Path) -> None:
    paths = [tmp_path / "a.vcf", tmp_path / "b.vcf"]
    for path in paths:
        path.write_text(broken())
    contigs = {name: Text(bases) for name, bases in CONTIGS.items()}
    with pytest.raises(ValueError, match=r"b\.vcf: contig 'c', position 2: .* in .*a\.vcf too"):
        list(read_variants([open_vcf(p) for p in paths], ["one"], contigs, VariantOptions()))
    with pytest.raises(ValueError, match=r"a\.vcf: there is no sample 'three'"):
        list(read_variants([open_vcf(paths[0])], ["three"], contigs, VariantOptions()))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (SampleChoice(("one", "x")), r"v: there is no sample 'x'; it has one, two"),
        (SampleChoice(("one", "one")), r"samples has 'one' twice"),
        (SampleChoice(num_samples=3), r"num_samples \(3\) must be between 1 and 2"),
        (SampleChoice(num_samples=0), r"num_samples \(0\) must be between 1 and 2"),
    ],
)
def test_a_wrong_choice_of_samples_is_an_error(choice: SampleChoice, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_samples(VcfFile(Path("v"), ("one", "two")), choice)
