"""Every benchmark explains itself, and runs to its end on little; its numbers are not judged."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from megatron_dna.tokenizer.train import train_tokenizer
from tests.integration.commands import ROOT, run_python

EXAMPLE_FASTA = ROOT / "examples/data/human_chr20_1-4000000.fa.gz"

RUNS = {
    "bpe": "bpe.py --tokenizer T --num-bases 200000 --rounds 1",
    "haplotypes": "haplotypes.py --tokenizer T --rounds 1",
    "inference": "inference.py --tokenizer T --num-contigs 2 --contig-length 200 300 "
    "--num-layers 1 --hidden-size 64 --segment-size 64 --rounds 1",
    "inference, memory": "inference.py --measure memory --tokenizer T --num-bases 100000",
    "loader": "loader.py --num-tokens 100000 --seconds 0.05",
    "memory overhead": "memory_overhead.py --length 32 --num-layers 1 --hidden-size 64 --rounds 1",
    "preprocess": "preprocess.py --tokenizer T --measure speed workers --rounds 1",
    "training step": "training.py --length 32 --num-layers 1 --hidden-size 64 --rounds 1",
    "training save": "training.py --measure save --folder F --length 32 --num-layers 1 "
    "--hidden-size 64 --rounds 1",
}
"""T: a tokenizer; F: an empty folder."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmarks") / "tokenizer.json"
    train_tokenizer([EXAMPLE_FASTA], 256, path, sample_bases=200_000)
    return path


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, tokenizer: Path, tmp_path: Path) -> None:
    """They are run rarely, so a change elsewhere would break them unseen."""
    if name == "haplotypes" and not shutil.which("bcftools"):
        pytest.skip("bcftools is not installed")
    values = {"T": str(tokenizer), "F": str(tmp_path)}
    script, *options = (values.get(word, word) for word in RUNS[name].split())
    done = run_python(f"benchmarks/{script}", *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+\.\d", done.stdout), done.stdout


def test_all_are_run() -> None:
    scripts = {path.name for path in ROOT.glob("benchmarks/*.py")} - {"machine.py"}
    assert scripts == {run.split()[0] for run in RUNS.values()}


@pytest.mark.parametrize("script", sorted({run.split()[0] for run in RUNS.values()}))
def test_explains_itself(script: str) -> None:
    done = run_python(f"benchmarks/{script}", "--help")
    assert done.returncode == 0, done.stderr
    assert f"benchmarks/{script}" in done.stdout.partition("\n\n")[2]
