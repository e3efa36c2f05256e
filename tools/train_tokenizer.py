#!/usr/bin/env python3
"""Makes a tokenizer.json: BPE trained on genomes, k-mers, or single nucleotides."""

import argparse
import sys
from collections.abc import Set
from pathlib import Path
from typing import Any

from megatron_dna.data.corpora import list_genomes, read_corpus
from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from megatron_dna.tokenizer.train import TrainingSample, train_on_genomes, train_tokenizer

EXAMPLE = """\
example:
  python tools/train_tokenizer.py --fasta examples/data/human_chr20_1-4000000.fa.gz \\
      --holdout 20:3000001-4000000 --vocab-size 512 --output runs/tokenizer.json
  python tools/train_tokenizer.py --corpus examples/corpora/example.yaml \\
      --vocab-size 512 --output runs/tokenizer.json
  python tools/train_tokenizer.py --kind kmer --k 6 --output runs/6mer.json
  python tools/train_tokenizer.py --kind char --output runs/char.json
"""


DEFAULT_K = 6
OPTIONS: dict[str, set[str]] = {
    "bpe": {
        *("fasta", "holdout", "exclude", "corpus", "data_dir"),
        *("vocab_size", "sample_bases", "sample_length", "seed"),
    },
    "kmer": {"k"},
    "char": set(),
}
REQUIRED: dict[str, set[str]] = {"bpe": {"vocab_size"}, "kmer": set(), "char": set()}
OWNERS = {"holdout": "fasta", "exclude": "fasta", "data_dir": "corpus"}
"""Options of BPE that go with one of the two that name genomes."""


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
    bpe.add_argument(
        "--corpus",
        type=Path,
        metavar="YAML",
        help="sample the FASTA files of a corpus file (tools/preprocess_genome.py), without what "
        "its sources hold out and exclude; contig names must be unique in a source only",
    )
    bpe.add_argument(
        "--data-dir",
        type=Path,
        help="what paths in the corpus file are relative to (default: its folder)",
    )
    bpe.add_argument("--vocab-size", type=int, help="number of ids, special tokens included")
    bpe.add_argument(
        "--holdout",
        nargs="+",
        action="extend",
        metavar="REGION",
        help="regions that training never sees: 20, 20:3000001-4000000 (1-based, inclusive) or a "
        "BED file",
    )
    bpe.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        metavar="CONTIG",
        help="contigs that training never sees, by name or shell pattern, such as '*_alt'",
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
    if kind == "bpe" and len(given & {"fasta", "corpus"}) != 1:
        raise ValueError("--fasta or --corpus is needed for --kind bpe; give one of the two")
    for name, owner in OWNERS.items():
        if name in given and owner not in given:
            raise ValueError(f"{flag(name)} goes with {flag(owner)}, which is not given")


def flag(name: str) -> str:
    """The option of an argument."""
    return "--" + name.replace("_", "-")


def train_bpe(
    corpus: Path | None = None, data_dir: Path | None = None, **options: Any
) -> TrainingSample:
    """Trains on FASTA files, or on those of a corpus."""
    if corpus is None:
        return train_tokenizer(**options)
    # Nothing is written where the sources say: `output` is the tokenizer's own.
    sources = read_corpus(corpus, Path(), data_dir)
    return train_on_genomes(list_genomes(sources), **options)


def make_tokenizer(kind: str, output: Path, **options: Any) -> str:
    """Writes the tokenizer.json; returns what it is."""
    check_options(kind, options.keys())
    if kind == "bpe":
        sample = train_bpe(output=output, **options)
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
