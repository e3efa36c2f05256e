"""Haplotypes against `bcftools consensus`, and against the rules written out slowly."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_dna.genome.variants import (
    ContigVariants,
    Haplotype,
    VariantOptions,
    read_variants,
)
from megatron_dna.genome.vcf import (
    SampleChoice,
    VcfFile,
    choose_samples,
    open_vcf,
    read_sample_names,
)
from tests.unit.genome_files import EXAMPLE
from tests.unit.variant_files import (
    EXAMPLE_VCF,
    SAMPLES,
    SHARED_VCF,
    Edit,
    Record,
    Text,
    bcftools_consensus,
    edits_of,
    needs_bcftools,
    random_case,
    read_all,
    spell,
    vcf_text,
    write_vcf,
)


def whole(haplotype: Haplotype) -> str:
    return haplotype.read(0, haplotype.length).decode()


@pytest.fixture(scope="module")
def chr20() -> str:
    with pysam.FastaFile(str(EXAMPLE)) as fasta:
        return str(fasta.fetch("20")).upper()


@needs_bcftools
def test_haplotypes_of_real_people_equal_bcftools(chr20: str) -> None:
    """The example's 12 samples x 2 haplotypes, base for base over 20:1,000,000-4,000,000."""
    vcf = open_vcf(EXAMPLE_VCF)
    samples = choose_samples(vcf, SampleChoice(num_samples=12))
    (variants,) = read_variants([vcf], samples, {"20": Text(chr20)}, VariantOptions())
    assert len(variants.haplotypes) == 24
    for haplotype in variants.haplotypes:
        expected = bcftools_consensus(EXAMPLE, EXAMPLE_VCF, haplotype.sample, haplotype.number)
        assert whole(haplotype) == expected["20"]
        assert haplotype.counts["applied"] > 1000


@needs_bcftools
@pytest.mark.skipif(not SHARED_VCF.exists(), reason="../shared/data has no VCF here")
def test_a_file_of_300_samples_equals_bcftools(chr20: str) -> None:
    vcf = open_vcf(SHARED_VCF)
    samples = choose_samples(vcf, SampleChoice(num_samples=2, seed=3))
    (variants,) = read_variants([vcf], samples, {"20": Text(chr20)}, VariantOptions())
    for haplotype in variants.haplotypes:
        expected = bcftools_consensus(EXAMPLE, SHARED_VCF, haplotype.sample, haplotype.number)
        assert whole(haplotype) == expected["20"]


seeds = st.integers(0, 2**32)
slow = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@needs_bcftools
@slow
@given(seed=seeds, width=st.sampled_from([7, 60, 1000]))
def test_generated_files_equal_bcftools(tmp_path: Path, seed: int, width: int) -> None:
    """Overlapping, adjacent, duplicate, multi-allelic records, and indels at the contigs' ends."""
    contigs, records = random_case(seed)
    fasta = tmp_path / "r.fa"
    fasta.write_text(
        "".join(
            f">{name}\n" + "".join(bases[i : i + width] + "\n" for i in range(0, len(bases), width))
            for name, bases in contigs.items()
        )
    )
    path = write_vcf(tmp_path / "v.vcf.gz", vcf_text(records, SAMPLES))
    ours = {
        (h.sample, h.number, h.contig): whole(h)
        for v in read_all(path, contigs)
        for h in v.haplotypes
    }
    for sample in SAMPLES:
        for number in (1, 2):
            expected = bcftools_consensus(fasta, path, sample, number)
            for name in list(contigs)[:-1]:
                assert ours[sample, number, name] == expected[name], (name, sample, number)


@slow
@given(seed=seeds)
def test_any_part_is_read_and_mapped_to_the_reference(tmp_path: Path, seed: int) -> None:
    """Reading anywhere equals the whole, and what a part maps to spells it."""
    contigs, records = random_case(seed)
    path = write_vcf(tmp_path / "v.vcf.gz", vcf_text(records, SAMPLES))
    for variants in read_all(path, contigs):
        reference = contigs[variants.contig]
        own = [record for record in records if record.contig == variants.contig]
        for haplotype in variants.haplotypes:
            edits = edits_of(own, SAMPLES.index(haplotype.sample), haplotype.number)
            text = spell(reference, edits)
            assert whole(haplotype) == text
            assert len(reference) + haplotype.coordinates().growth == len(text)
            check_parts(haplotype, reference, text, edits, random.Random(seed))
            check_cuts(haplotype, reference, edits)


def check_parts(
    haplotype: Haplotype, reference: str, text: str, edits: list[Edit], draw: random.Random
) -> None:
    starts = np.array([draw.randrange(len(text)) for _ in range(30)])
    ends = np.array([draw.randrange(start + 1, len(text) + 1) for start in starts.tolist()])
    intervals = haplotype.coordinates().to_reference(starts, ends)
    origins = origins_of(reference, edits)
    for start, end, first, last, offset in np.stack([starts, ends, *intervals], 1).tolist():
        assert haplotype.read(start, end).decode() == text[start:end]
        mapped = spell(reference, edits, first, last)
        assert mapped[offset : offset + end - start] == text[start:end]
        assert (first, last) == (origins[start][0], origins[end - 1][1])


def origins_of(reference: str, edits: list[Edit]) -> list[tuple[int, int]]:
    """Where each base of a haplotype comes from: from all of an edit that changes the length."""
    origins, position = [], 0
    for edit in [edit for edit in edits if edit.end - edit.start != len(edit.alt)]:
        origins += [(base, base + 1) for base in range(position, edit.start)]
        origins += [(edit.start, edit.end)] * len(edit.alt)
        position = edit.end
    return origins + [(base, base + 1) for base in range(position, len(reference))]


def check_cuts(haplotype: Haplotype, reference: str, edits: list[Edit]) -> None:
    places = np.arange(len(reference) + 1)
    coordinates = haplotype.coordinates()
    lower, upper = coordinates.lower(places), coordinates.upper(places)
    moves = [edit for edit in edits if edit.end - edit.start != len(edit.alt)]
    for place in places.tolist():
        before = sum(len(e.alt) - (e.end - e.start) for e in moves if e.end <= place > e.start)
        there = sum(len(e.alt) for e in moves if e.start == e.end == place)
        around = [e for e in moves if e.start < place < e.end]
        start = around[0].start if around else place
        assert lower[place] == start + before
        end = around[0].start + len(around[0].alt) if around else place
        assert upper[place] == end + before + there


def test_alleles_in_lower_case_are_those_in_upper_case(tmp_path: Path) -> None:
    contigs, records = random_case(3)
    found = []
    for change in (str.upper, str.lower):
        changed = [r._replace(ref=change(r.ref), alts=tuple(map(change, r.alts))) for r in records]
        (tmp_path / "v.vcf").write_text(vcf_text(changed, SAMPLES))
        haplotypes = [h for v in read_all(tmp_path / "v.vcf", contigs) for h in v.haplotypes]
        found.append([(whole(h), np.stack(h.edits()).tolist(), h.counts) for h in haplotypes])
    assert found[0] == found[1]


def test_samples_and_haplotypes_are_chosen(tmp_path: Path) -> None:
    """Names, a number of them, one haplotype; a draw of more samples has those of fewer."""
    vcf = open_vcf(EXAMPLE_VCF)
    assert len(choose_samples(vcf, SampleChoice())) == len(vcf.samples) == 20
    names = ("HG02220", "HG00096")
    assert choose_samples(vcf, SampleChoice(names)) == ("HG00096", "HG02220")
    draws = [set(choose_samples(vcf, SampleChoice(num_samples=n, seed=1))) for n in range(1, 21)]
    assert all(few < more for few, more in itertools.pairwise(draws))
    assert draws[5] != set(choose_samples(vcf, SampleChoice(num_samples=6, seed=2)))
    assert choose_samples(vcf, SampleChoice(names, num_samples=1))[0] in names
    other = VcfFile(Path("v"), ("b", "a"))
    assert choose_samples(other, SampleChoice(num_samples=2)) == other.samples
    listed = tmp_path / "samples.txt"
    listed.write_text("HG00096\n\n HG02220\n")
    assert read_sample_names(listed) == ("HG00096", "HG02220")
    contigs, records = random_case(1)
    path = write_vcf(tmp_path / "v.vcf.gz", vcf_text(records, SAMPLES))
    for which, numbers in (("1", {1}), ("2", {2}), ("both", {1, 2})):
        for variants in read_all(path, contigs, VariantOptions(haplotypes=which)):
            assert {haplotype.number for haplotype in variants.haplotypes} == numbers


def one_contig(tmp_path: Path, *records: Record, **options: Any) -> ContigVariants:
    text = vcf_text(records, [f"s{i}" for i in range(len(records[0].genotypes))])
    path = write_vcf(tmp_path / "v.vcf.gz", text)
    (variants,) = read_all(path, {"c": "ACGTACGTAC"}, VariantOptions(**options))
    return variants


def spelled(variants: ContigVariants) -> list[str]:
    return [whole(haplotype) for haplotype in variants.haplotypes]


def test_what_cannot_be_applied_is_counted(tmp_path: Path) -> None:
    """Symbolic alleles, missing genotypes, overlaps and another REF leave the reference."""
    variants = one_contig(
        tmp_path,
        Record("c", 0, "A", ("<DEL>", "*", "G[c:5["), ("1|2", "3|.")),
        Record("c", 0, "A", ("]c:5]G", "G.", "", "."), ("1|2", "3|4")),
        Record("c", 1, "T", ("A",), ("1|1", "1|1")),
        Record("c", 2, "G", ("A",), (".", ".|1")),
        Record("c", 2, "G", ("T",), ("0|1", "1|1")),
        Record("c", 5, "C", (), (".|.", "0|0")),
        on_ref_mismatch="skip",
    )
    assert spelled(variants) == ["ACGTACGTAC", "ACTTACGTAC", "ACTTACGTAC", "ACATACGTAC"]
    assert (variants.num_records, variants.num_ref_mismatches) == (6, 1)
    assert [tuple(haplotype.counts.values()) for haplotype in variants.haplotypes] == [
        (0, 0, 2, 1, 0),
        (1, 0, 2, 1, 0),
        (1, 0, 2, 1, 0),
        (1, 1, 1, 1, 0),
    ]


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        ("GT:DP", ("0|1:7", "1|0:.")),
        ("DP:GT:PS", ("1:0|1:2", "0:1|0:3")),
        ("GT", ("|0|1", "|1|0")),  # since VCF 4.4
    ],
)
def test_genotypes_are_found_in_their_columns(
    tmp_path: Path, names: str, columns: tuple[str, ...]
) -> None:
    """FORMAT says where; what stands beside them must not be taken for alleles."""
    text = vcf_text([Record("c", 1, "C", ("T",), ("0|1", "1|0"))], SAMPLES)
    (tmp_path / "v.vcf").write_text(text.replace("GT\t0|1\t1|0", "\t".join([names, *columns])))
    (variants,) = read_all(tmp_path / "v.vcf", {"c": "ACGTACGTAC"})
    assert spelled(variants) == ["ACGTACGTAC", "ATGTACGTAC", "ATGTACGTAC", "ACGTACGTAC"]


@needs_bcftools
def test_letters_of_either_case_and_runs_of_n_equal_bcftools(tmp_path: Path) -> None:
    reference = "ACGTACGTACGGCATTACGATCAGG"
    records = [
        Record("c", 1, "c", ("t",), ("1|0",)),
        Record("c", 1, "cG", ("C",), ("1|1",)),
        Record("c", 8, "AcG", ("agG",), ("1|1",)),
        Record("c", 14, "T", ("tNNNNNNNNNNNN", "N"), ("1|2",)),
        Record("c", 24, "g", ("Gac",), ("0|1",)),
    ]
    (tmp_path / "r.fa").write_text(f">c\n{reference}\n")
    path = write_vcf(tmp_path / "v.vcf.gz", vcf_text(records, ["a"]))
    (variants,) = read_all(path, {"c": reference})
    for haplotype in variants.haplotypes:
        expected = bcftools_consensus(tmp_path / "r.fa", path, "a", haplotype.number)
        assert whole(haplotype) == expected["c"]
        assert haplotype.counts["applied"] == 2 + haplotype.number


def test_a_sample_of_one_allele_has_one_haplotype(tmp_path: Path) -> None:
    variants = one_contig(
        tmp_path,
        Record("c", 1, "C", ("T",), (".", "0|1", ".")),
        Record("c", 4, "A", ("T",), ("1", "1|0", ".|.")),
    )
    names = [(haplotype.sample, haplotype.number) for haplotype in variants.haplotypes]
    assert names == [("s0", 1), ("s1", 1), ("s1", 2), ("s2", 1), ("s2", 2)]
    assert spelled(variants)[0] == "ACGTTCGTAC"


def test_unphased_genotypes_are_skipped_or_drawn(tmp_path: Path) -> None:
    """Equal alleles need no phase; a draw depends on seed, place and sample, not on the others."""
    sites = range(10)
    records = [Record("c", i, "ACGTACGTAC"[i], ("N",), ("0/1", "1/1", "0|1")) for i in sites]
    skipped = one_contig(tmp_path, *records, unphased="skip")
    assert spelled(skipped) == ["ACGTACGTAC"] * 2 + ["N" * 10] * 2 + ["ACGTACGTAC", "N" * 10]
    assert [haplotype.counts["unphased"] for haplotype in skipped.haplotypes] == [
        10,
        10,
        0,
        0,
        0,
        0,
    ]
    drawn = [spelled(one_contig(tmp_path, *records, unphased="random", seed=n)) for n in range(20)]
    for first, second, *rest in drawn:
        assert all((a == "N") != (b == "N") for a, b in zip(first, second, strict=True))
        assert rest == spelled(skipped)[2:]
    assert 60 < sum(first.count("N") for first, *_ in drawn) < 140
    assert len({first for first, *_ in drawn}) > 15
    alone = [record._replace(genotypes=("0/1",)) for record in records]
    assert spelled(one_contig(tmp_path, *alone, unphased="random", seed=7)) == drawn[7][:2]


def test_what_is_not_there_is_not_read(tmp_path: Path) -> None:
    """A failure would read memory that is not the haplotype's."""
    haplotype = one_contig(tmp_path, Record("c", 1, "C", ("CTT",), ("1|1",))).haplotypes[0]
    for start, end in ((-1, 2), (0, 13), (5, 3)):
        with pytest.raises(ValueError, match=r"must be inside of the haplotype's 12"):
            haplotype.read(start, end)
    with pytest.raises(ValueError, match="the reference does not cover"):
        haplotype._core.spell(0, 0, 12, 0, b"ACGTACGTA")


def test_draws_differ_by_contig_record_and_sample(tmp_path: Path) -> None:
    """Else the lots of one site, or person, would be those of another; both kinds here apply."""
    records = [
        Record(contig, at, "A", (alt,), ("0/1", "0/1"))
        for contig in "cd"
        for at in range(0, 40, 4)
        for alt in ("T", "AG")
    ]
    options = VariantOptions("1", unphased="random")
    found = []
    for samples in (SAMPLES, SAMPLES[::-1]):
        (tmp_path / "v.vcf").write_text(vcf_text(records, samples))
        draws = {}
        for variants in read_all(tmp_path / "v.vcf", dict.fromkeys("cd", "A" * 40), options):
            for haplotype in variants.haplotypes:
                starts, ref_lengths, _ = haplotype.edits()
                for length in (0, 1):
                    key = (variants.contig, haplotype.sample, length)
                    draws[key] = tuple(starts[ref_lengths == length] - (length == 0))
        assert len(set(draws.values())) == len(draws) == 8
        found.append(draws)
    assert found[0] == found[1]  # wherever a sample's column is


def test_bcf_and_plain_text_are_read_too(tmp_path: Path) -> None:
    contigs, records = random_case(5)
    path = write_vcf(tmp_path / "v.vcf.gz", vcf_text(records, SAMPLES))
    expected = [spelled(variants) for variants in read_all(path, contigs)]
    with (
        pysam.VariantFile(str(path)) as source,
        pysam.VariantFile(str(tmp_path / "v.bcf"), "wb", header=source.header) as copy,
    ):
        for record in source:
            copy.write(record)
    (tmp_path / "v.vcf").write_text(vcf_text(records, SAMPLES).replace("\n", "\r\n"), newline="")
    for name in ("v.bcf", "v.vcf"):
        assert [spelled(variants) for variants in read_all(tmp_path / name, contigs)] == expected


def test_a_long_haplotype_is_read_in_parts_of_its_reference(chr20: str) -> None:
    """What is read of the reference is what is asked for, not the contig."""
    reads: list[int] = []

    class Counting(Text):
        def read(self, start: int, end: int) -> bytes:
            reads.append(end - start)
            return super().read(start, end)

    vcf = open_vcf(EXAMPLE_VCF)
    (variants,) = read_variants([vcf], ["HG00096"], {"20": Counting(chr20)}, VariantOptions())
    first = variants.haplotypes[0]
    reads.clear()
    parts = [
        first.read(at, min(at + 99_991, first.length)) for at in range(0, first.length, 99_991)
    ]
    assert max(reads) < 101_000
    assert b"".join(parts) == first.read(0, first.length)
