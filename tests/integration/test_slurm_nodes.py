"""slurm/pretrain.sbatch on two nodes of a real Slurm: pre-empted, and ended or not by faults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.test_resume import _record, _tensors, _train
from tests.integration.pretraining_job import PretrainingJob, submit_pretraining
from tests.integration.slurm import Slurm, slurm_cluster

SMALL_SHARE = ("--oversubscribe", "--cpus-per-task=1", "--gpus-per-node=0", "--mem=1G")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), gpus=8, nodes=2) as running:
        yield running


def processes(job: PretrainingJob, script: str) -> dict[str, list[int]]:
    """Python processes of the job that run a script, by node."""
    return {
        node: [
            pid
            for pid, words in job.slurm.processes(node).items()
            if Path(words[0]).name.startswith("python") and script in words[1:3]
        ]
        for node in job.slurm.nodes
    }


def test_a_preempted_job_on_two_nodes_finishes(slurm: Slurm, tmp_path: Path):
    """The world of two nodes comes up anew, and ends as that of one node."""
    options = [*write_data(tmp_path), "train.train_iters=100", "train.eval_interval=0",
               "logging.log_interval=1"]  # fmt: skip
    job = submit_pretraining(slurm, tmp_path, options, ["--nodes=2"], NPROC=1)
    job.wait_for(lambda: job.has_saved)
    ranks = processes(job, "pretrain_dna_bert.py")
    assert [len(pids) for pids in ranks.values()] == [1, 1], ranks
    slurm.run("scontrol", "requeue", job.id)
    job.wait_for_end()
    state = job.state()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), job.logs()
    logs = {path.name: path.read_text() for path in (job.out / "logs").iterdir()}
    assert logs.keys() == {"node1.log", "node2.log"}
    log = "".join(logs.values())
    assert log.count("2 processes over gloo") == 2
    (start,) = re.findall(r"resumed from .*: iteration (\d+)", log)
    assert 5 <= int(start) < 100
    for number in range(2):
        recorded = (job.out / "environment" / f"{job.id}-{number}.txt").read_text()
        assert "nodes: node[1-2]; " in recorded
        assert "SLURM_JOB_NUM_NODES=2" in recorded
    whole = tmp_path / "whole"
    run_ranks(_train, 2, [*options, f"train.output_dir={whole}"])
    assert _record(job.out) == _record(whole)
    expected, found = _tensors(whole), _tensors(job.out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


PYTHON = """\
#!/bin/sh
[ "$IN_CONTAINER" = yes ] || exit 9
[ "$1" != -m ] || exit 0 # pip
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || exit 0
[ -z "$SAVES" ] || echo iter_0000005 >"$SAVES"
"""
"""In place of Python: what a launcher's end looks like to the batch script."""

SECOND_LATER = '[ "$SLURM_NODEID" -eq 0 ] || sleep 1; exit {}\n'
SECOND_KILLED = '[ "$SLURM_NODEID" -eq 1 ] || exec sleep 600; kill -9 $$\n'
ENDS = {
    "bad option": (SECOND_LATER.format(2), {"2:0"}),
    "diverged": (SECOND_LATER.format(3), {"3:0"}),
    "crashed": (SECOND_LATER.format(1), {"1:0"}),
    "stopped": (SECOND_LATER.format(75), {"75:0"}),
    "launcher killed": (SECOND_KILLED, {"137:0", "143:0"}),  # the other one hangs: SIGTERM
}
AGAIN = ("crashed", "stopped", "launcher killed")


def submit_fault(
    slurm: Slurm, folder: Path, last: str, saves: bool, **variables: object
) -> PretrainingJob:
    """A job whose launchers end as a shell script says, after a checkpoint or without."""
    (folder / "run/checkpoints").mkdir(parents=True)
    (folder / "python").write_text(PYTHON + last)
    (folder / "python").chmod(0o755)
    latest = folder / "run/checkpoints/latest" if saves else ""
    return submit_pretraining(
        slurm, folder, (), ["--nodes=2", *SMALL_SHARE],
        PYTHON=folder / "python", CONTAINER="env IN_CONTAINER=yes", SAVES=latest, **variables,
    )  # fmt: skip


def test_a_fault_ends_the_job_unless_it_got_further(slurm: Slurm, tmp_path: Path):
    """A bad option must not be queued for ever, nor a run of weeks end with its fourth bad GPU."""
    jobs = {}
    for end, (last, _) in ENDS.items():
        for saves in (False, True):
            folder = tmp_path / f"{end}_{saves}".replace(" ", "_")
            wait_s = 2 if last == SECOND_KILLED else 60
            jobs[end, saves] = submit_fault(slurm, folder, last, saves, SLURM_WAIT=wait_s)
    slurm.wait()
    for (end, saves), job in jobs.items():
        state = job.state()
        found = (state["JobState"], state["Restarts"])
        if saves and end in AGAIN:
            assert found == ("COMPLETED", "1"), (end, job.logs())
        else:
            assert found == ("FAILED", "0"), (end, job.logs())
            assert state["ExitCode"] in ENDS[end][1], (end, job.logs())


def test_a_cancelled_job_is_not_queued_again(slurm: Slurm, tmp_path: Path):
    """It looks like a crash of one that got further, and must not come back."""
    job = submit_fault(slurm, tmp_path, "exec sleep 600\n", saves=True)
    job.wait_for(lambda: job.has_saved)
    slurm.run("scancel", job.id)
    job.wait_for_end()
    slurm.wait(lambda jobs: set(slurm.node_states()) == {"idle"})
    state = job.state()
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0"), job.logs()


def test_a_job_that_is_preempted_while_it_starts_is_queued_again(slurm: Slurm, tmp_path: Path):
    """Slurm tells its processes only, which have nothing to save; it looks like a crash at once."""
    job = submit_fault(slurm, tmp_path, 'echo >"$0.$SLURM_NODEID"; exec sleep 600\n', saves=False)
    job.wait_for(lambda: len(list(tmp_path.glob("python.*"))) == 2)
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    slurm.run("sbatch", *urgent, "--wrap=true")
    job.wait_for_end()
    state = job.state()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), job.logs()
    assert "ended with status 143" in (tmp_path / "job.log").read_text()
