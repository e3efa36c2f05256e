#!/usr/bin/env python3
"""Propose DNA sequences: Gibbs sampling from a masked language model, under constraints.

Motifs stay where they are put and GC content stays in its range at every step. A predictor that was
fine-tuned on a model of this package can steer. The same seed gives the same sequences.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_dna.training.logs import quiet_libraries, setup_logging

EXAMPLE = """\
example:
  python tools/design_sequence.py --model models/tiny --length 200 --motif TATAAA@31 \\
      --gc 0.4 0.6 --num-sequences 8 --output designs
  python tools/design_sequence.py --model models/tiny --length 200 --output steered \\
      --predictor runs/promoter --label 1 --score-weight 20
"""


def main() -> int:
    """Parse the command line and design; returns the exit status."""
    args = _parse()
    setup_logging("INFO", rank=0)
    quiet_libraries()
    try:
        _design(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.num_sequences} sequences to {args.output}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder, plain or RMT")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--length", type=int, required=True, help="bases of a sequence")
    parser.add_argument(
        "--motif", action="append", default=[], metavar="LETTERS@BASE",
        help="letters that stay from that base (1-based) on; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--gc", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
        help="range of the share of G and C (default: 0 1)",
    )  # fmt: skip
    parser.add_argument("--num-sequences", type=int, default=4, help="default: 4")
    parser.add_argument(
        "--num-steps", type=int, default=1000, help="tokens to draw a sequence (default: 1000)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="default: 1")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--predictor", type=Path, help="folder of a classifier or regressor")
    parser.add_argument("--label", help="label to aim at (default: the second of two)")
    parser.add_argument(
        "--score-weight", type=float, default=1.0, help="nats a unit of the score (default: 1)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="sequences (default: 16)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), help="default: bf16 on cuda, fp32 on cpu"
    )
    return parser.parse_args()


def _design(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from megatron_dna.hf.command_line import find_device_and_dtype, quiet_transformers
    from megatron_dna.inference.constraints import make_constraints
    from megatron_dna.inference.design import Sampler
    from megatron_dna.inference.design_models import MaskedLm, Predictor
    from megatron_dna.inference.design_output import check_output, write_designs

    quiet_transformers()
    for name in ("num_sequences", "num_steps", "batch_size"):
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} ({getattr(args, name)}) must be at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed ({args.seed}) must be at least 0")
    if args.label is not None and args.predictor is None:
        raise ValueError(f"--label ({args.label}) needs --predictor")
    check_output(args.output)
    constraints = make_constraints(args.length, args.motif, tuple(args.gc))
    where = find_device_and_dtype(args)
    model = MaskedLm(args.model, *where, args.batch_size)
    score = None
    if args.predictor is not None:
        score = Predictor(args.predictor, *where, args.batch_size, args.label)
    sampler = Sampler(
        model.tokenizer, constraints, model, args.temperature, score, args.score_weight
    )
    run = sampler.run(args.num_sequences, args.num_steps, args.seed)
    states = list(tqdm(run, total=args.num_steps + 1, unit="step", disable=None))
    chains = list(zip(*states, strict=True))
    likelihoods = [model.log_likelihood(chain[-1].sequence) for chain in chains]
    write_designs(args.output, chains, likelihoods, tuple(args.gc))


if __name__ == "__main__":
    sys.exit(main())
