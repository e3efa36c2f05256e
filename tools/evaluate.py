#!/usr/bin/env python3
"""Score a checkpoint on held-out data, beside what can be had without looking at context."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from megatron_dna.config import (
    RECALL_FIRST_SYMBOL,
    BlendSource,
    Config,
    ParallelConfig,
    load_config,
)
from megatron_dna.training.logs import quiet_libraries

EXAMPLE = """\
example:
  python tools/evaluate.py --checkpoint runs/tiny
  torchrun --nproc_per_node 4 tools/evaluate.py --checkpoint runs/tiny/checkpoints/iter_0000500 \\
      --data data/mouse_valid train.eval_iters=100 parallel.tensor_model_parallel_size=2
  python tools/evaluate.py --checkpoint runs/memory --num-segments 1,2,4,8 --plot memory.png

With --num-segments, windows of so many segments are scored three times: with the memory that the
segments before bring (kept), with the initial memory in each segment (reset), and with the memory
of another sample (swapped). Where memory is used, kept is better than both.

Options are those of the run that wrote the checkpoint, except the layout: TP, CP and PP are 1
unless given, and the processes share the samples.
"""

MAX_SEGMENT_ROWS = 64
"""Windows of more segments have their scores by segment in --output and --plot only."""


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
    parser.add_argument(
        "--num-segments", type=number_list, metavar="N,N,...",
        help="what memory gives in windows of so many segments",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, help="with --num-segments: draw this PNG")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file too")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    if args.plot is not None and args.num_segments is None:
        parser.error("--plot needs --num-segments")
    return args


def number_list(text: str) -> list[int]:
    """Numbers between commas, ascending."""
    return sorted({int(number) for number in text.split(",")})


def main() -> int:
    """Evaluate and print the table; returns the exit status."""
    args = parse_args()
    quiet_libraries()
    from megatron_dna.checkpoint.folders import resolve, write_text

    try:
        checkpoint = resolve(args.checkpoint)
        config = options(checkpoint, args.data, args.overrides)
        numbers: dict[str, Any]
        if args.num_segments is None and config.data.kind == "genome":
            numbers = evaluate_checkpoint(checkpoint, config)
        else:
            lengths = args.num_segments or [config.memory.max_n_segments]
            numbers = evaluate_memory_of(checkpoint, config, lengths)
        if args.output is not None and os.environ.get("RANK", "0") == "0":
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_text(args.output, json.dumps(numbers, indent=1) + "\n")
    except (ValueError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(f"{checkpoint.name} on held-out {config.data.kind} data:")
        (print_memory_table if "scores" in numbers else print_table)(numbers)
        if args.plot is not None:
            from megatron_dna.training.plots import plot_memory

            args.plot.parent.mkdir(parents=True, exist_ok=True)
            plot_memory(numbers["scores"], args.plot, numbers["chance"])
    return 0


def options(checkpoint: Path, data: list[str] | None, overrides: list[str]) -> Config:
    """The run's options at this call's layout and data."""
    from megatron_dna.checkpoint.reader import read_config

    config = read_config(checkpoint)
    asked = load_config(None, overrides)
    config = dataclasses.replace(config, parallel=ParallelConfig(platform=asked.parallel.platform))
    config = load_config(None, overrides, base=config)
    if data is not None:
        if config.data.kind != "genome":
            raise ValueError(f"--data ({data[0]}) is for genomes; data.kind is {config.data.kind}")
        valid = [BlendSource(prefix) for prefix in data]
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, valid=valid))
    if config.data.kind == "genome" and not config.data.valid:
        raise ValueError("data.valid ([]) of the run is empty; name held-out data with --data")
    return config


def evaluate_checkpoint(checkpoint: Path, config: Config) -> dict[str, Any]:
    """Loss, accuracy and bits a base of the model, and of both baselines."""
    from megatron_dna.checkpoint.compatibility import check_tokenizer
    from megatron_dna.checkpoint.sharded import load_checkpoint
    from megatron_dna.tokenizer.bpe import DnaTokenizer
    from megatron_dna.training.baselines import compute_baselines
    from megatron_dna.training.evaluation import evaluate
    from megatron_dna.training.session import close_session, open_session

    session = open_session(config)
    state = load_checkpoint(checkpoint, session.model)
    check_tokenizer(checkpoint, state.tokenizer_sha256, session.tokenizer.sha256)
    scores = evaluate(session)
    close_session()
    train, valid = ([source.prefix for source in part]
                    for part in (config.data.train, config.data.valid))  # fmt: skip
    baselines = compute_baselines(train, valid, DnaTokenizer.from_file(config.data.tokenizer))
    return {
        "loss": scores["valid/loss"],
        "accuracy": scores["valid/accuracy"],
        "bits_per_base": scores["valid/bits_per_base"],
        "unigram_loss": baselines.unigram,
        "unigram_bits_per_base": baselines.bits_per_base(baselines.unigram),
        "uniform_loss": baselines.uniform,
        "uniform_bits_per_base": baselines.bits_per_base(baselines.uniform),
    }


def evaluate_memory_of(checkpoint: Path, config: Config, lengths: list[int]) -> dict[str, Any]:
    """Scores of windows of each length with memory kept, reset and swapped; chance, if known."""
    from megatron_dna.checkpoint.sharded import load_checkpoint
    from megatron_dna.training.memory_evaluation import check_lengths, evaluate_memory
    from megatron_dna.training.session import close_session, open_session

    check_lengths(config, lengths)
    session = open_session(config)
    load_checkpoint(checkpoint, session.model)
    scores = [evaluate_memory(session, length).to_dict() for length in lengths]
    close_session()
    num_symbols = config.data.recall_vocab_size - RECALL_FIRST_SYMBOL
    return {"scores": scores, "chance": 1 / num_symbols if config.data.kind == "recall" else None}


def print_memory_table(numbers: dict[str, Any]) -> None:
    """A row a number of segments, then a row a segment of the longest windows."""
    controls = ("kept", "reset", "swapped")
    heads = [f"{control} {what}" for control in controls for what in ("loss", "accuracy")]
    print(f"{'segments':>10}" + "".join(f"{head:>18}" for head in heads) + f"{'donor':>10}")
    rows = [
        (str(entry["num_segments"]), [entry[control] for control in controls])
        for entry in numbers["scores"]
    ]
    longest = numbers["scores"][-1]
    by_segment = list(zip(*(longest[control]["by_segment"] for control in controls), strict=True))
    if 1 < len(by_segment) <= MAX_SEGMENT_ROWS:
        rows += [(f"no. {row[0]['segment']}", list(row)) for row in by_segment]
    for name, scores in rows:
        cells = [f"{score[what]:18.4f}" for score in scores for what in ("loss", "accuracy")]
        donor = scores[-1].get("donor_accuracy")
        print(f"{name:>10}" + "".join(cells) + ("" if donor is None else f"{donor:10.4f}"))
    if numbers["chance"] is not None:
        print(f"chance: {numbers['chance']:.4f}; donor: answers that are the other's barcode")


def print_table(numbers: dict[str, Any]) -> None:
    """Three rows: the model and what it must beat."""
    print(f"{'':10}{'nats/token':>12}{'bits/base':>12}{'accuracy':>10}")
    accuracy = f"{numbers['accuracy']:10.4f}"
    for name, prefix, last in (
        ("model", "", accuracy), ("unigram", "unigram_", ""), ("uniform", "uniform_", "")
    ):  # fmt: skip
        loss, bits = numbers[f"{prefix}loss"], numbers[f"{prefix}bits_per_base"]
        print(f"{name:10}{loss:12.4f}{bits:12.4f}{last}")


if __name__ == "__main__":
    sys.exit(main())
