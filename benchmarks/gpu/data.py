"""Real tokens: the human DNA of examples/data, both strands, by a tokenizer trained on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FASTA = "examples/data/human_chr20_1-4000000.fa.gz"
HOLDOUT = "20:3000001-4000000"


def prepare(folder: Path, vocab_size: int) -> list[str]:
    """Make tokenizer and token files in `folder`, but for what is there; returns a run's options.

    Raises:
        RuntimeError: a tool failed; the message is its own.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, prefix = folder / f"tokenizer_{vocab_size}.json", folder / f"chr20_{vocab_size}"
    if not tokenizer.exists():
        _run(
            "tools/train_tokenizer.py", "--fasta", FASTA, "--holdout", HOLDOUT,
            "--vocab-size", str(vocab_size), "--output", str(tokenizer),
        )  # fmt: skip
    if not Path(f"{prefix}.json").exists():
        _run(
            "tools/preprocess_genome.py", "--fasta", FASTA, "--holdout", HOLDOUT, "--tokenizer",
            str(tokenizer), "--output-prefix", str(prefix), "--reverse-complement",
        )  # fmt: skip
    return [
        f"data.tokenizer={tokenizer}",
        f"data.train=[{{prefix: {prefix}_train}}]",
        f"data.valid=[{{prefix: {prefix}_valid}}]",
    ]


def environment() -> dict[str, str]:
    """Of the programs that are started here: they find this checkout first."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"}


def _run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment(), text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} failed: {done.stderr[-2000:]}")
