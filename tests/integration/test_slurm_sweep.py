"""Trials as jobs of a real Slurm, under slurm/sweep.sbatch and without it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from megatron_dna.sweep.report import table
from megatron_dna.sweep.store import load_study
from megatron_dna.training.metrics import read_records
from tests.dist.whole_runs import start
from tests.integration.slurm import Slurm, slurm_cluster
from tests.integration.test_sweep import BAD, GOOD, run_options, write_sweep

LONG = GOOD | {"train.train_iters": 800, "checkpoint.save_interval": 400}
"""Too long to be done between two commands, after which it is held."""


def test_trials_outlive_their_sweep(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A killed sweep finds its jobs again; a requeued one too; what is pruned stays cancelled."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), gpus=8) as slurm:
        _sweep(slurm, tmp_path)


def _sweep(slurm: Slurm, folder: Path) -> None:
    sweep, out, recipe = folder / "sweep.yaml", folder / "out", folder / "recipe.yaml"
    write_sweep(sweep, {"good": LONG, "bad": BAD}, startup_trials=1)
    recipe.write_text("train: {eval_iters: 2}\n")
    options = run_options(folder)
    trials = [out / f"trial_000{number}" for number in range(2)]
    share = "--gpus-per-node=1 --cpus-per-task=1 --mem=1G --oversubscribe"
    command = ["--config", str(recipe), "--sweep", str(sweep), "--slurm", f"--sbatch={share}",
               f"train.output_dir={out}", *options]  # fmt: skip
    environment = slurm.environment | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    with start(command, folder / "log", script="tools/sweep.py", **environment) as first:
        first.wait_for(lambda: read_records(trials[0] / "metrics.jsonl"))
        os.kill(first.process.pid, signal.SIGKILL)
        first.wait()
    (trial,) = slurm.jobs()
    assert (trial["JobName"], trial["JobState"]) == ("small-0000", "RUNNING")
    slurm.run("scontrol", "suspend", trial["JobId"])
    job = slurm.run(
        "sbatch", "--parsable", f"--output={folder}/job.log", "slurm/sweep.sbatch", *options,
        CONFIG=recipe, SWEEP=sweep, OUT=out, TRIAL=share, PYTHON=sys.executable, OMP_NUM_THREADS=1,
    ).strip()  # fmt: skip

    def log() -> str:
        return (folder / "job.log").read_text() if (folder / "job.log").is_file() else ""

    def own(jobs: list[dict[str, str]]) -> dict[str, str]:
        return next(entry for entry in jobs if entry["JobId"] == job)

    def wait_for(text: str) -> None:
        slurm.wait(lambda jobs: text in log() or own(jobs)["JobState"] == "FAILED")
        assert text in log(), log()

    found = f"trial_0000: still there as job {trial['JobId']}"
    wait_for(found)
    slurm.run("scancel", "--signal=USR1", "--batch", job)  # as 120 s before the time limit
    slurm.wait(lambda jobs: log().count(found) == 2 or own(jobs)["JobState"] == "FAILED")
    slurm.run("scontrol", "resume", trial["JobId"])
    slurm.wait(
        lambda jobs: (
            own(jobs)["JobState"] in ("COMPLETED", "FAILED")
            or any(entry["JobName"] == "small-0001" and entry["Restarts"] != "0" for entry in jobs)
        )
    )
    assert own(slurm.jobs())["JobState"] == "COMPLETED", log()
    _, *rows = table(load_study(out))
    last = read_records(trials[0] / "metrics.jsonl")[-1]["valid/bits_per_base"]
    assert [row[:3] for row in rows] == [["0", "complete", "good"], ["1", "pruned", "bad"]]
    assert rows[0][3:5] == [f"{last:.4f}", "800"]
    states = {entry["JobName"]: (entry["JobState"], entry["Restarts"]) for entry in slurm.jobs()}
    assert states == {
        "small-0000": ("COMPLETED", "0"), "small-0001": ("CANCELLED", "0"),
        "sweep": ("COMPLETED", "1"),
    }  # fmt: skip
