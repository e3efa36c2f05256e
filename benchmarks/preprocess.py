"""From FASTA to .bin/.idx, against the same in Python on `tokenizers` and Megatron-Core's builder.

    python benchmarks/preprocess.py [--fasta F] [--tokenizer T] [--measure speed workers memory]

Without a tokenizer it trains one of 4,096 tokens on the sequence of examples/data. Every run is a
process of its own. `speed` compares CPU time for each base, start-up left out, over all of the
FASTA here and over 2 Mbp of it there; the encoder's own rate is that over the first 20 Mbp as one
string. `workers` compares the wall time of one worker and two, so nothing else should run. `memory`
compares peaks for the FASTA and for one contig of 1 Gbp made of it (3 GB of disk).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import cpu_model

from megatron_dna.genome.fasta import read_fasta
from megatron_dna.tokenizer.train import train_tokenizer

ROOT = Path(__file__).parents[1]
EXAMPLE_FASTA = ROOT / "examples/data/human_chr20_1-4000000.fa.gz"
MAX_BASES_OF_REFERENCE = 2_000_000
MAX_BASES_OF_STRING = 20_000_000
LONG_CONTIG = 1_000_000_000

# Each prints JSON: CPU and wall seconds of the work alone, and the bases that were encoded.
OURS = """
import dataclasses
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess

fasta, tokenizer, prefix, workers = sys.argv[1:]
def work():
    manifest = preprocess(PreprocessOptions((Path(fasta),), Path(tokenizer), Path(prefix),
                                            workers=int(workers)))
    return manifest["totals"]["train"]["bases"]
"""
THEIRS = """
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tokenizers import Tokenizer

fasta, path, prefix, piece_length = sys.argv[1:]
def work():
    tokenizer = Tokenizer.from_file(path)
    builder = IndexedDatasetBuilder(prefix + ".bin",
                                    dtype=DType.optimal_dtype(tokenizer.get_vocab_size()))
    with gzip.open(fasta, "rt") as stream:
        assert next(stream).startswith(">")
        sequence = "".join(line.strip() for line in stream).upper()
    for document in re.split("N{10,}", sequence):
        for start in range(0, len(document), int(piece_length)):
            piece = document[start : start + int(piece_length)]
            ids = tokenizer.encode(piece, add_special_tokens=False).ids
            builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(prefix + ".idx")
    return len(sequence)
"""
ENCODER = """
from megatron_dna.genome.fasta import read_fasta
from megatron_dna.tokenizer.bpe import DnaTokenizer

fasta, path, most = sys.argv[1:]
sequence = next(read_fasta(Path(fasta))).sequence
documents = re.split(b"N{10,}", sequence)
text = max(documents, key=len)[: int(most)]
tokenizer = DnaTokenizer.from_file(path)
def work():
    tokenizer.encode(text)
    return len(text)
"""
FRAME = """
import gzip, json, re, resource, sys, time
from pathlib import Path
{}
wall, cpu = time.perf_counter(), time.process_time()
bases = work()
print(json.dumps({{
    "bases": bases,
    "cpu_s": time.process_time() - cpu,
    "wall_s": time.perf_counter() - wall,
    "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}}))
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    parser.add_argument("--fasta", default=EXAMPLE_FASTA, type=Path, help="one contig, gzipped")
    parser.add_argument("--rounds", default=3, type=int, help="measurements of each number")
    parser.add_argument(
        "--measure",
        nargs="+",
        default=["speed"],
        choices=["speed", "workers", "memory"],
        help="what to measure (default: speed)",
    )
    return parser.parse_args()


def run(program: str, *arguments: object) -> dict[str, Any]:
    """Runs a program in its own process, one thread in `tokenizers` and torch."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-c", FRAME.format(program), *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def best(key: str, rounds: int, program: str, *arguments: object) -> dict[str, Any]:
    """The run with the least time: other work on the machine only adds to it."""
    return min((run(program, *arguments) for _ in range(rounds)), key=lambda found: found[key])


def rate(result: dict[str, Any], key: str = "cpu_s") -> float:
    """Millions of bases a second."""
    return float(result["bases"] / result[key] / 1e6)


def write_fasta(path: Path, sequence: bytes, num_bases: int) -> None:
    """One gzipped contig of so many bases, the sequence again and again."""
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b">contig\n")
        while num_bases > 0:
            block = sequence[:num_bases]
            stream.write(re.sub(b"(.{60})", rb"\1\n", block) + b"\n")
            num_bases -= len(block)


def measure_speed(args: argparse.Namespace, tokenizer: Path, folder: Path) -> None:
    """CPU time for each base, here and there, and the encoder's alone."""
    sequence = bytes(next(read_fasta(args.fasta)).sequence).strip(b"N")
    short = folder / "short.fa.gz"
    write_fasta(short, sequence, MAX_BASES_OF_REFERENCE)
    ours = rate(best("cpu_s", args.rounds, OURS, args.fasta, tokenizer, folder / "ours", 1))
    alone = rate(best("cpu_s", args.rounds, ENCODER, args.fasta, tokenizer, MAX_BASES_OF_STRING))
    print("\n| pipeline, one thread | Mbp a CPU second | here / there |\n| --- | --- | --- |")
    print(f"| here | {ours:.1f} | |")
    print(f"| the encoder alone | {alone:.1f} | {ours / alone:.2f} |")
    for length in (1_000, 100_000, MAX_BASES_OF_REFERENCE):
        there = rate(
            best("cpu_s", args.rounds, THEIRS, short, tokenizer, folder / "theirs", length)
        )
        print(
            f"| `tokenizers` + IndexedDatasetBuilder, documents of {length:,} bases | "
            f"{there:.2f} | {ours / there:.1f} |",
            flush=True,
        )


def measure_workers(args: argparse.Namespace, tokenizer: Path, folder: Path) -> None:
    """Wall time of one worker and two."""
    one, two = (
        best("wall_s", args.rounds, OURS, args.fasta, tokenizer, folder / "ours", workers)
        for workers in (1, 2)
    )
    print("\n| workers | seconds | Mbp/s |\n| --- | --- | --- |")
    for workers, result in ((1, one), (2, two)):
        print(f"| {workers} | {result['wall_s']:.2f} | {rate(result, 'wall_s'):.1f} |")
    print(f"\nTwo workers are {one['wall_s'] / two['wall_s']:.2f} times as fast as one.")


def measure_memory(args: argparse.Namespace, tokenizer: Path, folder: Path) -> None:
    """Peak memory for two lengths of a contig."""
    sequence = bytes(next(read_fasta(args.fasta)).sequence)
    long = folder / "long.fa.gz"
    write_fasta(long, sequence.strip(b"N"), LONG_CONTIG)
    print("\n| contig, bases | peak memory, GiB | Mbp a CPU second |\n| --- | --- | --- |")
    for fasta in (args.fasta, long):
        result = run(OURS, fasta, tokenizer, folder / "ours", 2)
        print(
            f"| {result['bases']:,} | {result['peak_gib']:.2f} | {rate(result):.1f} |", flush=True
        )


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    print(f"{cpu_model()}, {os.cpu_count()} cores; {args.fasta.name}")
    with tempfile.TemporaryDirectory() as name:
        tokenizer = args.tokenizer or Path(name) / "trained.json"
        if args.tokenizer is None:
            train_tokenizer([EXAMPLE_FASTA], 4096, tokenizer)
        for what in args.measure:
            {"speed": measure_speed, "workers": measure_workers, "memory": measure_memory}[what](
                args, tokenizer, Path(name)
            )


if __name__ == "__main__":
    main()
