"""Speed of exact BPE against Hugging Face `tokenizers`, one thread each, same text, same ids.

    python benchmarks/bpe.py [--tokenizer T] [--fasta F] [--start BP] [--num-bases BP]

Without a tokenizer it trains one of 4,096 tokens on the sequence of examples/data. Prints a
Markdown table: for each length of the pieces, millions of bases a second of CPU time. The two take
turns on every round, and the median of each is taken, so that a busy machine slows both.
`tokenizers` sees at most 2 Mbp of the text, or one piece, since it is slow.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

# Before `tokenizers` is imported: one thread.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from machine import cpu_model
from tokenizers import Tokenizer

from megatron_dna.genome.fasta import read_fasta
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.train import train_tokenizer

EXAMPLE_FASTA = Path(__file__).parents[1] / "examples/data/human_chr20_1-4000000.fa.gz"
PIECE_LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
MAX_BASES_OF_REFERENCE = 2_000_000


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    parser.add_argument(
        "--fasta", default=EXAMPLE_FASTA, type=Path, help="its first contig is used"
    )
    parser.add_argument("--start", default=1_000_000, type=int, help="first base, 0-based")
    parser.add_argument("--num-bases", default=20_000_000, type=int, help="at most")
    parser.add_argument("--rounds", default=5, type=int, help="measurements of each number")
    return parser.parse_args()


def megabases_per_second(encode: Callable[[str], object], pieces: list[str]) -> float:
    """Millions of bases for each second of CPU time."""
    start = time.process_time()
    for piece in pieces:
        encode(piece)
    return sum(map(len, pieces)) / (time.process_time() - start) / 1e6


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.tokenizer or Path(folder) / "trained.json"
        if args.tokenizer is None:
            train_tokenizer([EXAMPLE_FASTA], 4096, path)
        ours = DnaTokenizer.from_file(path)
        theirs = Tokenizer.from_file(str(path))
    contig = next(read_fasta(args.fasta))
    text = contig.sequence[args.start : args.start + args.num_bases].decode()
    print(
        f"{cpu_model()}, {os.cpu_count()} cores, one used; tokenizers "
        f"{metadata.version('tokenizers')}; {path.name}, {ours.vocab_size:,} tokens; "
        f"{len(text):,} bases of {args.fasta.name}, contig {contig.name}"
    )
    print("\n| piece | `tokenizers`, Mbp/s | here, Mbp/s | ratio |\n| --- | --- | --- | --- |")
    for length in (*PIECE_LENGTHS, len(text)):
        pieces = [text[start : start + length] for start in range(0, len(text), length)]
        if length == len(text):
            rates = [megabases_per_second(ours.encode, pieces) for _ in range(args.rounds)]
            print(f"| {length:,} | not measured | {statistics.median(rates):.1f} | |")
            break
        some = pieces[: max(1, MAX_BASES_OF_REFERENCE // length)]
        for piece in some:
            if theirs.encode(piece, add_special_tokens=False).ids != ours.encode(piece).tolist():
                sys.exit(f"ids differ: {piece[:60]}...")
        rounds = [
            (megabases_per_second(theirs.encode, some), megabases_per_second(ours.encode, pieces))
            for _ in range(args.rounds)
        ]
        reference, rate = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(b / a for a, b in rounds)
        print(f"| {length:,} | {reference:.2f} | {rate:.1f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
