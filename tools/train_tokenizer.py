#!/usr/bin/env python
"""Trains a BPE tokenizer of GENA's kind on genomes: FASTA in, tokenizer.json out."""

import argparse
import sys
from pathlib import Path

from megatron_dna.tokenizer.train import train_tokenizer


def parse_args() -> argparse.Namespace:
    """The command line; its names are those of `train_tokenizer`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--fasta",
        nargs="+",
        required=True,
        type=Path,
        metavar="FASTA",
        help="genomes to sample, plain, gzipped or bgzipped; contig names must be unique",
    )
    parser.add_argument(
        "--vocab-size", required=True, type=int, help="number of ids, special tokens included"
    )
    parser.add_argument("--output", required=True, type=Path, help="the tokenizer.json to write")
    parser.add_argument(
        "--holdout",
        nargs="+",
        action="extend",
        default=[],
        metavar="REGION",
        help="regions that training never sees: 20 or 20:3000001-4000000 (1-based, inclusive)",
    )
    parser.add_argument(
        "--sample-length", type=int, default=1_000, help="bases in a sample (default: %(default)s)"
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=50_000,
        help="most samples to draw, without replacement; memory grows by some 60 bytes for each of "
        "their bases (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the draw; the same seed gives the same file"
    )
    return parser.parse_args()


def main() -> None:
    """Trains, then says what was made."""
    args = vars(parse_args())
    try:
        sample = train_tokenizer(**args)
    except (ValueError, OSError) as error:
        sys.exit(f"train_tokenizer: {error}")
    print(
        f"{args['output']}: {args['vocab_size']:,} tokens, trained on {sample.num_bases:,} bases "
        f"in {sample.num_sequences:,} samples; {sample.num_reverse_complement:,} of these were "
        "read as reverse complement"
    )


if __name__ == "__main__":
    main()
