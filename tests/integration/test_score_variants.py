"""tools/score_variants.py as a user runs it, on the example's variants."""

from __future__ import annotations

import gzip
from pathlib import Path

import pysam
import pytest

from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from tests.integration.commands import ROOT, run_python
from tests.unit.variant_models import save_model

TOOL = "tools/score_variants.py"
FASTA = ROOT / "examples/data/human_chr20_1-4000000.fa.gz"
VCF = ROOT / "examples/data/human_kgp_chr20_20samples.vcf.gz"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_kmer_tokenizer(1, folder / "tokenizer.json")
    return save_model(folder / "rmt", folder / "tokenizer.json", num_mem_tokens=2)


def test_real_variants_are_scored(tmp_path: Path, model: Path) -> None:
    with gzip.open(VCF, "rt") as lines:
        text = [line for _, line in zip(range(60), lines, strict=False)]
    (tmp_path / "v.vcf").write_text("".join(text))
    done = run_python(
        *(TOOL, "--model", model, "--fasta", FASTA, "--vcf", tmp_path / "v.vcf"),
        *("--output", tmp_path / "s.vcf.gz", "--segment-size", "32"),
    )
    assert done.returncode == 0, done.stderr
    assert "without a score: 0 symbolic, 0 ambiguous, 0 too long" in done.stdout
    with pysam.VariantFile(str(tmp_path / "s.vcf.gz")) as file:
        records = list(file.fetch("20"))
    assert len(records) == sum(not line.startswith("#") for line in text) > 40
    assert all(len(record.info["MDNA_LLR"]) == len(record.alts) for record in records)
    assert len({record.info["MDNA_DIST"] for record in records}) > 40


def test_a_region_is_mutated(tmp_path: Path, model: Path) -> None:
    done = run_python(
        *(TOOL, "--model", model, "--fasta", FASTA, "--output", tmp_path / "m.tsv"),
        *("--in-silico-mutagenesis", "20:1000001-1000005"),
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "m.tsv").read_text().splitlines()) == 1 + 5 * 3
    assert {path.name for path in tmp_path.iterdir()} == {"m.tsv", "m.png"}
