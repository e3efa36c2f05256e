"""A run begun under another Megatron-Core goes on under this one (`make test-latest`)."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.small_run import PP, SP, TP
from tests.dist.test_resume import _go_back, _record, _train

ROOT = Path(__file__).parents[2]
# Named by `make test-latest`: the interpreter of an environment with an older Megatron-Core.
OLDER_PYTHON = os.environ.get("MEGATRON_DNA_OLDER_PYTHON", "")
MEMORY = ["memory.num_mem_tokens=4", "memory.max_n_segments=3", "memory.update=binary"]


def _older(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the older environment's Python on this tree; what it prints."""
    return subprocess.run(
        [OLDER_PYTHON, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        check=True,
    )


@pytest.fixture(scope="module", autouse=True)
def _two_versions() -> None:
    if not OLDER_PYTHON:
        pytest.skip("MEGATRON_DNA_OLDER_PYTHON names no environment: `make test-latest` does")
    older = _older("-c", "from importlib.metadata import version; print(version('megatron-core'))")
    if older.stdout.strip() == version("megatron-core"):
        pytest.skip(f"both environments have Megatron-Core {older.stdout.strip()}")


@pytest.mark.parametrize("extra", [[], MEMORY], ids=["plain", "memory"])
def test_a_run_goes_on_under_a_newer_megatron_core(tmp_path: Path, extra: list[str]):
    """A difference means that an upgrade in the middle of a run changes the run."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [
        *write_data(tmp_path), *extra, "train.train_iters=10", "checkpoint.save_interval=5",
    ]  # fmt: skip
    run_ranks(_train, 1, [*options, f"train.output_dir={whole}"])
    options.append(f"train.output_dir={parts}")
    _older("pretrain_dna_bert.py", *options)
    _go_back(parts, 5)
    assert run_ranks(_train, 4, [*options, TP, SP, PP]) == [5] * 4
    want, got = _record(whole), _record(parts)
    assert [line.keys() for line in got] == [line.keys() for line in want]
    for want_line, got_line in zip(want, got, strict=True):
        assert got_line == pytest.approx(want_line, rel=1e-5)
