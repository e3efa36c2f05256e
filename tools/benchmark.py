#!/usr/bin/env python3
"""Benchmark a model folder: frozen-embedding probes and fine-tuning over folds, beside baselines.

Every task is also done from GC content, from k-mers, and with a model of the same shape but random
weights. Folds that are done are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from megatron_dna.training.logs import quiet_libraries, setup_logging

EXAMPLE = """\
example:
  python tools/benchmark.py --model models/tiny --output runs/benchmark \\
      --suite examples/benchmarks/shuffled_dna.yaml examples/benchmarks/variant_density.yaml
  python tools/benchmark.py --model models/tiny --output runs/all --data-root data \\
      --suite examples/benchmarks/*.yaml
  python tools/benchmark.py --model models/tiny --output runs/quick --data-root data \\
      --suite examples/benchmarks/*.yaml --methods gc kmer probe probe-random \\
      --set data.max_examples=1000 split.num_folds=3
"""


def main() -> int:
    """Parse the command line, run and print the table; returns the exit status."""
    args = _parse()
    setup_logging("INFO", rank=0)
    quiet_libraries()
    try:
        text = _benchmark(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    print(f"wrote results.md, results.json and results.png to {args.output}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder, plain or RMT")
    parser.add_argument("--suite", type=Path, nargs="+", required=True, help="YAMLs of tasks")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data-root", type=Path, help="replaces ${data_root} in the tasks' paths")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD",
        help="of gc, kmer, probe, probe-random, finetune, finetune-random (default: all)",
    )  # fmt: skip
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="section.key=value", help="override in every task"
    )
    return parser.parse_args()


def _benchmark(args: argparse.Namespace) -> str:
    from megatron_dna.hf.command_line import check_installed, find_device, quiet_transformers

    check_installed("finetune", "accelerate", "peft", "sklearn")
    from tqdm import tqdm

    from megatron_dna.checkpoint.folders import write_text
    from megatron_dna.finetune.benchmark import METHODS, run_benchmark
    from megatron_dna.finetune.models import ModelFolder
    from megatron_dna.finetune.report import markdown, plot_results, table, text_table
    from megatron_dna.finetune.tasks import load_task

    quiet_transformers()
    tasks = [load_task(path, args.set, args.data_root) for path in args.suite]
    model = ModelFolder(args.model, find_device(args.device))
    with tqdm(unit="fold", disable=None) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(what)
            bar.update(done - bar.n)

        results = run_benchmark(tasks, model, args.output, args.methods or list(METHODS), show)
    for name, text in (
        ("results.json", json.dumps(results, indent=1) + "\n"),
        ("results.md", markdown(results, METHODS, args.model.name)),
    ):
        write_text(args.output / f".tmp_{name}", text)
        (args.output / f".tmp_{name}").replace(args.output / name)
    plot_results(results, METHODS, args.output / "results.png")
    return text_table(table(results, METHODS))


if __name__ == "__main__":
    sys.exit(main())
