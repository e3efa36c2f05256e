"""slurm/pretrain.sbatch under a real Slurm: told to stop, pre-empted, and finished all the same."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_dna.training.metrics import read_records
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.test_resume import _record, _train
from tests.integration.slurm import Slurm, slurm_cluster


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), gpus=8) as running:
        yield running


def test_a_job_that_is_stopped_twice_finishes(slurm: Slurm, tmp_path: Path):
    """If not, each pre-emption and each time limit needs somebody to notice it."""
    out, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text("checkpoint: {save_interval: 5}\n")
    options = [*write_data(tmp_path), "train.train_iters=300", "train.eval_interval=0",
               "logging.log_interval=1"]  # fmt: skip
    job = slurm.run(
        "sbatch", "--parsable", f"--output={tmp_path}/job.log", "slurm/pretrain.sbatch", *options,
        CONFIG=recipe, OUT=out, PYTHON=sys.executable, NPROC=2, OMP_NUM_THREADS=1,
    ).strip()  # fmt: skip

    def is_at(iteration: int) -> bool:
        records = read_records(out / "metrics.jsonl")
        return bool(records) and records[-1]["iteration"] >= iteration

    def wait_for(iteration: int) -> None:
        slurm.wait(lambda jobs: is_at(iteration) or jobs[0]["JobState"] == "FAILED")
        assert is_at(iteration), _logs(tmp_path, out)

    wait_for(7)
    slurm.run("scancel", "--signal=USR1", "--batch", job)  # as 600 s before the time limit
    slurm.wait(lambda jobs: jobs[0]["Restarts"] == "1")
    before = read_records(out / "metrics.jsonl")[-1]["iteration"]
    wait_for(before + 7)
    slurm.run("scontrol", "requeue", job)
    slurm.wait(lambda jobs: jobs[0]["JobState"] in ("COMPLETED", "FAILED"))
    (state,) = slurm.jobs()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "2"), _logs(tmp_path, out)
    log = "".join(path.read_text() for path in (out / "logs").iterdir())
    assert len(list((out / "logs").iterdir())) == 1  # a log a node
    starts = [int(number) for number in re.findall(r"resumed from .*: iteration (\d+)", log)]
    assert len(starts) == 2
    assert starts[0] == before, "it was told in time to save, and did not"
    assert starts[1] >= before + 5
    assert f"start {job}-0 ended with status 75" in (tmp_path / "job.log").read_text()
    for number in range(3):
        recorded = (out / "environment" / f"{job}-{number}.txt").read_text()
        assert "SLURM_JOB_NUM_NODES=1" in recorded
        assert "torch==" in recorded or "torch @" in recorded
    whole = [*options, f"train.output_dir={tmp_path}/whole"]
    run_ranks(_train, 2, whole)
    assert _record(out) == _record(tmp_path / "whole")


def _logs(folder: Path, out: Path) -> str:
    paths = [folder / "job.log", *out.glob("logs/*")]
    return "\n".join(path.read_text()[-3000:] for path in paths if path.is_file())
