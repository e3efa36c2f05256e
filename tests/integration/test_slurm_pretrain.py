"""slurm/pretrain.sbatch under a real Slurm: told to stop, pre-empted, and finished all the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.test_resume import _record, _train
from tests.integration.pretraining_job import submit_pretraining
from tests.integration.slurm import Slurm, slurm_cluster


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), gpus=8) as running:
        yield running


def test_a_job_that_is_stopped_twice_finishes(slurm: Slurm, tmp_path: Path):
    """If not, each pre-emption and each time limit needs somebody to notice it."""
    options = [*write_data(tmp_path), "train.train_iters=300", "train.eval_interval=0",
               "logging.log_interval=1"]  # fmt: skip
    job = submit_pretraining(slurm, tmp_path, options, NPROC=2)
    job.wait_for(lambda: job.iteration >= 7)
    slurm.run("scancel", "--signal=USR1", "--batch", job.id)  # as 600 s before the time limit
    job.wait_for(lambda: job.state()["Restarts"] == "1")
    before = job.iteration
    job.wait_for(lambda: job.iteration >= before + 7)
    slurm.run("scontrol", "requeue", job.id)
    job.wait_for_end()
    state = job.state()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "2"), job.logs()
    (log,) = (job.out / "logs").iterdir()  # a log a node
    found = re.findall(r"resumed from .*: iteration (\d+)", log.read_text())
    starts = [int(number) for number in found]
    assert len(starts) == 2
    assert starts[0] == before, "it was told in time to save, and did not"
    assert starts[1] >= before + 5
    assert f"start {job.id}-0 ended with status 75" in (tmp_path / "job.log").read_text()
    for number in range(3):
        recorded = (job.out / "environment" / f"{job.id}-{number}.txt").read_text()
        assert "SLURM_JOB_NUM_NODES=1" in recorded
        assert "torch==" in recorded or "torch @" in recorded
    run_ranks(_train, 2, [*options, f"train.output_dir={tmp_path}/whole"])
    assert _record(job.out) == _record(tmp_path / "whole")
