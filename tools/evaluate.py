#!/usr/bin/env python3
"""Score a checkpoint on held-out data, beside what can be had without looking at context."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from megatron_dna.config import BlendSource, Config, ParallelConfig, load_config
from megatron_dna.training.logs import quiet_libraries

EXAMPLE = """\
example:
  python tools/evaluate.py --checkpoint runs/tiny
  torchrun --nproc_per_node 4 tools/evaluate.py --checkpoint runs/tiny/checkpoints/iter_0000500 \\
      --data data/mouse_valid train.eval_iters=100 parallel.tensor_model_parallel_size=2

Options are those of the run that wrote the checkpoint, except the layout: TP and PP are 1 unless
given, and the processes share the samples.
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="an iter_... folder, or a run's output folder for its newest checkpoint",
    )
    parser.add_argument(
        "--data", nargs="+", metavar="PREFIX", help="score these prefixes instead of data.valid"
    )
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file too")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args()


def main() -> int:
    """Evaluate and print the table; returns the exit status."""
    args = parse_args()
    quiet_libraries()
    from megatron_dna.checkpoint.folders import resolve, write_text

    try:
        checkpoint = resolve(args.checkpoint)
        numbers = evaluate_checkpoint(checkpoint, args.data, args.overrides)
    except (ValueError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print_table(checkpoint, numbers)
        if args.output is not None:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_text(args.output, json.dumps(numbers, indent=1) + "\n")
    return 0


def options(checkpoint: Path, data: list[str] | None, overrides: list[str]) -> Config:
    """The run's options at this call's layout and data."""
    from megatron_dna.checkpoint.reader import read_config

    config = read_config(checkpoint)
    asked = load_config(None, overrides)
    config = dataclasses.replace(config, parallel=ParallelConfig(platform=asked.parallel.platform))
    config = load_config(None, overrides, base=config)
    if data is not None:
        valid = [BlendSource(prefix) for prefix in data]
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, valid=valid))
    if not config.data.valid:
        raise ValueError("data.valid ([]) of the run is empty; name held-out data with --data")
    return config


def evaluate_checkpoint(
    checkpoint: Path, data: list[str] | None, overrides: list[str]
) -> dict[str, float]:
    """Loss, accuracy and bits a base of the model, and of both baselines."""
    from megatron_dna.checkpoint.sharded import load_checkpoint
    from megatron_dna.training.baselines import compute_baselines
    from megatron_dna.training.evaluation import evaluate
    from megatron_dna.training.session import close_session, open_session

    config = options(checkpoint, data, overrides)
    session = open_session(config)
    load_checkpoint(checkpoint, session.model)
    scores = evaluate(session)
    close_session()
    train, valid = ([source.prefix for source in part]
                    for part in (config.data.train, config.data.valid))  # fmt: skip
    baselines = compute_baselines(train, valid, session.tokenizer)
    return {
        "loss": scores["valid/loss"],
        "accuracy": scores["valid/accuracy"],
        "bits_per_base": scores["valid/bits_per_base"],
        "unigram_loss": baselines.unigram,
        "unigram_bits_per_base": baselines.bits_per_base(baselines.unigram),
        "uniform_loss": baselines.uniform,
        "uniform_bits_per_base": baselines.bits_per_base(baselines.uniform),
    }


def print_table(checkpoint: Path, numbers: dict[str, float]) -> None:
    """Three rows: the model and what it must beat."""
    print(f"{checkpoint.name} on held-out sequence:")
    print(f"{'':10}{'nats/token':>12}{'bits/base':>12}{'accuracy':>10}")
    accuracy = f"{numbers['accuracy']:10.4f}"
    for name, prefix, last in (
        ("model", "", accuracy), ("unigram", "unigram_", ""), ("uniform", "uniform_", "")
    ):  # fmt: skip
        loss, bits = numbers[f"{prefix}loss"], numbers[f"{prefix}bits_per_base"]
        print(f"{name:10}{loss:12.4f}{bits:12.4f}{last}")


if __name__ == "__main__":
    sys.exit(main())
