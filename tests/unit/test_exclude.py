"""Excluded contigs: in no file, as if the FASTA and the VCF file had never had them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_dna.data.corpora import merge_corpus, preprocess_corpus, read_corpus
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from megatron_dna.genome.variants import VariantOptions, read_variants
from megatron_dna.genome.vcf import open_vcf
from tests.unit.genome_files import files, run_tool
from tests.unit.variant_files import SAMPLES, Record, Text, vcf_text

OUTPUTS = ("p_train.bin", "p_train.idx", "p_valid.bin", "p_valid.idx")


def outputs(options: PreprocessOptions) -> dict[str, bytes]:
    found = files(options.output_prefix.parent)
    return {name: found[name] for name in OUTPUTS}


def test_what_is_excluded_is_in_no_file(
    options: Callable[..., PreprocessOptions],
    fastas: tuple[Path, ...],
    contigs: dict[str, str],
    tmp_path: Path,
) -> None:
    """A copy of what is held out would stay in training, and flatter every score on it."""
    copy = tmp_path / "copy.fa"
    copy.write_text(f">b_alt\n{contigs['b']}\n>HLA-A*01:01\n{contigs['b'][:500]}\n")
    preprocess(options())
    expected = outputs(options())
    manifest = preprocess(options(fasta=(*fastas, copy), exclude=("*_alt", "HLA-A*01:01")))
    assert outputs(options()) == expected
    assert manifest["excluded"] == [
        {"name": "b_alt", "fasta": str(copy), "bases": 10_000},
        {"name": "HLA-A*01:01", "fasta": str(copy), "bases": 500},
    ]
    assert manifest["options"]["exclude"] == ["*_alt", "HLA-A*01:01"]
    assert [row["name"] for row in manifest["contigs"]] == list(contigs)
    preprocess(options(fasta=(*fastas, copy)))
    assert outputs(options()) != expected


def test_records_of_excluded_contigs_are_passed_over(
    variant_options: Callable[..., PreprocessOptions],
    variant_contigs: dict[str, str],
    variant_records: list[Record],
    tmp_path: Path,
) -> None:
    """Even if they could not be read: one with no phase, and one that is not in the FASTA."""
    options = variant_options(holdout=("x:901-1000",), exclude=("y",))
    bad = [
        Record("y", 2_998, "ACGT", ("A",), ("0|1|1", "0/1")),
        Record("y", 10, "A" * 9, ("A",), ("0|1", "0")),
    ]
    records = [r for r in variant_records if r.contig == "x"] + bad
    records += [r for r in variant_records if r.contig == "z"]
    vcf = options.haplotypes.vcf[0]
    vcf.write_bytes(gzip.compress(vcf_text(records, SAMPLES).encode()))
    manifest = preprocess(options)
    assert [row["contig"] for row in manifest["haplotypes"]["contigs"]] == ["x", "z"]
    found = outputs(options)
    vcf.write_bytes(
        gzip.compress(vcf_text([r for r in records if r.contig != "y"], SAMPLES).encode())
    )
    options.fasta[0].write_text("".join(f">{n}\n{variant_contigs[n]}\n" for n in ("x", "z")))
    preprocess(variant_options(holdout=("x:901-1000",)))
    assert outputs(options) == found


@pytest.mark.parametrize("chunk", [1, 3, 1_000])
@pytest.mark.parametrize("newline", ["\n", "\n\n", "\r\n"])
def test_an_excluded_contig_anywhere_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newline: str, chunk: int
) -> None:
    """Chunks of lines may begin and end anywhere in it."""
    contigs = {name: Text("ACGTACGTAC") for name in ("a", "b")}
    records = {
        name: [Record(name, at, "ACGTACGTAC"[at], ("N",), ("0|1",)) for at in (1, 3, 5, 7)]
        for name in ("a", "b", "gone", "gone2")
    }
    path = tmp_path / "v.vcf"
    path.write_text(vcf_text([], ("s",)))
    vcf = open_vcf(path)

    def texts(names: str) -> list[tuple[str, bytes]]:
        lines = [r.line().rstrip("\n") + newline for n in names.split() for r in records[n]]
        parts = ["".join(lines[i : i + chunk]).encode() for i in range(0, len(lines), chunk)]
        monkeypatch.setattr(type(vcf), "read_lines", lambda self: iter(parts))
        found = read_variants([vcf], ["s"], contigs, VariantOptions(), {"gone", "gone2"})
        return [(v.contig, v.haplotypes[1].read(0, 10)) for v in found]

    expected = texts("a b")
    assert [contig for contig, _ in expected] == ["a", "b"]
    for names in ("gone a b", "a gone b", "a b gone", "gone gone2 a b", "a gone gone2 b"):
        assert texts(names) == expected
    with pytest.raises(ValueError, match="must have records of contigs that exclude does not"):
        texts("gone")
    for names in ("gone a gone b", "a gone a"):
        with pytest.raises(ValueError, match="comes a second time"):
            texts(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exclude": ("chrUn_*",)}, r"exclude \(chrUn_\*\) must match a contig .* a, b, tiny, c"),
        ({"exclude": ("A",)}, r"exclude \(A\) must match a contig"),
        ({"exclude": ("?",)}, r"holdout \(a:20001-30000\) must not name contig 'a', which exclude"),
        ({"exclude": ("*",), "holdout": ()}, "no document for train: .* or excluded"),
    ],
)
def test_a_wrong_exclusion_is_one_clear_error(
    options: Callable[..., PreprocessOptions], changes: dict[str, Any], message: str
) -> None:
    """A pattern that matches nothing leaves in what it was to leave out."""
    with pytest.raises(ValueError, match=message):
        preprocess(options(**changes))
    assert not files(options().output_prefix.parent)


def test_shards_and_the_command_line_exclude_too(
    fastas: tuple[Path, ...], tokenizer_path: Path, tmp_path: Path
) -> None:
    source = {"fasta": [str(path) for path in fastas], "exclude": ["tin*"], "holdout": "b"}
    path = tmp_path / "corpus.yaml"
    path.write_text(yaml.safe_dump({"tokenizer": str(tokenizer_path), "sources": {"p": source}}))
    for shard in ((1, 2), (2, 2)):
        list(preprocess_corpus(read_corpus(path, tmp_path / "merged"), shard))
    list(merge_corpus(read_corpus(path, tmp_path / "merged"), tmp_path / "merged"))
    list(preprocess_corpus(read_corpus(path, tmp_path / "direct")))
    assert files(tmp_path / "merged") == files(tmp_path / "direct")
    done = run_tool(
        *("--fasta", *fastas, "--exclude", "tin*", "--holdout", "b"),
        *("--tokenizer", tokenizer_path, "--output-prefix", tmp_path / "shell" / "p"),
    )
    assert done.returncode == 0, done.stderr
    assert "excluded: 1 contigs, 30 bases" in done.stdout
    for name in OUTPUTS:
        assert files(tmp_path / "shell")[name] == files(tmp_path / "direct")[name]
