"""The parts of a training run that cost time, each against what it is to beat.

    python benchmarks/training.py --measure save [--hidden-size H] [--num-layers L] [--rounds R]

`save`: how long training stands still for a checkpoint that is written in the background, against
one that is written at once. One process on the CPU; the two take turns. While the copy is written,
training goes on: the steps meanwhile against steps without a save are reported too. Wall time,
because that is what training loses. Prints JSON: medians, and the ratio of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist
from memory_overhead import Stepper, cpu_name

from megatron_dna.checkpoint.saving import Saver
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.config import load_config
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.training.logs import quiet_libraries


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", choices=["save"], default="save")
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the file system to measure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    config = load_config(None, [
        f"model.num_layers={args.num_layers}", f"model.hidden_size={args.hidden_size}",
        f"model.ffn_hidden_size={2 * args.hidden_size}",
        f"model.num_attention_heads={args.hidden_size // 64}", "train.precision=fp32",
        "train.micro_batch_size=1", "train.global_batch_size=1", "parallel.platform=cpu",
        "data.segment_size=128", "checkpoint.keep_last=1",
    ])  # fmt: skip
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    place = topology.initialize(config, setup_platform("cpu"))
    stepper = Stepper(config, place, num_segments=1, count=1)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        outcome = measure_save(stepper, folder, args.rounds)
    finally:
        shutil.rmtree(folder)
    print(json.dumps({
        "machine": cpu_name(), "torch": torch.__version__, "rounds": args.rounds,
        "parameters": sum(parameter.numel() for parameter in stepper.model.parameters()),
        **outcome,
    }, indent=1))  # fmt: skip
    topology.shutdown()


def measure_save(stepper: Stepper, folder: Path, rounds: int) -> dict[str, float]:
    """Seconds that training stands still, saving at once and in the background by turns."""
    saver = Saver(folder, stepper.config)
    state = TrainState()
    for _ in range(2):
        stepper.step()
    at_once, stalls, steps, steps_meanwhile = [], [], [], []
    for _ in range(rounds + 1):  # the first is a warm-up
        steps.append(_timed(stepper.step))
        state.iteration += 1
        at_once.append(_timed(lambda: _save(saver, stepper, state, in_background=False)))
        state.iteration += 1
        stalled = _timed(lambda: _save(saver, stepper, state, in_background=True))
        for _ in range(2):  # the tensors, then the rest; as the training loop does it
            while saver.is_busy:
                steps_meanwhile.append(_timed(stepper.step))
            stalled += _timed(saver.advance)
        stalls.append(stalled)
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "checkpoint_mb": num_bytes / 1e6,
        "at_once_s": statistics.median(at_once[1:]),
        "stall_s": statistics.median(stalls[1:]),
        "ratio": statistics.median(
            stall / save for stall, save in zip(stalls[1:], at_once[1:], strict=True)
        ),
        "step_s": statistics.median(steps[1:]),
        "step_while_writing_s": statistics.median(steps_meanwhile),
        "steps_while_writing": len(steps_meanwhile),
    }


def _save(saver: Saver, stepper: Stepper, state: TrainState, in_background: bool) -> None:
    saver.save(stepper.model, stepper.optimizer, state, in_background)


def _timed(action: object) -> float:
    start = time.perf_counter()
    action()  # type: ignore[operator]
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
