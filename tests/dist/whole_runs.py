"""Whole runs as a user starts them: processes of their own that can be watched and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0
"""A condition that has not come about by then never will."""


@dataclass
class Run:
    """A run that was started, and its log."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return self.log_path.read_text(errors="replace")

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(PATIENCE_S)

    def wait_for(self, is_true: Callable[[], object]) -> None:
        """Until something has come about; an end of the run before that is an error."""
        wait_for(lambda: is_true() or self.process.poll() is not None)
        assert is_true(), f"the run ended before ({self.process.returncode}):\n{self.log[:4000]}"

    def workers(self) -> list[int]:
        """Processes of torchrun's ranks, by rank."""
        return children(self.process.pid)


def wait_for(is_true: Callable[[], object]) -> None:
    """Until something has come about."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Child processes of a process, oldest first."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def start(
    options: Sequence[str],
    log_path: Path,
    ranks: int | None = None,
    launch: Sequence[str] = (),
    launcher: Sequence[str] = ("tools/launch.py",),
    script: str = "pretrain_dna_bert.py",
    **environment: str,
) -> Iterator[Run]:
    """Start a run with these options; whatever is left of it at the end is killed.

    Args:
        options: of the script.
        log_path: its stderr goes there.
        ranks: processes under torchrun; None is one without it.
        launch: further options of torchrun.
        launcher: how Python starts torchrun.
        script: what every rank runs.
        environment: set in addition.
    """
    command = [sys.executable]
    if ranks is not None:
        command += [*launcher, "--nproc-per-node", str(ranks), *launch]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, script, *options],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    run = Run(process, log_path)
    try:
        yield run
    finally:
        for pid in [*run.workers(), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
