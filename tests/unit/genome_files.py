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


# Heads a program that preprocesses: it is killed KILL_DELAY seconds after it has added line
# KILL_LINE to the journal, or has begun to give the files their names (0). A parent that watched
# the files would be late on a busy machine. A line for each document; no KILL_LINE: no kill.
KILLED = """
import os, signal, threading
from megatron_dna.data import output

output.CHECKPOINT_BASES = 1
kill_line, num_lines = int(os.environ.get("KILL_LINE", -1)), 0
checkpoint, publish = output.Output._checkpoint, output.Output.publish

def kill_at(line):
    if line == kill_line:
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
        threading.Timer(float(os.environ["KILL_DELAY"]), kill).start()

def add_line(self):
    global num_lines
    checkpoint(self)
    num_lines += 1
    kill_at(num_lines)

def begin_publishing(self, manifest):
    kill_at(0)
    publish(self, manifest)

output.Output._checkpoint, output.Output.publish = add_line, begin_publishing
"""


def child_environment() -> dict[str, str]:
    """Lets a child process import the package from the working tree."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, check=False
    )
