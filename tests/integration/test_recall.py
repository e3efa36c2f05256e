"""`make recall` and the evaluation of memory, as commands, on a few steps of training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_dna.config import load_config
from megatron_dna.validation import validate

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "train.train_iters=2", "scheduler.lr_warmup_iters=0", "model.hidden_size=32",
    "model.ffn_hidden_size=48", "model.num_attention_heads=2", "train.micro_batch_size=4",
    "train.global_batch_size=4",
]  # fmt: skip


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of the project from its root."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `tools/recall.py` has run."""
    folder = tmp_path_factory.mktemp("recall")
    result = command(
        "tools/recall.py", "--output-dir", f"{folder}/runs", "--docs", f"{folder}/docs",
        "--variants", "binary", "none", "--seeds", "1", "--num-segments", "1,3", "--jobs", "1",
        *QUICK,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_recall_writes_table_and_plot(folder: Path):
    """If this fails, the benchmark of memory cannot be run, or its page is not what it measured."""
    page = (folder / "docs" / "recall.md").read_text()
    assert "| memory | seed | CPU s | 1 | 3 | reset | swapped | donor |" in page
    run = folder / "runs" / "binary_1"
    scores = json.loads((run / "memory_1.json").read_text())
    assert [entry["num_segments"] for entry in scores["scores"]] == [1]
    assert scores["scores"][0]["num_masked"] == 64 * 4
    assert scores["chance"] == 1 / 56
    seconds = float((run / "cpu_seconds").read_text())
    accuracy = scores["scores"][0]["kept"]["accuracy"]
    assert f"| binary | 1 | {seconds:.0f} | {accuracy:.3f} |" in page
    assert "| none | 1 |" in page
    assert (folder / "docs" / "recall.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_draws_and_prints_controls(folder: Path):
    """The command that shows whether a checkpoint uses its memory."""
    result = command(
        "tools/evaluate.py", "--checkpoint", f"{folder}/runs/binary_1", "--num-segments", "2,1",
        "--plot", f"{folder}/memory.png", "--output", f"{folder}/memory.json", "train.eval_iters=1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "kept accuracy" in lines[1]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "2"]
    assert (folder / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((folder / "memory.json").read_text())["scores"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num-segments", "0"], "--num-segments (0) must be positive"),
        (["--num-segments", "2", "train.micro_batch_size=1"], "must be at least 2"),
        (["--data", "mouse"], "data.kind is recall"),
    ],
)
def test_evaluate_refuses_what_it_cannot_do(folder: Path, arguments: list[str], words: str):
    """One line that says what to change, not a traceback."""
    result = command("tools/evaluate.py", "--checkpoint", f"{folder}/runs/binary_1", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_the_recipe_is_valid_at_the_layouts_it_names():
    """A recipe that is refused helps nobody."""
    recipe = ROOT / "examples" / "recall" / "recall.yaml"
    validate(load_config(recipe), world_size=1)
    layout = [
        "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2",
        "train.micro_batch_size=8",
    ]  # fmt: skip
    validate(load_config(recipe, layout), world_size=4)
