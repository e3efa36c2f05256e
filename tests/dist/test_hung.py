"""A rank that gets nowhere is found and says where it is, and a slow one is named."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from megatron_dna.training.interval import report_stragglers
from megatron_dna.training.metrics import read_records
from megatron_dna.training.session import GradientClock
from tests.dist.harness import run_ranks
from tests.dist.test_damage import _Lines
from tests.dist.test_processes import _options
from tests.dist.whole_runs import ROOT, start

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
    assert "(exitcode: 70)" in stack
    assert "resumed from" in stack
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [record["iteration"] for record in records] == list(range(1, 11))
    assert any("slowest rank " in line for line in lines)


STUCK = """\
import ctypes, os, sys, time
sys.path.insert(0, os.getcwd())
from megatron_dna.training import watchdog

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
quiet = watchdog.Watchdog(3600)
assert threads() == before + 2
quiet.close()
quiet._thread.join()
while threads() > before:  # a joined thread takes its time to leave; what would end us stays
    time.sleep(0.01)
watchdog._GRACE_S = 0.2
watchdog.Watchdog(0.2)

def keep_the_interpreter():
    ctypes.PyDLL(None).sleep(100)

keep_the_interpreter()
"""


def test_a_process_that_keeps_the_interpreter_ends_too():
    """If not, a library that hangs with Python's lock in its hand holds the devices all the same.

    A watchdog that was closed, on the other hand, must not end what comes after the run.
    """
    done = subprocess.run(
        [sys.executable, "-c", STUCK], cwd=ROOT, capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Timeout (0:00:00.4" in done.stderr
    assert "in keep_the_interpreter" in done.stderr


def _slowest(seconds: list[float]) -> list[str]:
    log = _Lines()
    logger = logging.getLogger("megatron_dna")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    place = SimpleNamespace(rank=dist.get_rank(), world_size=dist.get_world_size())
    session: Any = SimpleNamespace(place=place, platform=SimpleNamespace(device="cpu"))
    report_stragglers(session, seconds[place.rank])
    return log.lines


def test_the_slowest_rank_is_named():
    """If not, one bad device slows hundreds down and nobody knows which."""
    line = "slowest rank 1: 2.250 s to the gradients of its last step; median 1.000 s"
    assert run_ranks(_slowest, 3, [0.5, 2.25, 1.0]) == [[line]] * 3


def test_a_rank_s_own_time_ends_before_it_waits_for_the_others():
    """If not, all ranks are as slow as the slowest, and the straggler cannot be told."""
    order: list[str] = []

    def wait() -> None:
        order.append(f"noted: {clock.ready_at > 0}")

    config = SimpleNamespace(finalize_model_grads_func=wait)
    platform: Any = SimpleNamespace(wait_for_compute=lambda: order.append("computed"))
    model: Any = SimpleNamespace(config=config)
    clock = GradientClock(model, platform)
    config.finalize_model_grads_func()
    assert order == ["computed", "noted: True"]


def test_on_several_nodes_a_restart_needs_a_rendezvous_that_can_be_repeated(tmp_path: Path):
    """The new workers would wait for the addresses of dead ones."""
    with start([], tmp_path / "log", ranks=1, launch=["--nnodes=2", "--max-restarts=1"]) as run:
        assert run.wait() == 2
    assert "--max-restarts (1) on several nodes needs" in run.log
    assert "add --rdzv-backend c10d" in run.log
