"""`--drop-duplicate-windows` with `--vcf`: what is left, where it lies, and that nothing leaks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest

from megatron_dna.data.coordinates import DocumentCoordinates
from megatron_dna.data.haplotypes import HaplotypeOptions
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from megatron_dna.genome.duplicates import find_cuts
from tests.unit.genome_files import EXAMPLE, files, reverse_complement
from tests.unit.test_preprocess_haplotypes import check_tokens, mers, own_edits, written
from tests.unit.variant_files import SAMPLES, Record, Text, random_allele, vcf_text

WINDOW = 200
HELD_OUT = (9_000, 10_500)


@pytest.fixture(scope="module")
def contigs() -> dict[str, str]:
    """Real sequence: a contig, and another one that has some of it on the other strand."""
    with pysam.FastaFile(str(EXAMPLE)) as example:
        x = example.fetch("20", 1_000_000, 1_020_000).upper()
    return {"x": x, "y": reverse_complement(x[2_000:7_000]) + x[9_200:9_800]}


@pytest.fixture(scope="module")
def records(contigs: dict[str, str]) -> list[Record]:
    """A variant every 700 bases or so; an insertion and a deletion among them."""
    draw, x, found = random.Random(2), contigs["x"], []
    for at in range(300, 19_900, 700):
        ref = x[at : at + draw.choice([1, 1, 1, 4])]
        alt = draw.choice([ref[0] + random_allele(draw), "ACGT"["CGTA".index(ref[0])]])
        if alt != ref:
            genotypes = tuple(draw.choice(["0|1", "1|0", "1|1", "0|0"]) for _ in SAMPLES)
            found.append(Record("x", at, ref, (alt,), genotypes))
    return found


@pytest.fixture
def sparse_options(
    tmp_path: Path, contigs: dict[str, str], records: list[Record], tokenizer_path: Path
) -> Callable[..., PreprocessOptions]:
    (tmp_path / "r.fa").write_text("".join(f">{n}\n{bases}\n" for n, bases in contigs.items()))
    (tmp_path / "v.vcf").write_text(vcf_text(records, SAMPLES))

    def make(**changes: Any) -> PreprocessOptions:
        haplotypes = HaplotypeOptions(
            (tmp_path / "v.vcf",),
            context=changes.pop("context", None),
            no_reference=changes.pop("no_reference", False),
        )
        return PreprocessOptions(
            (tmp_path / "r.fa",),
            tokenizer_path,
            changes.pop("output_prefix", tmp_path / "out" / "p"),
            reverse_complement=True,
            holdout=(f"x:{HELD_OUT[0] + 1}-{HELD_OUT[1]}",),
            haplotypes=haplotypes,
            **changes,
        )

    return make


def texts(options: PreprocessOptions, split: str) -> list[str]:
    """What the documents of a split spell, on the forward strand."""
    documents = list(written(options.output(f"_{split}"), options.tokenizer))
    assert all(
        other == reverse_complement(own)
        for (_, _, own), (_, _, other) in zip(documents[::2], documents[1::2], strict=True)
    )
    return [text for number, _, text in documents if number % 2 == 0]


def without_duplicates(documents: list[str], min_length: int = 0) -> tuple[list[str], int]:
    """By a set of whole windows: what is left of documents, and the windows dropped."""
    seen: set[str] = set()
    left, num_dropped = [], 0
    for text in documents:
        parts, last, was_new = [], 0, False
        for cut in find_cuts(Text(text), WINDOW):
            window = min(text[last:cut], reverse_complement(text[last:cut]))
            if window in seen:
                num_dropped += 1
            elif was_new:
                parts[-1] += text[last:cut]
            else:
                parts.append(text[last:cut])
            was_new = window not in seen
            seen.add(window)
            last = cut
        left += [part for part in parts if len(part) >= min_length]
    return left, num_dropped


@pytest.mark.parametrize(
    ("changes", "share"),
    [({}, 0.5), ({"no_reference": True}, 0.6), ({"context": 150, "min_length": 100}, 0.9)],
    ids=["whole", "no reference", "windows"],
)
def test_each_window_is_there_once(
    sparse_options: Callable[..., PreprocessOptions],
    contigs: dict[str, str],
    records: list[Record],
    changes: dict[str, Any],
    share: float,
) -> None:
    """In the order of the documents, the first one stays; every token left still maps back."""
    options = sparse_options(**changes)
    preprocess(options)
    all_documents, held_out = texts(options, "train"), texts(options, "valid")
    expected, num_dropped = without_duplicates(all_documents, options.min_length)
    dropping = replace(options, drop_duplicate_windows=WINDOW)
    manifest = preprocess(dropping)
    assert texts(dropping, "train") == expected
    assert texts(dropping, "valid") == held_out
    assert manifest["duplicate_windows"]["windows_dropped"] == num_dropped > 20
    assert sum(map(len, expected)) < share * sum(map(len, all_documents))
    rows = manifest["haplotypes"]["haplotypes"]
    assert sum(row["train"]["bases"] for row in rows) > 1000
    num_tokens = check_tokens(
        dropping.output("_train"),
        dropping.tokenizer,
        contigs,
        lambda contig, sample, number: own_edits(records, contig, sample, number),
    )
    assert num_tokens == manifest["totals"]["train"]["tokens"]


def test_every_variant_is_still_there(
    sparse_options: Callable[..., PreprocessOptions], records: list[Record]
) -> None:
    """Of each allele outside of what is held out one haplotype has a window."""
    options = sparse_options(drop_duplicate_windows=WINDOW)
    preprocess(options)
    coordinates = DocumentCoordinates.open(options.output("_train"))
    covered: dict[tuple[str, int], set[int]] = {}
    for number in range(0, len(coordinates), 2):
        _, sample, haplotype, _, start, end = coordinates.origin(number)
        if sample:
            where = coordinates.locate(number, np.array([0]), np.array([end - start]))
            bases = range(int(where.starts[0]), int(where.ends[0]))
            covered.setdefault((sample, haplotype), set()).update(bases)
    for record in records:
        carriers = [
            (sample, number)
            for sample, genotype in zip(SAMPLES, record.genotypes, strict=True)
            for number in (1, 2)
            if genotype.split("|")[number - 1] == "1"
        ]
        outside = record.position + 4 < HELD_OUT[0] or record.position >= HELD_OUT[1]
        if carriers and outside:
            assert any(record.position in covered.get(carrier, ()) for carrier in carriers)


def test_nothing_held_out_is_left(
    sparse_options: Callable[..., PreprocessOptions], contigs: dict[str, str]
) -> None:
    """No 64-mer of the held-out part, of any haplotype and strand, but what `y` has of it."""
    options = sparse_options(drop_duplicate_windows=WINDOW)
    preprocess(options)
    start, end = HELD_OUT
    outside = [contigs["x"][:start], contigs["x"][end:], contigs["y"]]
    held_out = mers([contigs["x"][start:end], *texts(options, "valid")]) - mers(outside)
    assert len(held_out) > 1500
    assert not held_out & mers(texts(options, "train"))


def test_workers_and_parts_do_not_change_a_byte(
    sparse_options: Callable[..., PreprocessOptions], tmp_path: Path
) -> None:
    contents = []
    for workers in (1, 3):
        options = sparse_options(
            drop_duplicate_windows=WINDOW,
            workers=workers,
            output_prefix=tmp_path / str(workers) / "p",
        )
        preprocess(options)
        contents.append(files(options.output_prefix.parent))
    assert contents[0] == contents[1]
    assert len(contents[0]) == 7
