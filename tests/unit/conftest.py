"""Fixtures of the tests of preprocessing: a tokenizer, contigs and FASTA files of them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pysam
import pytest

from megatron_dna.data.preprocess import PreprocessOptions
from megatron_dna.tokenizer.train import train_tokenizer
from tests.unit.genome_files import EXAMPLE, HOLDOUT


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
