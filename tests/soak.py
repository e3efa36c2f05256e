"""Kill a 4-rank run again and again, and see that it ends as one that was never touched.

    python -m tests.soak [--kills 30] [--seed 0] [--folder DIR]

Each kill is a SIGKILL of one rank, of all ranks, or of torchrun, at a random iteration or in the
midst of a save. Whatever is left must go on with the same command and end with the same weights and
optimizer state, bit for bit, as an unbroken run on the same layout. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch

from megatron_dna.checkpoint.folders import find_latest
from megatron_dna.training.metrics import read_records
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.test_resume import _record, _tensors, _train
from tests.dist.whole_runs import Run, is_alive, start, wait_for

LAYOUT = [
    "parallel.pipeline_model_parallel_size=2", "parallel.tensor_model_parallel_size=2",
    "parallel.sequence_parallel=true",
]  # fmt: skip
VICTIMS = ("one rank", "torchrun", "all ranks")
STEPS_A_KILL = 8


def soak(folder: Path, kinds: list[tuple[str, bool]], seed: int) -> dict[str, object]:
    """Break a run by each of `kinds` (who dies, whether during a save) and compare its end.

    Raises:
        AssertionError: it did not go on, or ended otherwise than the unbroken run.
    """
    draw = random.Random(seed)
    iterations = STEPS_A_KILL * (len(kinds) + 1)
    options = [
        *write_data(folder), *LAYOUT, f"train.train_iters={iterations}", "train.eval_interval=0",
        "checkpoint.save_interval=2", "checkpoint.keep_last=2", "logging.log_interval=1",
    ]  # fmt: skip
    record, kills, starts = folder / "run" / "metrics.jsonl", [], 0
    for number, (victim, in_save) in enumerate([*kinds, ("", False)]):
        target = STEPS_A_KILL * number + draw.randrange(2, STEPS_A_KILL)
        log = folder / f"log_{number}"
        with start([*options, f"train.output_dir={folder}/run"], log, ranks=4) as run:
            starts += 1
            if not victim:
                assert run.wait() == 0, run.log[-4000:]
                continue
            run.wait_for(lambda: _last(record) >= target)  # noqa: B023
            if in_save:
                run.wait_for(lambda: list((folder / "run/checkpoints").glob(".tmp_iter*")))
            kills.append({"victim": victim, "in_save": in_save, "iteration": _last(record)})
            _kill(run, victim, draw)
    run_ranks(_train, 4, [*options, f"train.output_dir={folder}/whole"])
    want, got = _tensors(folder / "whole"), _tensors(folder / "run")
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
    assert _record(folder / "run") == _record(folder / "whole")
    newest = find_latest(folder / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == f"iter_{iterations:07d}"
    return {"kills": kills, "starts": starts, "iterations": iterations, "tensors": len(want)}


def _last(record: Path) -> int:
    """The last iteration in the record."""
    lines = read_records(record)
    return lines[-1]["iteration"] if lines else 0


def _kill(run: Run, victim: str, draw: random.Random) -> None:
    """SIGKILL, and wait until nothing of the run lives."""
    workers = run.workers()
    doomed = {
        "one rank": [draw.choice(workers)], "torchrun": [run.process.pid], "all ranks": workers
    }[victim]  # fmt: skip
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    status = run.wait()
    assert status in (1, -signal.SIGKILL), f"{status}\n{run.log[-4000:]}"
    wait_for(lambda: not any(map(is_alive, workers)))


def main() -> None:
    """Soak and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs go; by default it is removed")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    kinds = [(VICTIMS[i % 3], draw.random() < 0.5) for i in range(args.kills)]
    begun = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = soak(folder, kinds, args.seed)
    print(json.dumps({**outcome, "seconds": round(time.time() - begun)}, indent=1))


if __name__ == "__main__":
    main()
