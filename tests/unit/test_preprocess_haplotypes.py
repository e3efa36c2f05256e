"""`--vcf`: what is written spells the haplotypes, maps back, and has nothing that is held out."""

from __future__ import annotations

import bisect
import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest

from megatron_dna.data.coordinates import DocumentCoordinates
from megatron_dna.data.haplotypes import HaplotypeOptions
from megatron_dna.data.preprocess import PreprocessOptions, preprocess
from megatron_dna.genome.variants import VariantOptions
from megatron_dna.genome.vcf import SampleChoice
from megatron_dna.tokenizer.bpe import DnaTokenizer
from tests.unit.genome_files import (
    EXAMPLE,
    encode,
    files,
    read,
    reverse_complement,
    run_tool,
)
from tests.unit.test_haplotypes import random_records
from tests.unit.variant_files import (
    EXAMPLE_VCF,
    Edit,
    Record,
    edits_of,
    read_all,
    spell,
    vcf_text,
    write_vcf,
)

SAMPLES = ("a", "b")
HOLDOUT = ("x:901-1500", "x:2301-2310", "y")
MER = 64


@pytest.fixture(scope="module")
def contigs() -> dict[str, str]:
    """Random bases, with gaps and short runs of N."""
    draw = random.Random(5)
    bases = {name: "".join(draw.choices("ACGT", k=3000)) for name in ("x", "y", "z")}
    for start, length in ((0, 12), (700, 9), (1490, 10), (2000, 40)):
        bases["x"] = bases["x"][:start] + "N" * length + bases["x"][start + length :]
    return bases


@pytest.fixture(scope="module")
def records(contigs: dict[str, str]) -> list[Record]:
    """Dense random records, and some on the borders of what is held out."""
    found = [r for name in contigs for r in random_records(random.Random(1), name, contigs[name])]
    found = [
        r
        for r in found
        if "N" not in contigs[r.contig][r.position - 1 : r.position + len(r.ref) + 1]
    ]
    taken = {(r.contig, r.position) for r in found}
    both = ("1|1", "0|1")
    x = contigs["x"]
    for at, ref_length, alt in (
        (899, 1, x[899] + x[900:980]),  # copies what is held out in front of it
        (2299, 3, x[2299]),  # a deletion into a region
        (2308, 6, "A" * 80),  # a replacement out of it
    ):
        assert "N" not in alt
        if ("x", at) in taken:
            found = [r for r in found if (r.contig, r.position) != ("x", at)]
        found.append(Record("x", at, x[at : at + ref_length], (alt,), both))
    order = {name: n for n, name in enumerate(contigs)}
    return sorted(found, key=lambda record: (order[record.contig], record.position))


@pytest.fixture
def make(
    tmp_path: Path, contigs: dict[str, str], records: list[Record], tokenizer_path: Path
) -> Callable[..., PreprocessOptions]:
    """Options to write all haplotypes of the records, both strands, with held-out regions."""
    fasta = tmp_path / "in" / "r.fa"
    fasta.parent.mkdir()
    fasta.write_text("".join(f">{name}\n{bases}\n" for name, bases in contigs.items()))
    vcf = write_vcf(tmp_path / "in" / "v.vcf.gz", vcf_text(records, SAMPLES))

    def options(**changes: Any) -> PreprocessOptions:
        haplotypes = HaplotypeOptions((vcf,), context=changes.pop("context", None))
        defaults: dict[str, Any] = {
            "fasta": (fasta,),
            "tokenizer": tokenizer_path,
            "output_prefix": tmp_path / "out" / "p",
            "reverse_complement": True,
            "holdout": HOLDOUT,
            "haplotypes": haplotypes,
        }
        return PreprocessOptions(**(defaults | changes))

    return options


def written(prefix: Path, tokenizer_path: Path) -> Iterator[tuple[int, list[int], str]]:
    """Number, ids and bases of each document of a prefix."""
    tokenizer = DnaTokenizer.from_file(tokenizer_path)
    for number, ids in enumerate(read(prefix)):
        yield number, ids, tokenizer.decode(ids)


def own_edits(
    records: list[Record], contig: str, sample: str, number: int, samples: tuple[str, ...] = SAMPLES
) -> list[Edit]:
    """No edits for the reference, whose sample is ""."""
    if not sample:
        return []
    of_contig = [record for record in records if record.contig == contig]
    return edits_of(of_contig, samples.index(sample), number)


def check_tokens(
    prefix: Path,
    tokenizer_path: Path,
    contigs: dict[str, str],
    edits: Callable[[str, str, int], list[Edit]],
) -> int:
    """Every token's interval, with the haplotype's alleles, spells it; returns the tokens."""
    tokenizer = DnaTokenizer.from_file(tokenizer_path)
    edits = functools.cache(edits)
    coordinates = DocumentCoordinates.open(prefix)
    documents = read(prefix)
    assert len(coordinates) == len(documents)
    num_tokens = 0
    for number, ids in enumerate(documents):
        contig, sample, haplotype, strand, _, _ = coordinates.origin(number)
        own = edits(contig, sample, haplotype)
        edit_starts = [edit.start for edit in own]
        ends = np.cumsum(tokenizer.token_lengths[ids], dtype=np.int64)
        starts = np.concatenate(([0], ends[:-1]))
        located = np.stack(coordinates.locate(number, starts, ends), 1).tolist()
        for token, (first, last, offset) in zip(ids, located, strict=True):
            low = bisect.bisect_left(edit_starts, first - 100)
            near = own[low : bisect.bisect_right(edit_starts, last)]
            bases = tokenizer.decode([token])
            mapped = spell(contigs[contig], near, first, last)[offset : offset + len(bases)]
            assert (mapped if strand == "+" else reverse_complement(mapped)) == bases
        num_tokens += len(ids)
    return num_tokens


@pytest.mark.parametrize("context", [None, 1, 20])
def test_every_token_maps_to_what_spells_it(
    make: Callable[..., PreprocessOptions],
    contigs: dict[str, str],
    records: list[Record],
    context: int | None,
) -> None:
    """Dense indels, both strands, held-out and training documents, whole contigs and windows."""
    options = make(context=context)
    manifest = preprocess(options)
    for split in ("train", "valid"):
        num_tokens = check_tokens(
            options.output(f"_{split}"),
            options.tokenizer,
            contigs,
            lambda contig, sample, number: own_edits(records, contig, sample, number),
        )
        assert num_tokens == manifest["totals"][split]["tokens"]


def test_tokens_of_real_people_map_to_what_spells_them(
    tmp_path: Path, tokenizer_path: Path
) -> None:
    contig, start, size = "20", 1_000_000, 250_000
    with pysam.FastaFile(str(EXAMPLE)) as fasta:
        reference = {contig: "N" * start + fasta.fetch(contig, start, start + size)}
    with pysam.VariantFile(str(EXAMPLE_VCF)) as file:
        samples = ("HG00096", "HG01624")
        lines = [str(record).split("\t") for record in file.fetch(contig, start, start + size - 99)]
        columns = [list(file.header.samples).index(sample) for sample in samples]
    records = [
        Record(
            contig,
            int(line[1]) - 1,
            line[3],
            tuple(line[4].split(",")),
            tuple(line[9 + column].strip() for column in columns),
        )
        for line in lines
    ]
    (tmp_path / "r.fa").write_text(f">{contig}\n{reference[contig]}\n")
    (tmp_path / "v.vcf").write_text(vcf_text(records, samples))
    options = PreprocessOptions(
        (tmp_path / "r.fa",),
        tokenizer_path,
        tmp_path / "p",
        reverse_complement=True,
        haplotypes=HaplotypeOptions((tmp_path / "v.vcf",), context=100),
    )
    manifest = preprocess(options)
    rows = manifest["haplotypes"]["haplotypes"]
    assert len(rows) == 4
    assert sum(row["alleles"]["applied"] for row in rows) > 300
    num_tokens = check_tokens(
        tmp_path / "p_train",
        tokenizer_path,
        reference,
        lambda contig, sample, number: own_edits(records, contig, sample, number, samples),
    )
    assert num_tokens == manifest["totals"]["train"]["tokens"]


def test_whole_haplotypes_are_written_in_order(
    make: Callable[..., PreprocessOptions], contigs: dict[str, str], records: list[Record]
) -> None:
    """Without cuts: reference first, then sample by sample, every stretch, ids of `tokenizers`."""
    options = make(holdout=(), reverse_complement=False)
    preprocess(options)
    texts, origins = [], []
    for bases in contigs.values():
        texts += [part for part in split_at_gaps(bases) if part]
    for name, bases in contigs.items():
        for sample in SAMPLES:
            for number in (1, 2):
                text = spell(bases, own_edits(records, name, sample, number))
                texts += [part for part in split_at_gaps(text) if part]
                origins.append((name, sample, number))
    ids = read(options.output("_train"))
    assert ids == [encode(options.tokenizer, text) for text in texts]
    coordinates = DocumentCoordinates.open(options.output("_train"))
    seen = dict.fromkeys(coordinates.origin(n)[:3] for n in range(len(ids)))
    assert list(seen) == [*((name, "", 0) for name in contigs), *origins]


def split_at_gaps(bases: str) -> list[str]:
    return re.split("N{10,}", bases)


@pytest.mark.parametrize("context", [None, 30])
def test_nothing_held_out_is_in_training(
    make: Callable[..., PreprocessOptions],
    contigs: dict[str, str],
    context: int | None,
) -> None:
    """No 64-mer of a held-out part, of any haplotype and strand, but what else the reference has.

    Nor does one leave it by an insertion at its border, or by an edit that reaches out of it.
    """
    options = make(context=context)
    manifest = preprocess(options)
    regions = [(r["contig"], r["start"], r["end"]) for r in manifest["holdout"]]
    outside = dict(contigs)
    inside = []
    for contig, start, end in regions:
        inside.append(contigs[contig][start:end])
        outside[contig] = outside[contig][:start] + "-" * (end - start) + outside[contig][end:]
    inside += [text for _, _, text in written(options.output("_valid"), options.tokenizer)]
    training = [text for _, _, text in written(options.output("_train"), options.tokenizer)]
    allowed = mers(outside.values())
    held_out = mers(inside) - allowed
    assert len(held_out) > 2000
    assert not held_out & mers(training)
    assert len(mers(training) - allowed) > 1000  # it does hold variants
    coordinates = DocumentCoordinates.open(options.output("_train"))
    for number in range(len(coordinates)):
        length = coordinates.arrays["document_length"][number]
        whole = coordinates.locate(number, np.array([0]), np.array([length]))
        contig = coordinates.origin(number).contig
        for held_contig, start, end in regions:
            assert contig != held_contig or whole.ends[0] <= start or whole.starts[0] >= end


def mers(texts: Any) -> set[str]:
    """64-mers of both strands."""
    both = [strand for text in texts for strand in (text, reverse_complement(text))]
    found = {text[i : i + MER] for text in both for i in range(len(text) - MER + 1)}
    return {mer for mer in found if "-" not in mer}


def test_windows_have_every_variant_and_its_context(
    make: Callable[..., PreprocessOptions], contigs: dict[str, str], records: list[Record]
) -> None:
    """Each edit lies in one window with its context on both sides, and windows do not touch."""
    context = 15
    options = make(holdout=(), reverse_complement=False, context=context)
    preprocess(options)
    coordinates = DocumentCoordinates.open(options.output("_train"))
    windows: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
    for number in range(len(coordinates)):
        end = coordinates.arrays["document_length"][number : number + 1]
        where = coordinates.locate(number, np.array([0]), end)
        key = coordinates.origin(number)[:3]
        windows.setdefault(key, []).append((int(where.starts[0]), int(where.ends[0])))
    (variants,) = (v for v in read_all(options.haplotypes.vcf[0], contigs) if v.contig == "z")
    for haplotype in variants.haplotypes:
        own = windows["z", haplotype.sample, haplotype.number]
        assert all(a[1] < b[0] for a, b in itertools.pairwise(own))
        assert sum(end - start for start, end in own) < 3000
        for edit in own_edits(records, "z", haplotype.sample, haplotype.number):
            low, high = max(edit.start - context, 0), min(edit.end + context, 3000)
            assert any(start <= low and high <= end for start, end in own)


def test_workers_do_not_change_a_byte(make: Callable[..., PreprocessOptions]) -> None:
    options = [make(workers=n, context=30) for n in (1, 3)]
    contents = []
    for option in options:
        preprocess(option)
        contents.append(files(option.output_prefix.parent))
        for path in option.output_prefix.parent.iterdir():
            path.unlink()
    assert contents[0] == contents[1]
    assert len(contents[0]) == 7


def test_short_documents_are_dropped_and_counted(make: Callable[..., PreprocessOptions]) -> None:
    options = make(min_length=100, context=5, holdout=(), reverse_complement=False)
    manifest = preprocess(options)
    assert all(
        len(text) >= 100 for _, _, text in written(options.output("_train"), options.tokenizer)
    )
    assert sum(row["short_documents_dropped"] for row in manifest["haplotypes"]["haplotypes"]) > 10


@pytest.mark.parametrize(
    ("old", "new"),
    [("z\t", "w\t"), ("GT", "DP"), ("a\tb", "a\ta")],
    ids=["unknown contig", "no GT", "sample twice"],
)
def test_a_bad_vcf_leaves_nothing(
    make: Callable[..., PreprocessOptions], records: list[Record], old: str, new: str
) -> None:
    """Also where the error comes after all of the reference was encoded; old files stay whole."""
    options = make()
    vcf = options.haplotypes.vcf[0]
    good = vcf.read_bytes()
    vcf.write_text(vcf_text(records, SAMPLES).replace(old, new))
    with pytest.raises(ValueError, match=str(vcf)):
        preprocess(options)
    assert not files(options.output_prefix.parent)
    vcf.write_bytes(good)
    preprocess(options)
    before = files(options.output_prefix.parent)
    vcf.write_bytes(good[:-28])
    with pytest.raises(ValueError, match="truncated"):
        preprocess(options)
    assert files(options.output_prefix.parent) == before


def test_the_command_line(make: Callable[..., PreprocessOptions], tmp_path: Path) -> None:
    options = make()
    (tmp_path / "samples").write_text("b\n")
    common = ["--fasta", options.fasta[0], "--tokenizer", options.tokenizer]
    common += ["--output-prefix", options.output_prefix, "--vcf", options.haplotypes.vcf[0]]
    done = run_tool(*common, "--samples-file", tmp_path / "samples", "--haplotypes", "2")
    assert done.returncode == 0, done.stderr
    assert "haplotypes: 3 of 1 samples; alleles: " in done.stdout
    coordinates = DocumentCoordinates.open(options.output("_train"))
    assert set(coordinates.arrays["samples"].tolist()) == {"", "b"}
    assert set(coordinates.arrays["sequence_haplotype"].tolist()) == {0, 2}
    for wrong, message in (
        (["--samples", "a,c"], "there is no sample 'c'; it has a, b"),
        (["--variant-context", "0"], "variant_context (0) must be a number of bases from 1 on"),
        (["--variant-context", "1k"], "variant_context (1k) must be a number of bases from 1"),
        (["--unphased", "no"], "unphased (no) must be one of error, skip, random"),
        (["--samples", "a", "--samples-file", "f"], "samples and samples_file exclude each other"),
        (["--seed", "-1"], "seed (-1) must be at least 0"),
    ):
        done = run_tool(*common, *wrong)
        assert done.returncode == 2
        assert message in done.stderr


def test_the_reference_can_be_left_out(make: Callable[..., PreprocessOptions]) -> None:
    """So that the two can be blended by weight."""
    options = make(reverse_complement=False)
    preprocess(options)
    together = read(options.output("_train"))
    coordinates = DocumentCoordinates.open(options.output("_train"))
    num_reference = sum(not coordinates.origin(n).sample for n in range(len(together)))
    alone = replace(options, haplotypes=replace(options.haplotypes, no_reference=True))
    preprocess(alone)
    assert read(options.output("_train")) == together[num_reference:]
    coordinates = DocumentCoordinates.open(options.output("_train"))
    assert all(coordinates.origin(n).sample for n in range(len(coordinates)))


def test_options_are_recorded(make: Callable[..., PreprocessOptions]) -> None:
    options = make()
    haplotypes = HaplotypeOptions(
        options.haplotypes.vcf,
        SampleChoice(num_samples=1, seed=4),
        VariantOptions(haplotypes="1", unphased="random", on_ref_mismatch="skip", seed=4),
        context=7,
    )
    manifest = preprocess(make(haplotypes=haplotypes))
    assert manifest["options"]["haplotypes"] == {
        "haplotypes": "1",
        "unphased": "random",
        "on_ref_mismatch": "skip",
        "seed": 4,
        "names": [],
        "num_samples": 1,
        "variant_context": 7,
        "no_reference": False,
    }
    assert len(manifest["haplotypes"]["samples"]) == 1
    assert [Path(file["path"]).name for file in manifest["inputs"]] == ["r.fa", "v.vcf.gz"]
