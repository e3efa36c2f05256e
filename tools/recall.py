#!/usr/bin/env python3
"""How long is a barcode remembered? Train on at most 7 segments, ask after many more.

For each variant and seed, one process trains examples/recall/recall.yaml and others ask it after
7, 64 and 512 segments (64 streams each), with its memory kept, reset and swapped. What is there
already is not run again, so lengths, seeds and variants can be added. The table of all that is
there is printed and written, with a plot, as docs/recall.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_dna.training.logs import quiet_libraries

EXAMPLE = """\
example:
  python tools/recall.py --variants binary --seeds 1 --num-segments 7,64,512
  python tools/recall.py --variants binary --seeds 1 --output-dir runs/recall_tp2_pp2 \\
      --nproc-per-node 4 parallel.tensor_model_parallel_size=2 \\
      parallel.pipeline_model_parallel_size=2 train.micro_batch_size=8
"""

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "examples/recall/recall.yaml"
VARIANTS: dict[str, list[str]] = {
    "binary": [],
    "plain": ["memory.update=plain", "memory.noise_std=0"],
    "none": ["memory.update=plain", "memory.noise_std=0", "memory.num_mem_tokens=0"],
}
STREAMS = ["train.micro_batch_size=64", "train.global_batch_size=64", "train.eval_iters=1"]
ONE_PROCESS = [
    f"parallel.{name}_size=1"
    for name in ("tensor_model_parallel", "context_parallel", "pipeline_model_parallel")
]


class StepError(Exception):
    """A command ended with an error."""


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """For the log."""
        return f"{self.variant}, seed {self.seed}"

    def scores_file(self, num_segments: int) -> Path:
        """What the evaluation at one length writes."""
        return self.folder / f"memory_{num_segments}.json"

    def scores(self) -> dict[int, dict[str, Any]]:
        """All answers there are, by number of segments."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("memory_*.json")]
        entries = sorted((entry["scores"][0] for entry in found), key=lambda e: e["num_segments"])
        return {entry["num_segments"]: entry for entry in entries}

    @property
    def cpu_seconds(self) -> float:
        """Of all processes of the call that finished training."""
        return float((self.folder / "cpu_seconds").read_text())


def main() -> int:
    """Train, evaluate, tabulate; returns the exit status."""
    args = parse_args()
    os.chdir(ROOT)
    runs = [
        Run(variant, seed, args.output_dir / f"{variant}_{seed}")
        for variant in args.variants
        for seed in args.seeds
    ]
    try:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda run: train_and_ask(run, args), runs))
    except StepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = make_table(runs)
    print(f"\n{table}")
    if args.docs is not None:
        write_page(args.docs, runs, table)
    return 0


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/recall"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--num-segments", default="7,64,512", metavar="N,N,...", help="when to ask"
    )  # fmt: skip
    parser.add_argument(
        "--nproc-per-node", type=int, default=1, metavar="N", help="ranks that train, by torchrun"
    )
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at once"
    )
    parser.add_argument(
        "--docs", type=Path, metavar="FOLDER", help="write recall.md and recall.png there"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for training")
    return parser.parse_intermixed_args()


def train_and_ask(run: Run, args: argparse.Namespace) -> None:
    """Train and evaluate what is not there yet."""
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    cpu_seconds = step(
        f"train {run.name}", run.folder / "train.log",
        [*([*ranks, str(args.nproc_per_node)] if args.nproc_per_node > 1 else []),
         "pretrain_dna_bert.py", "--config", RECIPE, f"train.output_dir={run.folder}",
         f"train.seed={run.seed}", f"data.seed={run.seed}", *VARIANTS[run.variant],
         *args.overrides],
    )  # fmt: skip
    record = run.folder / "cpu_seconds"
    if not record.is_file():
        record.write_text(f"{cpu_seconds:.1f}\n")
    for num_segments in (int(number) for number in args.num_segments.split(",")):
        if not run.scores_file(num_segments).is_file():
            step(
                f"ask {run.name}, after {num_segments} segments",
                run.folder / f"ask_{num_segments}.log",
                ["tools/evaluate.py", "--checkpoint", str(run.folder),
                 "--num-segments", str(num_segments),
                 "--output", str(run.scores_file(num_segments)), *STREAMS, *ONE_PROCESS],
            )  # fmt: skip


def step(what: str, log: Path, command: list[str]) -> float:
    """Run one command, its processes with one thread each; its output goes to a file.

    Returns:
        CPU seconds of all its processes.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"$ python {shlex.join(command)}", flush=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise StepError(f"'{what}' ended with status {process.returncode}; {log} says why")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    print(f"{what}: {time.monotonic() - start:.0f} s, {cpu_seconds:.0f} s of CPU", flush=True)
    return cpu_seconds


def make_table(runs: list[Run]) -> str:
    """A Markdown table: accuracy by variant, seed and number of segments, and the controls."""
    lengths = sorted({n for run in runs for n in run.scores()})
    columns = ["memory", "seed", "CPU s", *map(str, lengths), "reset", "swapped", "donor"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for run in runs:
        scores = run.scores()
        cells = [run.variant, str(run.seed), f"{run.cpu_seconds:.0f}"]
        cells += [f"{scores[n]['kept']['accuracy']:.3f}" if n in scores else "" for n in lengths]
        controls = scores[min(scores)]
        cells += [f"{controls[control]['accuracy']:.3f}" for control in ("reset", "swapped")]
        donor = controls["swapped"].get("donor_accuracy")
        cells.append("" if donor is None else f"{donor:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_page(folder: Path, runs: list[Run], table: str) -> None:
    """docs/recall.md and its plot."""
    quiet_libraries()
    from megatron_dna.training.plots import plot_recall

    curves: dict[str, list[tuple[int, float]]] = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        answers: dict[int, list[float]] = {}
        for run in (run for run in runs if run.variant == variant):
            for n, entry in run.scores().items():
                answers.setdefault(n, []).append(entry["kept"]["accuracy"])
        curves[variant] = [(n, statistics.mean(answers[n])) for n in sorted(answers)]
    folder.mkdir(parents=True, exist_ok=True)
    first = min(n for curve in curves.values() for n, _ in curve)
    chance = json.loads(runs[0].scores_file(first).read_text())["chance"]
    plot_recall(curves, folder / "recall.png", chance)
    page = PAGE.format(table=table, chance=chance, first=first)
    (folder / "recall.md").write_text(page, encoding="utf-8")
    print(f"wrote {folder / 'recall.md'} and {folder / 'recall.png'}")


PAGE = """\
# Recall: how long memory holds

<!-- Written by `make recall` (tools/recall.py). -->

Segment 0 of a window holds a marker and a barcode of 4 symbols; the last segment asks for it; all
between is noise. Nothing but the memory tokens gets from one segment to the next. The model
([recipe](../examples/recall/recall.yaml): 2 layers, 128 wide) was trained on windows of at most 7
segments.

Accuracy by segments of the window, 64 streams (256 symbols) a point; chance is {chance:.3f}. The
last three columns are controls at {first} segments: memory reset before each segment, memory of
another stream (asked for its own barcode, and for the donor's). "CPU s" is what training took, one
process on one core unless said.

{table}

![accuracy by number of segments](recall.png)

`binary` keeps signs, with noise before them late in training, so nothing can drift; `plain` is the
published RMT, whose states drift in chains longer than it was trained on; `none` has no memory
tokens.
"""


if __name__ == "__main__":
    sys.exit(main())
