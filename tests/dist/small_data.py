"""Files that a whole run reads: a tokenizer and data with something to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.unit.data_files import write_pair, write_tokenizer

NUM_IDS = 27  # of tests.unit.data_files.write_tokenizer: 6 special, ACGTN, 16 pairs


def write_data(folder: Path) -> list[str]:
    """Write a tokenizer and training and held-out data; returns the options of a small run on them.

    A token mostly decides the next: context helps a model that learns.
    """
    write_tokenizer(folder / "tokenizer.json")
    generator = np.random.default_rng(0)
    for name, length in (("train", 3000), ("valid", 600)):
        chain, coins = [11], generator.random(length) < 0.1
        for coin in coins:
            chain.append(11 + (3 * chain[-1] + 5 * int(coin)) % 16)
        # The last document is shorter than a window: its sample is padded.
        write_pair(folder / name, [chain[: length - 10], chain[length - 10 :]])
    return [
        f"data.tokenizer={folder}/tokenizer.json",
        f"data.train=[{{prefix: {folder}/train}}]",
        f"data.valid=[{{prefix: {folder}/valid}}]",
        "data.segment_size=24",
        "model.num_layers=2",
        "model.hidden_size=32",
        "model.ffn_hidden_size=48",
        "model.num_attention_heads=4",
        "model.init_method_std=0.2",  # at 0.02 query and key gradients drown in rounding
        "train.micro_batch_size=2",
        "train.global_batch_size=8",
        "train.precision=fp32",
        "train.eval_interval=4",
        "train.eval_iters=2",
        "optimizer.lr=0.002",
        "scheduler.lr_warmup_iters=2",
        "checkpoint.keep_last=0",
        "logging.log_interval=3",
        "parallel.platform=cpu",
    ]
