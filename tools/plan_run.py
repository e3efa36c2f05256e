#!/usr/bin/env python3
"""Say what a run needs and how long it takes, before it is paid for.

Prints parameters, memory of a rank, communication, speed, days and GPU hours. All of it is
estimated: memory from what the code allocates, time from a roofline and an alpha-beta model. No
GPU, no data and no network is needed. See docs/planning.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_dna.training.logs import quiet_libraries

if TYPE_CHECKING:
    from megatron_dna.config import Config

EXAMPLE = """\
examples:
  python tools/plan_run.py --config examples/7b_rmt.yaml --num-gpus 256 --gpu h100
  python tools/plan_run.py --config examples/7b_rmt.yaml --num-gpus 256 --gpu h100 --search
  python tools/plan_run.py --config examples/7b_rmt.yaml --num-gpus 256 --gpu h100 \\
      --tokens 1e12 parallel.pipeline_model_parallel_size=4
  python tools/plan_run.py --config examples/7b_rmt.yaml --num-gpus 2048 --dry-run
"""
DEFAULT_VOCAB_SIZE = 32000


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="YAML", help="recipe of the run"
    )
    parser.add_argument("--num-gpus", type=int, required=True, metavar="N", help="world size")
    parser.add_argument("--gpu", default="h100", help="a100, h100, h200 or b200 (default: h100)")
    parser.add_argument(
        "--tokens", type=float, metavar="T", help="budget (default: train.train_iters steps)"
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        metavar="V",
        help=f"ids (default: those of data.tokenizer, or {DEFAULT_VOCAB_SIZE} where it is absent)",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--search", action="store_true", help="rank the layouts that fit")
    action.add_argument(
        "--dry-run",
        action="store_true",
        help="build ranks of that world with the training code, on tensors without storage",
    )
    parser.add_argument("--rank", type=int, help="--dry-run: this rank only")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_args()


def main() -> int:
    """Plan; returns the exit status."""
    args = parse_arguments()
    quiet_libraries()
    try:
        check(args)
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Print the plan, a search, or a dry run.

    Raises:
        ValueError: names the option, its value and the rule.
    """
    from megatron_dna.config import load_config
    from megatron_dna.planning.gpus import find_gpu

    gpu = find_gpu(args.gpu)
    config = load_config(args.config, args.overrides)
    vocab_size = choose_vocab_size(config, args.vocab_size)
    tokens = None if args.tokens is None else int(args.tokens)
    if args.dry_run:
        print_dry_run(args, config, vocab_size)
    elif args.search:
        from megatron_dna.planning.report import ESTIMATE, as_json, search_table
        from megatron_dna.planning.search import search

        plans = search(config, args.num_gpus, gpu, vocab_size, tokens)
        if args.json:
            print(json.dumps([as_json(plan) for plan in plans], indent=2))
        else:
            print(f"{ESTIMATE}\n\n{len(plans)} layouts fit; the fastest:")
            print(search_table(plans))
    else:
        from megatron_dna.planning.plan import make_plan, other_recompute
        from megatron_dna.planning.report import as_json, page

        plan = make_plan(config, args.num_gpus, gpu, vocab_size, tokens)
        if args.json:
            print(json.dumps(as_json(plan), indent=2))
        else:
            print(page(plan, other_recompute(plan)))


def check(args: argparse.Namespace) -> None:
    """Refuse arguments that mean nothing.

    Raises:
        ValueError: names the option, its value and the rule.
    """
    for name in ("num_gpus", "vocab_size", "tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} ({value:g}) must be at least 1")
    if args.rank is not None and not (args.dry_run and 0 <= args.rank < args.num_gpus):
        raise ValueError(f"--rank ({args.rank}) goes with --dry-run and lies below --num-gpus")
    if args.dry_run and args.json:
        raise ValueError("--json does not go with --dry-run")


def choose_vocab_size(config: Config, given: int | None) -> int:
    """As given, else the tokenizer's, else (saying so) the default."""
    from megatron_dna.data.vocabulary import open_vocabulary

    if given is not None:
        return given
    if config.data.kind == "recall" or Path(config.data.tokenizer).is_file():
        return open_vocabulary(config).vocab_size
    print(
        f"data.tokenizer ({config.data.tokenizer}) is not there: planning with "
        f"{DEFAULT_VOCAB_SIZE} ids (--vocab-size)",
        file=sys.stderr,
    )
    return DEFAULT_VOCAB_SIZE


def print_dry_run(args: argparse.Namespace, config: Config, vocab_size: int) -> None:
    """Build the asked-for rank, or the first of the first stage and the last of the last."""
    from megatron_dna.planning.dry_run import dry_run
    from megatron_dna.planning.report import gib, table

    ranks = sorted({0, args.num_gpus - 1}) if args.rank is None else [args.rank]
    rows = []
    for rank in ranks:
        run = dry_run(config, args.num_gpus, rank, vocab_size)
        place = f"TP {run.tp_rank} CP {run.cp_rank} PP {run.pp_rank} DP {run.dp_rank}"
        held = (run.weights, run.gradients, run.optimizer, run.segment)
        rows.append([f"{rank} of {args.num_gpus}", place, *map(gib, held)])
    print("Built with the training code on tensors without storage; GiB:")
    header = ["rank", "place", "weights", "gradients", "optimizer", "one segment's activations"]
    print(table(header, rows))


if __name__ == "__main__":
    sys.exit(main())
