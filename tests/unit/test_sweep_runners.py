"""Trials as child processes, and as jobs: of stand-ins for Slurm's programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_dna.sweep.runners import (
    CANCELLED,
    CRASHED,
    LocalRunner,
    Slot,
    SlurmRunner,
    divide,
    parse_numbers,
)
from tests.dist.whole_runs import is_alive, wait_for
from tests.unit.genome_files import child_environment

PROGRAM = """#!/bin/sh
echo "$0 $@" >> "{folder}/calls"
env | sort > "{folder}/environment"
cat "{folder}/{name}.out" && exit $(cat "{folder}/{name}.status" 2>/dev/null || echo 0)
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder: NAME.out is what a program prints, NAME.status its status, `calls` what was run."""
    for name in ("sbatch", "squeue", "scancel"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(PROGRAM.format(folder=tmp_path, name=name))
        path.chmod(0o755)
        (tmp_path / f"{name}.out").write_text("")
    (tmp_path / "sbatch.out").write_text("100;cluster\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path


def _runner() -> SlurmRunner:
    return SlurmRunner(Path("slurm/pretrain.sbatch"), "small", ["--mem=1G"], {"NPROC": "2"})


def _calls(slurm: Path, name: str) -> int:
    path = slurm / "calls"
    return path.read_text().count(f"/{name} ") if path.exists() else 0


def test_a_job_is_its_trial_s_own(slurm: Path) -> None:
    """What the sweep's own job was given must not shape it; where Slurm is must be known."""
    _runner().start(slurm / "trial_0003")
    call = (slurm / "calls").read_text().splitlines()[-1]
    assert f"--job-name=small-0003 --comment={slurm}/trial_0003" in call
    assert call.endswith("--mem=1G slurm/pretrain.sbatch")
    variables = (slurm / "environment").read_text().splitlines()
    assert {"SLURM_CONF=/etc/slurm.conf", "NPROC=2", f"OUT={slurm}/trial_0003"} <= set(variables)
    assert not [line for line in variables if line.startswith("SLURM_JOB_ID")]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("100|COMPLETED|0|", 0),
        ("100|FAILED|512|", 2),
        ("100|FAILED|19200|", 75),
        ("100|FAILED|9|", CRASHED),
        ("100|CANCELLED|15|", CANCELLED),
        ("100|TIMEOUT|0|", CRASHED),
        ("100|NODE_FAIL|256|", CRASHED),
        ("99|RUNNING|0|", CRASHED),  # forgotten by Slurm
        ("100|PENDING|0|", None),
        ("100|RUNNING|0|", None),
        ("100|SUSPENDED|0|", None),
    ],
)
def test_how_a_job_ended(slurm: Path, line: str, status: int | None) -> None:
    runner, folder = _runner(), slurm / "trial_0000"
    runner.start(folder)
    (slurm / "squeue.out").write_text(line + "\n")
    assert runner.poll() == ({} if status is None else {folder: status})
    looks = _calls(slurm, "squeue")
    assert runner.poll() == {}
    assert _calls(slurm, "squeue") == looks + (status is None)


def test_a_job_that_lives_is_not_submitted_again(slurm: Path) -> None:
    """Two would write into one folder."""
    runner, folder = _runner(), slurm / "trial_0000"
    (slurm / "squeue.out").write_text(
        f"5|RUNNING|0|{folder}   \n6|PENDING|0|{folder}\n7|FAILED|256|{folder}\n"
        f"8|RUNNING|0|{folder}0\n"
    )
    runner.start(folder)
    assert _calls(slurm, "sbatch") == 0
    runner.stop(folder)
    assert (slurm / "calls").read_text().splitlines()[-1].endswith("scancel 6")
    (slurm / "squeue.out").write_text(f"7|FAILED|256|{folder}\n")
    _runner().start(folder)
    assert _calls(slurm, "sbatch") == 1


def test_slurm_may_fail(slurm: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A controller that is away for a minute ends no trial; what cannot be submitted is told."""
    runner, folder = _runner(), slurm / "trial_0000"
    runner.start(folder)
    (slurm / "squeue.status").write_text("1")
    assert runner.poll() == {}
    assert "Slurm does not answer" in caplog.text
    (slurm / "squeue.status").unlink()
    (slurm / "sbatch.status").write_text("1")
    with pytest.raises(OSError, match="trial_0001 cannot be submitted"):
        runner.start(slurm / "trial_0001")


def _start(folder: Path, script: str) -> LocalRunner:
    runner = LocalRunner(["bash", "-c", f"cd {folder}; {script}"], [Slot()])
    runner.start(folder)
    return runner


def test_a_trial_that_was_killed_has_crashed(tmp_path: Path) -> None:
    """Not refused, nor done: it is started once more."""
    runner, ended = _start(tmp_path, "kill -9 $$"), dict[Path, int]()
    wait_for(lambda: ended.update(runner.poll()) or ended)
    assert ended == {tmp_path: CRASHED}


def test_trials_have_saved_before_their_sweep_ends(tmp_path: Path) -> None:
    """It dies, and they with it."""
    runner = _start(
        tmp_path, "trap 'sleep 0.3; touch saved; exit' TERM; touch ready; sleep 9 & wait"
    )
    wait_for((tmp_path / "ready").exists)
    runner.close()
    assert (tmp_path / "saved").exists()


def test_what_the_keyboard_says_is_for_the_sweep(tmp_path: Path) -> None:
    """A trial in the sweep's session would be interrupted beside it, and end without saving."""
    runner = _start(tmp_path, "echo $(ps -o sid= -p $$) $$ > session")
    wait_for(runner.poll)
    session, process = (tmp_path / "session").read_text().split()
    assert session == process


PARENT = """
import sys, time
from pathlib import Path
from megatron_dna.sweep.runners import LocalRunner, Slot
folder = Path(sys.argv[1])
LocalRunner(["bash", "-c", f"echo $$ > {folder}/pid; sleep 60; true"], [Slot()]).start(folder)
time.sleep(60)
"""


def test_trials_die_with_their_sweep(tmp_path: Path) -> None:
    """Else they would go on beside those that the same command starts again."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], env=child_environment()
    )
    path = tmp_path / "pid"
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"))
    child = int(path.read_text())
    assert is_alive(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not is_alive(child))


def test_shares() -> None:
    assert parse_numbers("--gpus", "0-2,7") == [0, 1, 2, 7]
    assert divide(2, gpus=[0, 1, 2, 7]) == [Slot(None, (0, 1)), Slot(None, (2, 7))]
    assert divide(2) == [Slot(), Slot()]
    for text in ("", "0-", "a", "0,0"):
        with pytest.raises(ValueError, match="--gpus"):
            parse_numbers("--gpus", text)
    with pytest.raises(ValueError, match=r"--cores \(3 of them\) must be a multiple of --jobs"):
        divide(2, cores=[0, 1, 2])
