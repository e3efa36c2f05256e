"""A rank that gets nowhere is found and says where it is; torchrun then starts all anew."""

from __future__ import annotations

from pathlib import Path

from megatron_dna.training.metrics import read_records
from tests.dist.test_processes import _options
from tests.dist.whole_runs import start

HANG = """\
import os, sys, time
from megatron_dna.training import trainer

def run_step(*args, __original=trainer.run_step, **kwargs):
    return __original(*args, **kwargs)

class Stuck(trainer.Trainer):
    def _step(self):
        is_first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if is_first_start and self.session.place.rank == 1 and self.state.iteration == 6:
            self.wait_for_a_disk_that_is_gone()
        return super()._step()

    def wait_for_a_disk_that_is_gone(self):
        time.sleep(100000)

trainer.Trainer = Stuck
sys.path.insert(0, os.getcwd())
import pretrain_dna_bert
sys.exit(pretrain_dna_bert.main())
"""


def test_a_hung_rank_is_named_with_its_stack_and_the_run_resumes(tmp_path: Path):
    """If not, a single stuck process holds hundreds of devices until somebody looks."""
    script = tmp_path / "hang.py"
    script.write_text(HANG)
    options = _options(
        tmp_path, "train.train_iters=10", "checkpoint.save_interval=2", "data.num_workers=0",
        f"parallel.timeout_minutes={20 / 60}",
    )  # fmt: skip
    launch = ["--max-restarts", "1"]
    with start(options, tmp_path / "log", ranks=2, launch=launch, script=str(script)) as run:
        assert run.wait() == 0, run.log[-3000:]
    lines = run.log.splitlines()
    (found,) = (line for line in lines if "hung: rank 1 (process " in line)
    assert "made no progress for 20 s while in iteration 7" in found
    stack = run.log[run.log.index(found) :]
    assert "in wait_for_a_disk_that_is_gone" in stack[:3000]
    assert "resumed from" in stack
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [record["iteration"] for record in records] == list(range(1, 11))
    assert any("slowest rank " in line for line in lines)


def test_on_several_nodes_a_restart_needs_a_rendezvous_that_can_be_repeated(tmp_path: Path):
    """The new workers would wait for the addresses of dead ones."""
    with start([], tmp_path / "log", ranks=1, launch=["--nnodes=2", "--max-restarts=1"]) as run:
        assert run.wait() == 2
    assert "--max-restarts (1) on several nodes needs" in run.log
    assert "add --rdzv-backend c10d" in run.log
