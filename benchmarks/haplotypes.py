"""Writing a sample's two haplotypes, against `bcftools consensus` and `tokenizers`; CPU time.

    python benchmarks/haplotypes.py [--tokenizer T] [--fasta F] [--vcf V] [--sample S]

Both write Megatron's .bin/.idx of every stretch of both haplotypes. Here: `preprocess` with one
worker, whole contigs, without the reference's own documents. There: `bcftools consensus -H 1` and
`-H 2`, then `tokenizers` with one thread on pieces of --piece-length bases, which suits it better
than the whole stretches that are encoded here, and Megatron-Core's writer. The two take turns; the
median counts. The haplotypes' bases are compared in the run. Without a tokenizer, one of 4,096
tokens is trained on examples/data.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Before `tokenizers` is imported: one thread.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from tokenizers import Tokenizer

from megatron_dna.data.haplotypes import HaplotypeOptions
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from megatron_dna.genome.vcf import SampleChoice
from megatron_dna.tokenizer.train import train_tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples/data"


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    parser.add_argument(
        "--fasta", default=EXAMPLES / "human_chr20_1-4000000.fa.gz", type=Path, help="reference"
    )
    parser.add_argument(
        "--vcf",
        default=EXAMPLES / "human_kgp_chr20_20samples.vcf.gz",
        type=Path,
        help="phased variants, indexed, as bcftools wants them",
    )
    parser.add_argument("--sample", default="HG00096")
    parser.add_argument("--piece-length", default=10_000, type=int, help="bases, for tokenizers")
    parser.add_argument("--rounds", default=3, type=int)
    return parser.parse_args()


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of a call, in all threads and in the processes that it waits for."""

    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    start = spent()
    run()
    return spent() - start


def write_here(args: argparse.Namespace, tokenizer: Path, prefix: Path) -> None:
    """The product's way."""
    haplotypes = HaplotypeOptions(
        (args.vcf,), samples=SampleChoice((args.sample,)), no_reference=True
    )
    preprocess(PreprocessOptions((args.fasta,), tokenizer, prefix, haplotypes=haplotypes))


def write_there(args: argparse.Namespace, tokenizer: Path, prefix: Path) -> None:
    """With the tools that there are."""
    encoder = Tokenizer.from_file(str(tokenizer))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for number in (1, 2):
        for stretch in consensus(args, number):
            ids = np.concatenate(
                [
                    encoder.encode(
                        stretch[at : at + args.piece_length], add_special_tokens=False
                    ).ids
                    for at in range(0, len(stretch), args.piece_length)
                ]
            )
            builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


def consensus(args: argparse.Namespace, number: int) -> list[str]:
    """The stretches between runs of N of a haplotype, by bcftools."""
    command = ["bcftools", "consensus", "-s", args.sample, "-H", str(number)]
    command += ["-f", str(args.fasta), str(args.vcf)]
    done = subprocess.run(command, capture_output=True, check=True)
    stretches = []
    for record in done.stdout.decode().split(">")[1:]:
        bases = record.partition("\n")[2].replace("\n", "").upper()
        stretches += [stretch for stretch in re.split("N{10,}", bases) if stretch]
    return stretches


def check(args: argparse.Namespace, tokenizer: Path, here: Path) -> int:
    """Compares the bases of both; returns how many there are."""
    vocab = {i: token for token, i in Tokenizer.from_file(str(tokenizer)).get_vocab().items()}
    dataset = IndexedDataset(f"{here}_train")
    ours = ["".join(vocab[i] for i in dataset[n].tolist()) for n in range(len(dataset))]
    theirs = consensus(args, 1) + consensus(args, 2)
    if ours != theirs:
        sys.exit("the haplotypes differ")
    return sum(map(len, ours))


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    if shutil.which("bcftools") is None:
        print("not measured: bcftools is not installed (apt-get install bcftools)")
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = args.tokenizer or Path(folder) / "trained.json"
        if args.tokenizer is None:
            train_tokenizer([EXAMPLES / "human_chr20_1-4000000.fa.gz"], 4096, tokenizer)
        here, there = Path(folder) / "here", Path(folder) / "there"
        write_here(args, tokenizer, here)  # not timed: imports, caches
        num_bases = check(args, tokenizer, here)
        rounds = [
            (
                cpu_seconds(lambda: write_there(args, tokenizer, there)),
                cpu_seconds(lambda: write_here(args, tokenizer, here)),
            )
            for _ in range(args.rounds)
        ]
        only = [cpu_seconds(lambda: [consensus(args, 1), consensus(args, 2)])]
    reference, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    print(
        f"{args.sample}, both haplotypes, {num_bases:,} bases: bcftools consensus and tokenizers "
        f"{reference:.2f} s of CPU time (consensus alone {only[0]:.2f}), here {ours:.2f} s, ratio "
        f"{ratio:.1f}"
    )


if __name__ == "__main__":
    main()
