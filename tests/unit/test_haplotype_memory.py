"""What a shard of thousands of haplotypes keeps in memory, and which files it reads."""

from __future__ import annotations

import random
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from megatron_dna.data.haplotypes import HaplotypeOptions, HaplotypeSource
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.output import Finished
from megatron_dna.data.preprocess import preprocess
from megatron_dna.genome import variants
from megatron_dna.genome.corpus import plan_documents, scan
from megatron_dna.genome.store import SequenceStore
from megatron_dna.genome.variants import ContigVariants
from tests.unit.variant_files import SAMPLES, Record, vcf_text, write_vcf


@pytest.fixture
def contigs_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The contigs that are read from VCF files, in order."""
    original, names = variants._Reader._start, []

    def start(self: variants._Reader, contig: str, line: bytes) -> Any:
        names.append(contig)
        return original(self, contig, line)

    monkeypatch.setattr(variants._Reader, "_start", start)
    return names


@pytest.mark.parametrize("window_length", [0, 64])
def test_one_contig_is_in_memory(
    variant_options: Callable[..., PreprocessOptions],
    monkeypatch: pytest.MonkeyPatch,
    window_length: int,
) -> None:
    """In every pass the last one is gone before the next is read: two may be too large."""
    start, finish = variants._Reader._start, variants._Reader._finish
    known: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def check_and_start(self: variants._Reader, contig: str, line: bytes) -> Any:
        alive.append(sum(reference() is not None for reference in known))
        return start(self, contig, line)

    def note_and_finish(self: variants._Reader, contig: str, core: Any) -> ContigVariants:
        found = finish(self, contig, core)
        known.extend(map(weakref.ref, (found, *found.haplotypes)))
        return found

    monkeypatch.setattr(variants._Reader, "_start", check_and_start)
    monkeypatch.setattr(variants._Reader, "_finish", note_and_finish)
    preprocess(variant_options(workers=3, context=30, drop_duplicate_windows=window_length))
    assert alive == [0] * (9 if window_length else 6)  # three contigs in each pass


def test_a_plan_takes_no_memory_for_documents(tmp_path: Path) -> None:
    """Every shard plans all of them: more than a billion with the 1000 Genomes Project."""
    bases = "".join(random.Random(3).choices("ACGT", k=60_000))
    (tmp_path / "r.fa").write_text(f">x\n{bases}\n")
    other = dict(zip("ACGT", "CGTA", strict=True))
    records = [
        Record("x", at, bases[at], (other[bases[at]],), ("1|1", "1|1"))
        for at in range(5, 59_990, 5)
    ]
    (tmp_path / "v.vcf").write_text(vcf_text(records, SAMPLES))
    source = HaplotypeSource(HaplotypeOptions((tmp_path / "v.vcf",), context=1), 0, True)
    num_documents = len(records) * 8  # four haplotypes, both strands
    with SequenceStore(tmp_path) as store:
        plan = plan_documents(scan([tmp_path / "r.fa"], lambda _: None, store.append))
        tracemalloc.start()
        found = source.plan(plan, store)
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert found == {"train": 3 * num_documents, "valid": 0}
    assert kept < num_documents / 2, kept


@pytest.mark.parametrize(
    ("one_file", "expected"), [(False, ["x", "y", "z", "y"]), (True, ["x", "y", "z", "x", "y"])]
)
def test_a_part_reads_no_files_that_it_has_nothing_of(
    variant_options: Callable[..., PreprocessOptions],
    variant_records: list[Record],
    contigs_read: list[str],
    tmp_path: Path,
    one_file: bool,
    expected: list[str],
) -> None:
    """All are read to plan; then those before the part are not, nor a contig that follows it."""
    vcfs = tuple(
        write_vcf(
            tmp_path / f"{'-'.join(names)}.vcf.gz",
            vcf_text([record for record in variant_records if record.contig in names], SAMPLES),
        )
        for names in ([("x", "y", "z")] if one_file else [("x",), ("y",), ("z",)])
    )
    options = variant_options(
        holdout=(),
        haplotypes=HaplotypeOptions(vcfs, no_reference=True),
        part=(Fraction(2, 5), Fraction(3, 5)),
    )
    manifest = preprocess(options)
    assert contigs_read == expected
    rows = manifest["haplotypes"]["haplotypes"]
    assert {row["contig"] for row in rows if row["train"]["documents"]} == {"y"}


def test_every_part_has_the_splits_of_its_documents(
    variant_options: Callable[..., PreprocessOptions],
) -> None:
    """Parts so small that a haplotype's training and held-out documents are in different ones."""
    options = variant_options(context=40)
    whole, num_documents = preprocess(options)["totals"], {"train": 0, "valid": 0}
    for number in range(40):
        part = (Fraction(number, 40), Fraction(number + 1, 40))
        prefix = options.output_prefix.with_name(f"p{number}")
        totals = preprocess(replace(options, part=part, output_prefix=prefix))["totals"]
        for split in num_documents:
            there = prefix.with_name(f"{prefix.name}_{split}.idx").exists()
            assert there == (totals[split]["documents"] > 0)
            num_documents[split] += totals[split]["documents"]
    assert num_documents == {split: whole[split]["documents"] for split in num_documents}
    assert not list(options.output_prefix.parent.glob("*.partial"))


def test_finished_documents_take_few_bytes() -> None:
    """A shard writes tens of millions: a tuple of each would take gigabytes."""
    tracemalloc.start()
    finished = Finished()
    for number in range(20_000):
        finished.append("train" if number % 3 else "valid", 1_000 + number)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 12 * 20_000
    splits, tokens = finished.rest(19_997)
    assert (splits.tolist(), tokens.tolist()) == ([0, 1, 0], [20_997, 20_998, 20_999])
