"""Speed of the training loader, from .bin to masked tensors, on one core.

    python benchmarks/loader.py [--tokenizer T --prefix P] [--num-tokens N] [--seconds S]

Without a prefix it makes one document of random tokens over a vocabulary of all k-mers up to 7.
Prints JSON: for each shape content tokens a second of CPU time in the training process
(`tokens_per_cpu_second`, no workers), tokens a second of wall time from one loader process
(`tokens_per_second_one_worker`), and the bound that memory bandwidth sets, which is a copy of the
same stretches from the .bin's type to int64 (`copy_tokens_per_cpu_second`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from machine import cpu_model
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from tokenizers import models

from megatron_dna.config import load_config
from megatron_dna.data.indexed import IndexedTokens
from megatron_dna.data.loader import build_loader
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.spec import SPECIAL_TOKENS, UNK
from megatron_dna.tokenizer.template import save_tokenizer

# segment_size, max_n_segments, micro_batch_size, mean_span_length
SHAPES = [
    (512, 1, 8, 1.0),
    (512, 1, 8, 3.0),
    (128, 1, 32, 1.0),
    (1024, 1, 4, 1.0),
    (512, 8, 4, 1.0),
]


def write_tokenizer(path: Path) -> None:
    """A BPE of GENA's kind whose vocabulary is all k-mers of ACGT up to 7."""
    kmers = [list(map("".join, itertools.product("ACGT", repeat=k))) for k in range(1, 8)]
    tokens = [*SPECIAL_TOKENS, *itertools.chain.from_iterable(kmers)]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [(kmer[:-1], kmer[-1]) for group in kmers[1:] for kmer in group]
    save_tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=UNK), path)


def write_tokens(prefix: Path, num_tokens: int, vocab_size: int) -> None:
    """One document of random tokens that are not special."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    ids = np.random.default_rng(0).integers(6, vocab_size, num_tokens, dtype=np.uint16)
    builder.add_document(torch.from_numpy(ids.astype(np.int32)), [num_tokens])
    builder.finalize(f"{prefix}.idx")


def measure(step: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Tokens a second of CPU time and of wall time; `step` returns its number of tokens."""
    for _ in range(20):
        step()
    num_tokens, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < seconds:
        num_tokens += sum(step() for _ in range(20))
    return num_tokens / (time.process_time() - cpu), num_tokens / (time.perf_counter() - wall)


def measure_loader(overrides: list[str], num_workers: int, seconds: float) -> tuple[float, float]:
    """Content tokens a second of this process's CPU time and of wall time."""
    config = load_config(None, [*overrides, f"data.num_workers={num_workers}"])
    loader = build_loader(config, "train", 0, 0, 1)
    return measure(lambda: int(next(loader).num_tokens.sum()), seconds)


def measure_copy(
    tokens: IndexedTokens, shape: tuple[int, int, int, float], seconds: float
) -> float:
    """Tokens a second of CPU time when the same windows are only widened to int64."""
    size, segments, batch, _ = shape
    longest = int(tokens.lengths.argmax())
    length = int(tokens.lengths[longest])
    window = min(segments * (size - 2), length)
    starts = np.random.default_rng(1).integers(0, length - window + 1, 4096).tolist()
    document = tokens.read(longest, 0, length)
    places = itertools.cycle(starts)
    out = np.empty((batch, window), np.int64)

    def step() -> int:
        for slot in range(batch):
            start = next(places)
            out[slot] = document[start : start + window]
        return out.size

    return measure(step, seconds)[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--prefix", type=Path)
    parser.add_argument("--num-tokens", type=int, default=50_000_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if (options.prefix is None) != (options.tokenizer is None):
        parser.error("--prefix and --tokenizer go together")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prefix, tokenizer = options.prefix, options.tokenizer
        if prefix is None:
            prefix, tokenizer = Path(folder) / "random", Path(folder) / "tokenizer.json"
            write_tokenizer(tokenizer)
            vocab_size = DnaTokenizer.from_file(tokenizer).vocab_size
            write_tokens(prefix, options.num_tokens, vocab_size)
        tokens = IndexedTokens(str(prefix))
        results = []
        for shape in SHAPES:
            size, segments, batch, span = shape
            overrides = [
                f"data.tokenizer={tokenizer}", f"data.train=[{{prefix: {prefix}}}]",
                f"data.segment_size={size}", f"memory.max_n_segments={segments}",
                f"data.mean_span_length={span}", f"train.micro_batch_size={batch}",
            ]  # fmt: skip
            cpu_rate, _ = measure_loader(overrides, 0, options.seconds)
            _, worker_rate = measure_loader(overrides, 1, options.seconds)
            results.append({
                "segment_size": size, "max_n_segments": segments, "micro_batch_size": batch,
                "mean_span_length": span, "tokens_per_cpu_second": round(cpu_rate),
                "tokens_per_second_one_worker": round(worker_rate),
                "copy_tokens_per_cpu_second": round(measure_copy(tokens, shape, options.seconds)),
            })  # fmt: skip
    machine = {"cpu": cpu_model(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, "num_tokens": tokens.num_tokens, "shapes": results}))


if __name__ == "__main__":
    main()
