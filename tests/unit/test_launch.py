"""What the launcher sets for the workers, and for the GPUs that are here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pretrain_dna_bert
from megatron_dna.checkpoint.manifest import CheckpointError
from megatron_dna.config import ConfigError
from megatron_dna.training.guard import DivergenceError
from tools.launch import main, max_connections

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("answer", "want"),
    [("9.0\n9.0", "1"), ("8.0", "1"), ("10.0\n10.0", "32"), ("12.0\n9.0", "1"),
     ("NVIDIA-SMI has failed", "1"), (None, "1")],
)  # fmt: skip
def test_connections_follow_the_oldest_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None, want: str
):
    """One connection too many on Hopper, and nothing of TP hides."""
    monkeypatch.setenv("PATH", str(tmp_path))
    if answer is not None:
        (tmp_path / "answer").write_text(f"{answer}\n")
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\nwhile read -r l; do echo $l; done < {tmp_path}/answer\n")
        script.chmod(0o755)
    assert max_connections() == want


SET = {
    "OMP_NUM_THREADS": "1",
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "PET_SHUTDOWN_TIMEOUT": "600",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
    "NCCL_P2P_NET_CHUNKSIZE": "2097152",
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",
}
WORKER = """\
import json, os, signal, sys
json.dump(dict(os.environ), open(sys.argv[1], "w"))
if len(sys.argv) > 2:
    os.kill(os.getpid(), int(sys.argv[2]))
"""


def test_workers_have_the_environment_and_a_kill_is_status_1(tmp_path: Path):
    """If not, a signal does not reach the run, a save is cut off, or a restart meets dead ranks.

    Its exit status is that of a crash: a negative one would become any number.
    """
    worker, record = tmp_path / "worker.py", tmp_path / "environment"
    worker.write_text(WORKER)
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 10.0\n")
    smi.chmod(0o755)
    own = {name: value for name, value in os.environ.items() if name not in SET}
    done = subprocess.run(
        [sys.executable, "tools/launch.py", "--nproc-per-node", "1", worker, record, "9"],
        cwd=ROOT, env=own | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "launch: rank 0 ended first, with status -9" in done.stderr
    found = json.loads(record.read_text())
    assert {name: found.get(name) for name in SET} == SET
    # Not torchrun's default, which has one port and one store for all starts.
    assert found["TORCHELASTIC_RUN_ID"] != "none"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    """If not, a cluster's own settings cannot be given."""
    given = dict.fromkeys(SET, "7")
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr("tools.launch._launch", lambda arguments: len(arguments))
    assert main(["--nproc-per-node", "2", "script.py"]) == 3
    assert {name: os.environ[name] for name in SET} == given


class _Run:
    """A trainer whose opening and training end as told."""

    def __init__(self, opened: object, trained: object) -> None:
        self._trained = trained
        _end(opened)

    def train(self) -> object:
        return _end(self._trained)

    def close(self) -> None:
        pass


def _end(outcome: object) -> object:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@pytest.mark.parametrize(
    ("opened", "trained", "status"),
    [
        (None, True, 0),
        (None, False, 75),
        (None, DivergenceError("loss is nan"), 3),
        (DivergenceError("diverged before"), None, 3),
        (ConfigError("bad"), None, 2),
        (FileNotFoundError("no data"), None, 2),
        (None, CheckpointError("disk full"), 1),
    ],
)
def test_a_run_s_end_is_its_status(
    monkeypatch: pytest.MonkeyPatch, opened: object, trained: object, status: int
):
    """If not, Slurm starts again what has diverged, or leaves what it has pre-empted, or what only
    the disk has failed."""
    monkeypatch.setattr(pretrain_dna_bert, "build", lambda *_: _Run(opened, trained))
    assert pretrain_dna_bert.main([]) == status


@pytest.mark.parametrize("error", [ValueError("a library's"), OSError("a file system's")])
def test_a_crash_in_training_keeps_its_stack(monkeypatch: pytest.MonkeyPatch, error: Exception):
    """If not, nobody can tell where a run of days ended, and Slurm takes it for a bad option."""
    monkeypatch.setattr(pretrain_dna_bert, "build", lambda *_: _Run(None, error))
    with pytest.raises(type(error)):
        pretrain_dna_bert.main([])
