"""A job of slurm/pretrain.sbatch on a small run, and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_dna.training.metrics import read_records
from tests.integration.slurm import FINISHED, Slurm


@dataclass(frozen=True)
class PretrainingJob:
    """A job that was submitted.

    Attributes:
        slurm: to which.
        folder: has its batch log, `job.log`.
        id: its number.
    """

    slurm: Slurm
    folder: Path
    id: str

    @property
    def out(self) -> Path:
        """Folder of its run."""
        return self.folder / "run"

    @property
    def iteration(self) -> int:
        """Steps that are recorded."""
        records = read_records(self.out / "metrics.jsonl")
        return records[-1]["iteration"] if records else 0

    @property
    def has_saved(self) -> bool:
        """Whether there is a checkpoint from which it would go on."""
        return (self.out / "checkpoints/latest").is_file()

    def state(self) -> dict[str, str]:
        """Fields of Slurm, such as JobState and Restarts."""
        return self._own(self.slurm.jobs())

    def wait_for(self, is_true: Callable[[], object]) -> None:
        """Until something has come about; an end of the job before that is an error."""
        self.slurm.wait(lambda jobs: is_true() or self._own(jobs)["JobState"] in FINISHED)
        assert is_true(), self.logs()

    def wait_for_end(self) -> None:
        """Until it is done, or has failed for good."""
        self.slurm.wait(lambda jobs: self._own(jobs)["JobState"] in FINISHED)

    def _own(self, jobs: list[dict[str, str]]) -> dict[str, str]:
        return next(job for job in jobs if job["JobId"] == self.id)

    def logs(self) -> str:
        """The ends of all its logs."""
        paths = [self.folder / "job.log", *self.out.glob("logs/*")]
        return "\n".join(path.read_text()[-3000:] for path in paths if path.is_file())


def submit_pretraining(
    slurm: Slurm,
    folder: Path,
    options: Sequence[str],
    sbatch: Sequence[str] = (),
    **variables: object,
) -> PretrainingJob:
    """Submit slurm/pretrain.sbatch as its first lines say.

    Args:
        slurm: to which.
        folder: one that is there, for recipe, log and run.
        options: of the run, after a recipe that saves every 5 steps.
        sbatch: options of sbatch.
        variables: of the script's environment, beside those that it must have.
    """
    recipe = folder / "recipe.yaml"
    recipe.write_text("checkpoint: {save_interval: 5}\n")
    environment = {"PYTHON": sys.executable, "OMP_NUM_THREADS": 1} | variables
    number = slurm.run(
        *("sbatch", "--parsable", f"--output={folder}/job.log", *sbatch),
        *("slurm/pretrain.sbatch", *options),
        **{name: str(value) for name, value in environment.items()},
        CONFIG=recipe,
        OUT=folder / "run",
    )
    return PretrainingJob(slurm, folder, number.strip())
