"""Corpus files: every mistake is named, and no source trains on what another one holds out."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_dna.data.corpora import Source, read_corpus
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from megatron_dna.genome.regions import Region, read_bed
from tests.unit.genome_files import ROOT, files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": 3}, "tokenizer must be the path"),
        ({"extra": 1}, "there is no key 'extra'; the keys are tokenizer, sources"),
        ({"sources": {}}, "sources must map names to sources"),
        ({"sources": {"a": 1}}, "sources.a must map keys"),
        ({"sources": {"a/b": {"fasta": "x.fa"}}}, "sources.a/b: a name must be letters"),
        ({"sources": {"a": {"fasta": "x.fa", "wieght": 1}}}, "no key 'wieght'"),
        ({"sources": {"a": {"fasta": []}}}, "a.fasta must name at least one file"),
        ({"sources": {"a": {"weight": 1}}}, "a.fasta must name at least one file"),
        ({"sources": {"a": {"fasta": [1]}}}, r"a.fasta \(\[1\]\) must be text, or a list"),
        ({"sources": {"a": {"fasta": "x", "weight": True}}}, r"weight \(True\) must be a number"),
        ({"sources": {"a": {"fasta": "x", "weight": 0}}}, r"weight \(0\) must be positive"),
        ({"sources": {"a": {"fasta": "x", "min_length": "1"}}}, "must be a whole number"),
        ({"sources": {"a": {"fasta": "x", "reverse_complement": 1}}}, "must be true or false"),
        ({"sources": {"a": {"fasta": "x", "vcf": 1}}}, r"a.vcf \(1\) must be text, or a list"),
        ({"sources": {"a": {"fasta": "x", "seed": 1}}}, "a.seed goes with vcf, which is not given"),
        (
            {"sources": {"a": {"fasta": "x", "vcf": "v", "variant_context": 0}}},
            r"a.variant_context \(0\) must be a number of bases from 1 on, or all",
        ),
        (
            {"sources": {"a": {"fasta": "x", "vcf": "v", "variant_context": "1k"}}},
            r"a.variant_context \(1k\) must be a number of bases from 1 on, or all",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(
    corpus: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    corpus.write_text(yaml.safe_dump(yaml.safe_load(corpus.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_corpus(corpus, tmp_path / "out")


@pytest.mark.parametrize(
    ("holdout", "is_same"),
    [
        ("20:3-5", True),
        (["20:5-5", "20:3-4"], True),
        ("held.bed", True),
        (None, False),
        ("20", False),
        ("20:3-6", False),
        ("21:3-5", False),
        (["20:3-5", "21"], False),
    ],
)
def test_sources_of_one_fasta_hold_out_the_same(
    corpus: Path, tmp_path: Path, holdout: str | list[str] | None, is_same: bool
) -> None:
    """A failure would train on one source's held-out bases by way of another source."""
    (tmp_path / "held.bed").write_text("20\t2\t4\n20\t3\t5\n")
    (tmp_path / "x.fa").write_text(">20\nACGTACGT\n>21\nACGTACGT\n")
    (tmp_path / "link.fa").symlink_to(tmp_path / "x.fa")
    content = yaml.safe_load(corpus.read_text())
    second = {"fasta": ["tiny.fa", "link.fa"]} | ({"holdout": holdout} if holdout else {})
    content["sources"] = {
        "first": {"fasta": "x.fa", "holdout": "20:3-5"},
        "other": {"fasta": "elsewhere.fa"},
        "second": second,
    }
    corpus.write_text(yaml.safe_dump(content))
    if is_same:
        assert len(read_corpus(corpus, tmp_path / "out")) == 3
        return
    with pytest.raises(ValueError, match=r"sources\.second\.holdout .* regions of sources\.first"):
        read_corpus(corpus, tmp_path / "out")


@pytest.mark.parametrize("content", [b"a: [", b"- 1\n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_corpus(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.yaml"):
        read_corpus(tmp_path / "c.yaml", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no region"),
        ("20\t1\n", r"line 1 .* must be CONTIG, START and END"),
        ("20\t-1\t5\n", "line 1 .* must be CONTIG, START and END"),
        ("20\t5\t5\n", "line 1 .* 0 <= START < END"),
        ("\n20\t5\t101\n", "line 2 .* 0 <= START < END <= 100"),
        ("chr20\t5\t6\n", "no contig 'chr20'"),
    ],
)
def test_a_bad_bed_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    """A failure would hold out nothing, and the leak would never show."""
    (tmp_path / "x.bed").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_bed(tmp_path / "x.bed", {"20": 100})


def test_a_bed_file_is_read_as_written(tmp_path: Path) -> None:
    text = b"track name=x\nbrowser position\n#c\n20\t0\t5\tname\t0\t+\r\n20 7 100\n"
    expected = [Region("20", 0, 5), Region("20", 7, 100)]
    (tmp_path / "x.bed").write_bytes(text)
    assert read_bed(tmp_path / "x.bed", {"20": 100}) == expected
    (tmp_path / "x.bed.gz").write_bytes(gzip.compress(text))
    assert read_bed(tmp_path / "x.bed.gz", {"20": 100}) == expected
    (tmp_path / "x.bed.gz").write_bytes(gzip.compress(text)[:-4])
    with pytest.raises(ValueError, match="damaged"):
        read_bed(tmp_path / "x.bed.gz", {"20": 100})


def test_a_bed_file_holds_out_what_regions_do(
    options: Callable[..., PreprocessOptions], tmp_path: Path
) -> None:
    """The same bases in both ways of writing them: files are equal byte for byte."""
    manifest = preprocess(options())
    expected = files(options().output_prefix.parent)
    bed = tmp_path / "held.bed.gz"
    bed.write_bytes(gzip.compress(b"a\t20000\t30000\na\t58999\t60050\n"))
    found = preprocess(options(holdout=(str(bed), "b"), output_prefix=tmp_path / "bed/p"))
    assert found["documents"] == manifest["documents"]
    assert found["holdout"] == manifest["holdout"]
    assert found["inputs"][-1]["path"] == str(bed)
    for name in ("p_train.bin", "p_train.idx", "p_valid.bin", "p_valid.idx"):
        assert files(tmp_path / "bed")[name] == expected[name]


def test_every_recipe_reads(tmp_path: Path) -> None:
    """A failure would be the first thing that a user of the recipe sees."""
    recipes = sorted((ROOT / "examples/corpora").glob("*.yaml"))
    assert len(recipes) >= 2
    for path in recipes:
        sources = read_corpus(path, tmp_path)
        assert all(isinstance(source, Source) for source in sources)
