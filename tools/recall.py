#!/usr/bin/env python3
"""How long is a barcode remembered? Train on at most 7 segments, ask after many more.

For each variant and seed, one process trains examples/recall/recall.yaml and another asks it after
7, 64 and 512 segments (64 streams each), with its memory kept, reset and swapped. What is there
already is not run again. The table is printed and written, with a plot, as docs/recall.md.
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
"""

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "examples/recall/recall.yaml"
VARIANTS: dict[str, list[str]] = {
    "binary": [],
    "plain": ["memory.update=plain", "memory.noise_std=0"],
    "none": ["memory.update=plain", "memory.noise_std=0", "memory.num_mem_tokens=0"],
}
STREAMS = ["train.micro_batch_size=64", "train.global_batch_size=64", "train.eval_iters=1"]


class StepError(Exception):
    """A command ended with an error."""


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: str
    seed: int
    folder: Path

    @property
    def scores_file(self) -> Path:
        """What the evaluation writes."""
        return self.folder / "memory.json"


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
            scores = list(
                pool.map(lambda run: train_and_ask(run, args.num_segments, args.overrides), runs)
            )
    except StepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = list(zip(runs, scores, strict=True))
    table = make_table(results)
    print(f"\n{table}")
    if args.docs is not None:
        write_page(args.docs, results, table)
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
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at once"
    )
    parser.add_argument(
        "--docs", type=Path, metavar="FOLDER", help="write recall.md and recall.png there"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for training")
    return parser.parse_intermixed_args()


def train_and_ask(run: Run, num_segments: str, overrides: list[str]) -> dict[str, Any]:
    """A run's scores, trained and evaluated where they are not there yet."""
    seeds = [f"train.seed={run.seed}", f"data.seed={run.seed}"]
    step(
        f"train {run.variant}, seed {run.seed}", run.folder / "train.log",
        ["pretrain_dna_bert.py", "--config", RECIPE, f"train.output_dir={run.folder}", *seeds,
         *VARIANTS[run.variant], *overrides],
    )  # fmt: skip
    wanted = sorted({int(number) for number in num_segments.split(",")})
    if known_lengths(run.scores_file) != wanted:
        step(
            f"ask {run.variant}, seed {run.seed}", run.folder / "ask.log",
            ["tools/evaluate.py", "--checkpoint", str(run.folder), "--num-segments", num_segments,
             "--output", str(run.scores_file), *STREAMS],
        )  # fmt: skip
    scores: dict[str, Any] = json.loads(run.scores_file.read_text())
    return scores


def known_lengths(path: Path) -> list[int]:
    """Numbers of segments that an evaluation has answered."""
    if not path.is_file():
        return []
    return [entry["num_segments"] for entry in json.loads(path.read_text())["scores"]]


def step(what: str, log: Path, command: list[str]) -> None:
    """Run one command on one thread; its output goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"$ python {shlex.join(command)}", flush=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        status = subprocess.run(
            [sys.executable, *command],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status:
        raise StepError(f"'{what}' ended with status {status}; {log} says why")
    print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)


def make_table(results: list[tuple[Run, dict[str, Any]]]) -> str:
    """A Markdown table: accuracy by variant, seed and number of segments, and the controls."""
    lengths = [entry["num_segments"] for entry in results[0][1]["scores"]]
    heads = ["memory", "seed", *(str(n) for n in lengths), "reset", "swapped", "donor"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for run, scores in results:
        entries = scores["scores"]
        first = entries[0]  # controls at the length that was trained
        donor = first["swapped"].get("donor_accuracy")
        cells = [run.variant, str(run.seed)]
        cells += [f"{entry['kept']['accuracy']:.3f}" for entry in entries]
        cells += [f"{first[control]['accuracy']:.3f}" for control in ("reset", "swapped")]
        cells.append("" if donor is None else f"{donor:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_page(folder: Path, results: list[tuple[Run, dict[str, Any]]], table: str) -> None:
    """docs/recall.md and its plot."""
    quiet_libraries()
    from megatron_dna.training.plots import plot_recall

    lengths = [entry["num_segments"] for entry in results[0][1]["scores"]]
    chance = results[0][1]["chance"]
    curves: dict[str, list[tuple[int, float]]] = {}
    for variant in dict.fromkeys(run.variant for run, _ in results):
        of_variant = [scores["scores"] for run, scores in results if run.variant == variant]
        curves[variant] = [
            (n, statistics.mean(entries[i]["kept"]["accuracy"] for entries in of_variant))
            for i, n in enumerate(lengths)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    plot_recall(curves, folder / "recall.png", chance)
    page = PAGE.format(table=table, chance=chance, first=lengths[0])
    (folder / "recall.md").write_text(page, encoding="utf-8")
    print(f"wrote {folder / 'recall.md'} and {folder / 'recall.png'}")


PAGE = """\
# Recall: how long memory holds

<!-- Written by `make recall` (tools/recall.py). -->

Segment 0 of a window holds a marker and a barcode of 4 symbols; the last segment asks for it; all
between is noise. Nothing but the memory tokens gets from one segment to the next. The model
([recipe](../examples/recall/recall.yaml): 2 layers, 128 wide) was trained on windows of at most 7
segments.

Accuracy by segments between barcode and question, 64 streams (256 symbols) a point; chance is
{chance:.3f}. The last three columns are controls at {first} segments: memory reset before the
question, memory of another stream (its own barcode, and the donor's).

{table}

![accuracy by number of segments](recall.png)

`binary` keeps signs, with noise before them late in training, so nothing can drift; `plain` is the
published RMT, whose states drift in chains longer than it was trained on; `none` has no memory
tokens.
"""


if __name__ == "__main__":
    sys.exit(main())
