"""Fixtures of the tests of preprocessing: a tokenizer, contigs and FASTA files of them."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pysam
import pytest
import yaml

from megatron_dna.data.haplotypes import HaplotypeOptions
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.tokenizer.train import train_tokenizer
from tests.unit.genome_files import EXAMPLE, HOLDOUT
from tests.unit.variant_files import (
    SAMPLES,
    VARIANT_HOLDOUT,
    Record,
    random_records,
    vcf_text,
    write_vcf,
)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([EXAMPLE], 512, path, sample_bases=300_000)
    return path


@pytest.fixture(scope="session")
def contigs() -> dict[str, str]:
    """Raw sequence by contig: real, with gaps, short runs of N, soft masking and IUPAC codes."""
    with pysam.FastaFile(str(EXAMPLE)) as example:
        real = example.fetch("20", 1_000_000, 1_100_000)
    first = list(real[:60_000] + "N" * 10 + real[60_000:70_000])
    first[5_000:5_012] = "N" * 12
    first[24_000:24_500] = "N" * 500  # in a held-out region
    first[29_995:30_020] = "N" * 25  # over the end of a held-out region
    first[40_000:40_009] = "N" * 9
    first[41_000:41_500] = "".join(first[41_000:41_500]).lower()
    first[42_000:42_004] = "RyKm"
    return {
        "a": "".join(first),
        "b": real[70_000:80_000],
        "tiny": real[80_000:80_030],
        "c": "N" * 30 + real[80_030:] + "N" * 11,
    }


@pytest.fixture(scope="session")
def fastas(tmp_path_factory: pytest.TempPathFactory, contigs: dict[str, str]) -> tuple[Path, ...]:
    """Two files: plain with CRLF and blank lines, and gzipped with long lines."""
    folder = tmp_path_factory.mktemp("fasta")
    records = {name: f">{name} real\r\n" for name in ("a", "b")}
    for name in records:
        lines = [contigs[name][i : i + 61] for i in range(0, len(contigs[name]), 61)]
        records[name] += "\r\n".join(lines) + "\r\n\r\n"
    (folder / "1.fa").write_text("".join(records.values()), newline="")
    rest = "".join(f">{name}\n{contigs[name]}\n" for name in ("tiny", "c"))
    (folder / "2.fa.gz").write_bytes(gzip.compress(rest.encode()))
    return folder / "1.fa", folder / "2.fa.gz"


@pytest.fixture
def options(
    tmp_path: Path, fastas: tuple[Path, ...], tokenizer_path: Path
) -> Callable[..., PreprocessOptions]:
    """Makes options; held-out regions and both strands unless told otherwise."""

    def make(**changes: Any) -> PreprocessOptions:
        defaults: dict[str, Any] = {
            "fasta": fastas,
            "tokenizer": tokenizer_path,
            "output_prefix": tmp_path / "out" / "p",
            "reverse_complement": True,
            "holdout": HOLDOUT,
        }
        return PreprocessOptions(**(defaults | changes))

    return make


@pytest.fixture(scope="session")
def variant_contigs() -> dict[str, str]:
    """Random bases, with gaps and short runs of N."""
    draw = random.Random(5)
    bases = {name: "".join(draw.choices("ACGT", k=3000)) for name in ("x", "y", "z")}
    for start, length in ((0, 12), (700, 9), (1490, 10), (2000, 40)):
        bases["x"] = bases["x"][:start] + "N" * length + bases["x"][start + length :]
    return bases


@pytest.fixture(scope="session")
def variant_records(variant_contigs: dict[str, str]) -> list[Record]:
    """Dense random records, and some on the borders of what is held out."""
    contigs = variant_contigs
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
def variant_options(
    tmp_path: Path,
    variant_contigs: dict[str, str],
    variant_records: list[Record],
    tokenizer_path: Path,
) -> Callable[..., PreprocessOptions]:
    """Options to write all haplotypes of the records, both strands, with held-out regions."""
    fasta = tmp_path / "in" / "r.fa"
    fasta.parent.mkdir()
    fasta.write_text("".join(f">{name}\n{bases}\n" for name, bases in variant_contigs.items()))
    vcf = write_vcf(tmp_path / "in" / "v.vcf.gz", vcf_text(variant_records, SAMPLES))

    def options(**changes: Any) -> PreprocessOptions:
        haplotypes = HaplotypeOptions((vcf,), context=changes.pop("context", None))
        defaults: dict[str, Any] = {
            "fasta": (fasta,),
            "tokenizer": tokenizer_path,
            "output_prefix": tmp_path / "out" / "p",
            "reverse_complement": True,
            "holdout": VARIANT_HOLDOUT,
            "haplotypes": haplotypes,
        }
        return PreprocessOptions(**(defaults | changes))

    return options


@pytest.fixture
def corpus(tmp_path: Path, fastas: tuple[Path, ...], tokenizer_path: Path) -> Path:
    """Three sources of very different sizes."""
    (tmp_path / "tiny.fa").write_text(">t1\nACGTACGTTTGA\n>t2\nGATTACAGATTACA\n")
    (tmp_path / "c.bed").write_text("# held out\nc\t50\t150\textra\n\nc\t100\t400\n")
    path = tmp_path / "corpus.yaml"
    sources: dict[str, Any] = {
        "first": {
            "fasta": str(fastas[0]),
            "species": "Homo sapiens",
            "weight": 0.5,
            "holdout": ["b"],
            "reverse_complement": True,
        },
        "second-1": {"fasta": [str(fastas[1])], "holdout": "c.bed", "min_length": 20},
        "third": {"fasta": "tiny.fa", "weight": 3, "drop_duplicate_windows": 64},
    }
    path.write_text(yaml.safe_dump({"tokenizer": str(tokenizer_path), "sources": sources}))
    return path
