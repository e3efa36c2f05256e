#!/usr/bin/env python3
"""Makes a tokenizer.json: BPE trained on genomes, k-mers, or single nucleotides."""

import argparse
import sys
from collections.abc import Set
from pathlib import Path
from typing import Any

from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from megatron_dna.tokenizer.train import train_tokenizer

EXAMPLE = """\
example:
  python tools/train_tokenizer.py --fasta examples/data/human_chr20_1-4000000.fa.gz \\
      --holdout 20:3000001-4000000 --vocab-size 512 --output runs/tokenizer.json
  python tools/train_tokenizer.py --kind kmer --k 6 --output runs/6mer.json
  python tools/train_tokenizer.py --kind char --output runs/char.json
"""


DEFAULT_K = 6
OPTIONS: dict[str, set[str]] = {
    "bpe": {"fasta", "vocab_size", "holdout", "sample_bases", "sample_length", "seed"},
    "kmer": {"k"},
    "char": set(),
}
REQUIRED: dict[str, set[str]] = {"bpe": {"fasta", "vocab_size"}, "kmer": set(), "char": set()}


def parse_args() -> argparse.Namespace:
    """The command line; the names for BPE are those of `train_tokenizer`."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given is not there
    )
    parser.add_argument(
        "--kind",
        choices=("bpe", "kmer", "char"),
        default="bpe",
        help="bpe: learnt from genomes, as GENA-LM's; kmer: non-overlapping k-mers, single bases "
        "around N and at ends; char: a token a letter (default: %(default)s)",
    )
    parser.add_argument("--output", required=True, type=Path, help="the tokenizer.json to write")
    parser.add_argument("--k", type=int, help="kmer: bases of a token, 1 to 8 (default: 6)")
    bpe = parser.add_argument_group("bpe")
    bpe.add_argument(
        "--fasta",
        nargs="+",
        type=Path,
        metavar="FASTA",
        help="genomes to sample, plain, gzipped or bgzipped; contig names must be unique",
    )
    bpe.add_argument("--vocab-size", type=int, help="number of ids, special tokens included")
    bpe.add_argument(
        "--holdout",
        nargs="+",
        action="extend",
        metavar="REGION",
        help="regions that training never sees: 20 or 20:3000001-4000000 (1-based, inclusive)",
    )
    bpe.add_argument(
        "--sample-bases",
        type=int,
        metavar="BP",
        help="bases to train on, drawn without replacement, each base of all files as likely; "
        "memory grows by some 8 bytes for each of them (default: 50000000)",
    )
    bpe.add_argument(
        "--sample-length", type=int, metavar="BP", help="bases drawn at a time (default: 1000)"
    )
    bpe.add_argument("--seed", type=int, help="of the draw (default: 0)")
    return parser.parse_args()


def check_options(kind: str, given: Set[str]) -> None:
    """Raises ValueError if an option is missing, or belongs to another kind."""
    for owner, names in OPTIONS.items():
        for name in sorted(given & names if owner != kind else set()):
            raise ValueError(f"{flag(name)} is for --kind {owner}; leave it out for --kind {kind}")
    for name in sorted(REQUIRED[kind] - given):
        raise ValueError(f"{flag(name)} is needed for --kind {kind}")


def flag(name: str) -> str:
    """The option of an argument."""
    return "--" + name.replace("_", "-")


def make_tokenizer(kind: str, output: Path, **options: Any) -> str:
    """Writes the tokenizer.json; returns what it is."""
    check_options(kind, options.keys())
    if kind == "bpe":
        sample = train_tokenizer(output=output, **options)
        return (
            f"{options['vocab_size']:,} tokens, trained on {sample.num_bases:,} bases in "
            f"{sample.num_sequences:,} samples; {sample.num_reverse_complement:,} of these were "
            "read as reverse complement"
        )
    k = 1 if kind == "char" else options.get("k", DEFAULT_K)
    return f"{write_kmer_tokenizer(k, output):,} tokens" + (f", {k}-mers" if k > 1 else "")


def main() -> int:
    """Makes the tokenizer, then says what was made; returns the exit status."""
    args = parse_args()
    try:
        description = make_tokenizer(**vars(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {description}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
