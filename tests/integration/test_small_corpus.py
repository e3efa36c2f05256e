"""examples/corpora/small.yaml as its head says, on the genomes of ../shared/data where they are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml
from megatron.core.datasets.indexed_dataset import IndexedDataset
from tokenizers import Tokenizer

from tests.integration.commands import ROOT, run_python

CORPUS = ROOT / "examples/corpora/small.yaml"
DATA = ROOT.parent / "shared/data"


def test_the_small_corpus_is_made_as_it_says(tmp_path: Path) -> None:
    """A failure would be met by whoever prepares several species for the first time."""
    content = yaml.safe_load(CORPUS.read_text())
    names = [content["tokenizer"]]
    names += [s[key] for s in content["sources"].values() for key in ("fasta", "vcf") if key in s]
    missing = [name for name in names if not (DATA / name).exists()]
    if missing:
        pytest.skip(f"../shared/data has no {missing[0]}")
    out = tmp_path / "small"
    done = run_python(
        *("tools/preprocess_genome.py", "--corpus", CORPUS, "--data-dir", DATA),
        *("--output-dir", out, "--workers", "2"),
    )
    assert done.returncode == 0, done.stderr
    blend = yaml.safe_load((out / "blend.yaml").read_text())["data"]["train"]
    weights = {Path(source["prefix"]).name: source["weight"] for source in blend}
    assert weights == {f"{n}_train": s["weight"] for n, s in content["sources"].items()}
    assert sum(weights[f"human{end}_train"] for end in ("", "_1000g")) == sum(weights.values()) / 2
    manifests = {
        name: json.loads((out / f"{name}.json").read_text()) for name in content["sources"]
    }
    assert manifests["human"]["holdout"] == manifests["human_1000g"]["holdout"]
    assert [row["bases"] for row in manifests["fly"]["contigs"]] == [21_146_708]  # dm3, not dm6
    assert len(manifests["human_1000g"]["haplotypes"]["haplotypes"]) == 40

    (row, *_) = manifests["ecoli"]["documents"]["valid"]
    fasta = DATA / content["sources"]["ecoli"]["fasta"]
    lines = gzip.decompress(fasta.read_bytes()).decode().split("\n")  # one record
    held_out = "".join(lines[1:]).upper()[row["start"] : row["end"]]
    tokenizer = Tokenizer.from_file(str(DATA / content["tokenizer"]))
    dataset = IndexedDataset(str(out / "ecoli_valid"))  # its arrays do not outlive it
    assert "".join(map(tokenizer.id_to_token, dataset[0].tolist())) == held_out
