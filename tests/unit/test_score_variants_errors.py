"""Bad input of variant scores: named, with the place, and nothing is left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import ModernBertModel

from megatron_dna.inference.masked import MaskedModel
from megatron_dna.inference.mutagenesis import mutate_region
from megatron_dna.inference.scored_vcf import score_vcf
from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from tests.unit.variant_models import save_model

CPU = torch.device("cpu")
BASES = "N" * 20 + "ACGTTGCAAC" * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_kmer_tokenizer(1, folder / "tokenizer.json")
    return save_model(folder / "plain", folder / "tokenizer.json")


@pytest.fixture(scope="module")
def model(folder: Path) -> MaskedModel:
    return MaskedModel(folder, CPU, torch.float32)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fasta") / "g.fa"
    path.write_text(f">x\n{BASES}\n>p\nMKVLAAGHACGT\n")
    return path


def test_bad_models_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"--segment-size \(49\) must be between 16 and 48"):
        MaskedModel(folder, CPU, torch.float32, segment_size=49)
    with pytest.raises(ValueError, match="is not a Hugging Face model folder"):
        MaskedModel(tmp_path, CPU, torch.float32)
    for path in folder.glob("*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_kmer_tokenizer(6, tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="4107 tokens, but config.json vocab_size"):
        MaskedModel(tmp_path, CPU, torch.float32)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        MaskedModel(tmp_path, CPU, torch.float32)


def test_a_model_without_its_head_is_refused(folder: Path, tmp_path: Path):
    """transformers would make one up at random."""
    ModernBertModel.from_pretrained(folder).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="has no weights for .*masked language model"):
        MaskedModel(tmp_path, CPU, torch.float32)


HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
GOOD = "x\t21\t.\tA\tC\t.\t.\t.\n"
BAD_VCFS = {
    "other contig": ("chr9\t5\t.\tT\tA\t.\t.\t.\n", "'chr9', position 5: there is no such"),
    "empty": ("", "there is no record in it"),
    "mismatch": (GOOD + "x\t26\t.\tA\tC\t.\t.\t.\n", "'x', position 26: REF is 'A', but"),
    "beyond": ("x\t321\t.\tA\tC\t.\t.\t.\n", "position 321: REF must lie inside"),
    "before": ("x\t0\t.\tA\tC\t.\t.\t.\n", "position 0: REF must lie inside"),
    "cut short": (GOOD + "x\t26\t.", "no whole VCF or BCF file, behind record 1"),
    "protein": ("p\t4\t.\tL\tC\t.\t.\t.\n", "'L'"),
    "protein beside it": ("p\t9\t.\tA\tC\t.\t.\t.\n", "contig 'p'"),
}


@pytest.mark.parametrize("name", BAD_VCFS)
def test_bad_variants_are_named(model, fasta: Path, tmp_path: Path, name: str):
    """If not, scores are of another assembly, or a file with some of them looks complete."""
    rows, message = BAD_VCFS[name]
    (tmp_path / "v.vcf").write_text(HEADER + rows)
    with pytest.raises(ValueError, match=re.escape(message)):
        score_vcf(model, fasta, tmp_path / "v.vcf", tmp_path / "new" / "s.vcf.gz", 4)
    assert [path.name for path in tmp_path.rglob("*")] == ["v.vcf"]


def test_bad_options_are_named(model, fasta: Path, tmp_path: Path):
    vcf = tmp_path / "v.vcf"
    vcf.write_text(HEADER + GOOD)
    for genome, variants, output, batch_size, message in (
        (fasta, vcf, "s.vcf", 4, "must end in .vcf.gz"),
        (fasta, tmp_path / "absent.vcf", "s.vcf.gz", 4, "absent.vcf) is not a file"),
        (vcf, vcf, "s.vcf.gz", 4, f"--fasta ({vcf})"),
        (fasta, vcf, "s.vcf.gz", 0, "--batch-size (0) must be at least 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            score_vcf(model, genome, variants, tmp_path / output, batch_size)
    for region, output, message in (
        ("x:5-9", "m.txt", "must end in .tsv"),
        ("c:5-9", "m.tsv", "there is no contig 'c'"),
        ("x:5-9", "m.tsv", "nothing but N"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            mutate_region(model, fasta, region, tmp_path / output, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["v.vcf"]


def test_a_file_is_not_scored_twice(model, fasta: Path, tmp_path: Path):
    """Its fields would be another model's."""
    vcf, output = tmp_path / "v.vcf", tmp_path / "s.vcf.gz"
    vcf.write_text(HEADER + GOOD)
    score_vcf(model, fasta, vcf, output, 4)
    with pytest.raises(ValueError, match="has the INFO field MDNA_LLR already"):
        score_vcf(model, fasta, output, tmp_path / "t.vcf.gz", 4)
    with pytest.raises(ValueError, match="is the input; give it another name"):
        score_vcf(model, fasta, output, output, 4)
