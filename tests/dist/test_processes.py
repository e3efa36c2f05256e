"""Runs as processes: one an output folder, none outlives torchrun, and all stop when asked to."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_dna.checkpoint.folders import find_latest
from megatron_dna.config import ConfigError
from megatron_dna.training.lock import LOCK, OutputLock
from megatron_dna.training.metrics import read_records
from megatron_dna.training.signals import REQUEUE_EXIT_STATUS, STOP_SIGNALS, StopRequest
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.test_resume import _record, _train
from tests.dist.whole_runs import ROOT, Run, children, is_alive, start, wait_for


def _options(folder: Path, *more: str) -> list[str]:
    return [
        *write_data(folder), f"train.output_dir={folder}/run", "logging.log_interval=1",
        "train.eval_interval=0", *more,
    ]  # fmt: skip


def _steps(folder: Path) -> int:
    return len(read_records(folder / "run" / "metrics.jsonl"))


def _started(run: Run, folder: Path) -> None:
    run.wait_for(lambda: _steps(folder) >= 2)


ENDLESS = ("train.train_iters=1000000", "scheduler.lr_decay_style=constant")


@pytest.mark.parametrize("launcher", [("tools/launch.py",), ("-m", "torch.distributed.run")])
def test_workers_die_with_torchrun(tmp_path: Path, launcher: tuple[str, ...]):
    """If not, orphans go on writing into the checkpoint folder of the run that takes over."""
    options = _options(tmp_path, *ENDLESS, "checkpoint.save_interval=0")
    with start(options, tmp_path / "log", ranks=2, launcher=launcher) as run:
        _started(run, tmp_path)
        workers = run.workers()
        assert len(workers) == 2
        run.process.kill()
        wait_for(lambda: not any(map(is_alive, workers)))
    assert find_latest(tmp_path / "run" / "checkpoints") is None, "they were asked, and saved first"


def test_a_worker_whose_torchrun_has_died_does_not_live(tmp_path: Path):
    """If not, one that was just being started when torchrun was killed would be an orphan."""
    (tmp_path / "middle.py").write_text(
        "import os, subprocess, sys, signal\n"
        "child = subprocess.Popen([sys.executable, sys.argv[1]], stdout=1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "worker.py").write_text(
        "import os, time\n"
        "from megatron_dna.training import processes\n"
        "real, calls = os.getppid, []\n"
        "def getppid():\n"  # the first answer is the parent of before
        "    calls.append(1)\n"
        "    return -1 if len(calls) == 1 else real()\n"
        "os.getppid = getppid\n"
        "processes.die_with_torchrun()\n"
        "print('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "middle.py", tmp_path / "worker.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TORCHELASTIC_RUN_ID": "x"},
        capture_output=True,
        check=False,
    )
    assert done.stdout == b""


def test_without_torchrun_a_process_outlives_its_parent(tmp_path: Path):
    """If not, a run started from a shell in the background ends with the shell."""
    worker = (
        "import time\nfrom megatron_dna.training.processes import die_with_torchrun\n"
        "die_with_torchrun()\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    environment = {name: value for name, value in os.environ.items() if "TORCHELASTIC" not in name}
    middle = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys\n"
         "subprocess.run([sys.executable, '-c', sys.argv[1]])", worker],
        env=environment | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert middle.stdout is not None
    assert middle.stdout.readline() == b"ready\n"
    (worker_pid,) = children(middle.pid)
    middle.kill()
    middle.wait()
    assert is_alive(worker_pid)
    os.kill(worker_pid, signal.SIGKILL)


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path):
    """If not, two runs write one folder of checkpoints. A dead run must not block the next."""
    options = _options(tmp_path, *ENDLESS)
    with start(options, tmp_path / "log", ranks=2) as run:
        _started(run, tmp_path)
        with start(options, tmp_path / "second") as second:
            assert second.wait() == 2
        assert f"train.output_dir ({tmp_path}/run) is in use by another run (process " in second.log
        assert f"process {run.workers()[0]} on " in second.log
        assert second.log.count("error") == 1
        # The rank that wrote its name is gone, and another is still there.
        first, other = run.workers()
        os.kill(other, signal.SIGSTOP)
        os.kill(run.process.pid, signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)
        wait_for(
            lambda: not is_alive(first) and len(list(Path(f"/proc/{first}/task").iterdir())) == 1
        )
        with pytest.raises(ConfigError, match="in use"):
            OutputLock(tmp_path / "run").claim()
        os.kill(other, signal.SIGKILL)
        OutputLock(tmp_path / "run").claim(wait_s=60)


def test_lock(tmp_path: Path):
    """Alone to begin; nothing is left of a run that could not begin."""
    folder = tmp_path / "a" / "b"
    first = OutputLock(folder)
    first.claim()
    second = OutputLock(folder)
    with pytest.raises(ConfigError, match=r"train\.output_dir"):
        second.claim()
    other_rank = OutputLock(folder)
    other_rank.join()
    first.release()
    with pytest.raises(ConfigError, match=rf"process {os.getpid()} on "):
        second.claim()
    other_rank.release()
    with (folder / LOCK).open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="in use"):
            other_rank.join()
    assert (folder / LOCK).exists()
    third = OutputLock(tmp_path / "a" / "c")
    third.claim()
    third.abandon()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    third.claim()
    (tmp_path / "a" / "c" / "checkpoints").mkdir()
    third.abandon()
    assert (tmp_path / "a" / "c" / "checkpoints").exists()


def test_a_lock_file_that_was_taken_away_does_not_count(tmp_path: Path, monkeypatch):
    """If not, of two runs that begin while a third gives up, each locks a file of its own."""
    first, second = OutputLock(tmp_path), OutputLock(tmp_path)
    flock = fcntl.flock

    def lock_late(descriptor: int, kind: int) -> None:
        monkeypatch.undo()
        (tmp_path / LOCK).unlink()
        second.claim()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with pytest.raises(ConfigError, match="in use"):
        first.claim()


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path):
    """If not, a loader's worker that outlives its rank by seconds makes the restart fail."""
    lock = OutputLock(tmp_path)
    lock.claim()
    read_end, write_end = os.pipe()
    child_read_end, child_write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(child_write_end, b"x")
        os.read(read_end, 1)
        os._exit(0)
    try:
        os.read(child_read_end, 1)  # the child runs: it has let go
        lock.release()
        again = OutputLock(tmp_path)
        again.claim()
        again.release()
    finally:
        os.write(write_end, b"x")
        os.waitpid(child, 0)


def test_signals_are_noted_and_given_back():
    """If not, what comes after a run in the same process cannot be ended any more."""
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    for number in STOP_SIGNALS:
        request = StopRequest()
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number.name
        request.restore()
        assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize("sent", ["SIGTERM to the launcher", "SIGUSR1 to one rank"])
def test_asked_to_stop_a_run_saves_and_asks_to_be_started_again(tmp_path: Path, sent: str):
    """If not, pre-emption costs all steps since the last save, or ranks wait for one that left."""
    more = "train.train_iters=150", "checkpoint.save_interval=0"
    options = _options(tmp_path, *more)
    with start(options, tmp_path / "log", ranks=2) as run:
        run.wait_for(lambda: _steps(tmp_path) >= 7)
        if "launcher" in sent:
            run.process.terminate()
        else:
            os.kill(run.workers()[1], signal.SIGUSR1)
        assert run.wait() == REQUEUE_EXIT_STATUS, run.log
    saved = find_latest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    done = json.loads((saved / "train_state.json").read_text())["iteration"]
    assert 7 <= done < 150
    assert f"saving after iteration {done}" in run.log
    assert "Traceback" not in run.log
    with start(options, tmp_path / "log", ranks=2) as run:
        assert run.wait() == 0
    assert f"resumed from {saved}" in run.log
    run_ranks(_train, 2, [*options, f"train.output_dir={tmp_path}/whole"])
    assert _record(tmp_path / "run") == _record(tmp_path / "whole")
