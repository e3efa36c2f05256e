"""Where trials run: as child processes here, or as Slurm jobs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatron_dna.training.processes import die_with_parent

logger = logging.getLogger(__name__)

CANCELLED = -1
"""In place of an exit status: somebody has cancelled the trial's job."""
CRASHED = 1
"""Exit status of a run that was killed; see tools/launch.py."""
CONFIG_FILE = "trial.yaml"
"""The options of a trial, in its folder."""


class Runner(Protocol):
    """Runs trials; each is known by its folder, which has its CONFIG_FILE.

    Attributes:
        poll_s: seconds between two looks.
    """

    poll_s: float

    def start(self, folder: Path) -> None:
        """Start a trial or let it go on."""

    def poll(self) -> dict[Path, int]:
        """Exit statuses of the trials that have ended since the last call."""

    def stop(self, folder: Path) -> None:
        """Ask a trial to save and end, which `poll` will tell; nothing if it does not run."""

    def close(self) -> None:
        """The sweep ends: so do trials that cannot live without it, when they have saved."""


@dataclass(frozen=True)
class Slot:
    """What a trial has to itself: cores, and GPUs; None is all."""

    cores: tuple[int, ...] | None = None
    gpus: tuple[int, ...] | None = None


def divide(
    jobs: int, cores: Sequence[int] | None = None, gpus: Sequence[int] | None = None
) -> list[Slot]:
    """Equal parts of cores and GPUs for so many trials at once.

    Raises:
        ValueError: they cannot be divided equally.
    """
    if jobs < 1:
        raise ValueError(f"--jobs ({jobs}) must be at least 1")
    parts: dict[str, list[tuple[int, ...] | None]] = {}
    for option, numbers in (("cores", cores), ("gpus", gpus)):
        if numbers is not None and (not numbers or len(numbers) % jobs):
            raise ValueError(
                f"--{option} ({len(numbers)} of them) must be a multiple of --jobs ({jobs}): each "
                "trial gets as many"
            )
        size = len(numbers) // jobs if numbers is not None else 0
        parts[option] = [
            tuple(numbers[i * size : (i + 1) * size]) if numbers is not None else None
            for i in range(jobs)
        ]
    return [Slot(*pair) for pair in zip(parts["cores"], parts["gpus"], strict=True)]


class LocalRunner:
    """Child processes of this one; they die with it."""

    poll_s = 0.2

    def __init__(self, command: Sequence[str], slots: Sequence[Slot]) -> None:
        """Starts nothing yet.

        Args:
            command: that trains; `--config FILE` is put behind it.
            slots: as many trials run at once.
        """
        self._command = list(command)
        self._free = list(slots)
        self._processes: dict[Path, tuple[subprocess.Popen[bytes], Slot]] = {}

    def start(self, folder: Path) -> None:
        slot = self._free.pop(0)
        environment = dict(os.environ)
        if slot.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, slot.gpus))
        with (folder / "run.log").open("ab") as log:
            process = subprocess.Popen(
                [*self._command, "--config", str(folder / CONFIG_FILE)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # ^C is for the sweep, which asks its trials to save
                preexec_fn=_prepare(slot),
            )
        self._processes[folder] = process, slot

    def poll(self) -> dict[Path, int]:
        ended = {}
        for folder, (process, slot) in list(self._processes.items()):
            status = process.poll()
            if status is not None:
                ended[folder] = status if status >= 0 else CRASHED
                self._free.append(slot)
                del self._processes[folder]
        return ended

    def stop(self, folder: Path) -> None:
        if folder in self._processes:
            self._processes[folder][0].send_signal(signal.SIGTERM)

    def close(self) -> None:
        for process, _ in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in self._processes.values():
            process.wait()


def _prepare(slot: Slot) -> Callable[[], None]:
    """What the child does before it becomes the trial."""

    def prepare() -> None:
        die_with_parent()
        if slot.cores is not None:
            os.sched_setaffinity(0, slot.cores)

    return prepare


class SlurmRunner:
    """Jobs of their own; they outlive this process, and are found again by their comment."""

    poll_s = 5.0

    def __init__(
        self, script: Path, name: str, options: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Submits nothing yet.

        Args:
            script: slurm/pretrain.sbatch.
            name: begins the names of jobs.
            options: of sbatch, such as `--gpus-per-node=1`.
            environment: variables of every job, such as NPROC.
        """
        self._script = script
        self._name = name
        self._options = list(options)
        # What Slurm has set for a job that this process is in must not shape other jobs.
        own = {
            name: value
            for name, value in os.environ.items()
            if name == "SLURM_CONF" or not name.startswith("SLURM_")
        }
        self._environment = own | dict(environment)
        self._jobs: dict[Path, int] = {}

    def start(self, folder: Path) -> None:
        found = self._find(folder)
        if found is not None:
            self._jobs[folder] = found
            logger.info("%s: still there as job %d", folder.name, found)
            return
        number = folder.name.rpartition("_")[2]
        done = self._run(
            "sbatch", "--parsable", f"--job-name={self._name}-{number}",
            f"--comment={folder.absolute()}", f"--output={folder}/job.log",
            *self._options, str(self._script),
            CONFIG=str(folder / CONFIG_FILE), OUT=str(folder),
        )  # fmt: skip
        if done.returncode:
            raise OSError(f"{folder.name} cannot be submitted: {done.stderr.strip()}")
        self._jobs[folder] = int(done.stdout.strip().partition(";")[0])
        logger.info("%s: job %d", folder.name, self._jobs[folder])

    def poll(self) -> dict[Path, int]:
        if not self._jobs:
            return {}
        try:
            jobs = {number: (state, status) for number, state, status, _ in self._list()}
        except OSError as error:
            logger.warning("Slurm does not answer: %s", error)
            return {}
        ended = {}
        for folder, number in list(self._jobs.items()):
            state, status = jobs.get(number, ("UNKNOWN", CRASHED << 8))
            if state in _ENDED or state == "UNKNOWN":
                ended[folder] = _exit_status(state, status)
                del self._jobs[folder]
        return ended

    def stop(self, folder: Path) -> None:
        number = self._jobs.get(folder) or self._find(folder)
        if number is not None:
            done = self._run("scancel", str(number))
            if done.returncode:
                raise OSError(f"{folder.name} cannot be cancelled: {done.stderr.strip()}")

    def close(self) -> None:
        if self._jobs:
            numbers = ", ".join(map(str, self._jobs.values()))
            logger.info("these jobs stay, and are found again: %s", numbers)

    def _find(self, folder: Path) -> int | None:
        """The trial's job that has not ended."""
        alive = [
            number
            for number, state, _, comment in self._list()
            if comment == str(folder.absolute()) and state not in _ENDED
        ]
        return max(alive, default=None)

    def _list(self) -> list[tuple[int, str, int, str]]:
        """Number, state, wait status and comment of this user's jobs, as long as Slurm has them.

        Raises:
            OSError: Slurm does not answer.
        """
        done = self._run(
            "squeue", "--me", "--noheader", "--states=all",
            "--Format=JobID:|,State:|,exit_code:|,Comment:",
        )  # fmt: skip
        if done.returncode:
            raise OSError(f"squeue: {done.stderr.strip()}")
        jobs = []
        for line in done.stdout.splitlines():
            number, state, status, comment = line.split("|", 3)
            jobs.append((int(number), state, int(status), comment.rstrip()))
        return jobs

    def _run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self._environment | variables, text=True, capture_output=True, check=False
        )


_ENDED = frozenset([
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
])  # fmt: skip
"""States that a job does not leave by itself. Source: squeue's manual."""


def _exit_status(state: str, status: int) -> int:
    """Of the batch script, which is that of the run; status is as wait(2) has it."""
    if state == "COMPLETED":
        return 0
    if state == "CANCELLED":
        return CANCELLED
    return (status >> 8 if state == "FAILED" else 0) or CRASHED


def parse_numbers(option: str, text: str) -> list[int]:
    """Numbers such as `0-3,8`.

    Raises:
        ValueError: it is no such list.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{option} ({text}) must be numbers such as 0,1 or 0-3")
        numbers += range(int(first), int(last if dash else first) + 1)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{option} ({text}) must not have a number twice")
    return numbers
