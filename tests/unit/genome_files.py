"""What the tests of preprocessing share: files to read, and slow ways to know what is in them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from megatron.core.datasets.indexed_dataset import IndexedDataset
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/data/human_chr20_1-4000000.fa.gz"
TOOL = ROOT / "tools/preprocess_genome.py"
HOLDOUT = ("a:20001-30000", "b", "a:59000-60050")
COMPLEMENT = str.maketrans("ACGTN", "TGCAN")


def read(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(str(prefix))
    return [dataset[i].tolist() for i in range(len(dataset))]


def files(folder: Path) -> dict[str, bytes]:
    """Name and content of everything in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def clean(sequence: str) -> str:
    return "".join(base if base in "ACGT" else "N" for base in sequence.upper())


def reverse_complement(sequence: str) -> str:
    return sequence.translate(COMPLEMENT)[::-1]


@functools.cache
def load(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_path))


def encode(tokenizer_path: Path, sequence: str) -> list[int]:
    """Ids by Hugging Face `tokenizers`."""
    return list(load(tokenizer_path).encode(sequence, add_special_tokens=False).ids)


def child_environment() -> dict[str, str]:
    """Lets a child process import the package from the working tree."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, check=False
    )
