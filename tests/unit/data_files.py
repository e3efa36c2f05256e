"""What the data tests share: .bin/.idx pairs, a tiny tokenizer, and numpy's Philox as an oracle."""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

SPECIAL_TOKENS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "-"]


def write_pair(prefix, documents, dtype=np.uint16) -> str:
    """Writes documents of ids with Megatron-Core's own builder; returns the prefix."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        ids = torch.from_numpy(np.asarray(document, dtype=np.int64))
        builder.add_document(ids, [len(document)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def write_tokenizer(path: Path, longest: int = 2) -> Path:
    """A BPE of GENA's kind over ACGTN: all tokens of up to 2 or 3 of ACGT."""
    bases = "ACGT"
    merges = [(a, b) for a, b in itertools.product(bases, bases)]
    if longest == 3:
        merges += [(a + b, c) for a, b, c in itertools.product(bases, bases, bases)]
    tokens = [*SPECIAL_TOKENS, *bases, "N", *("".join(merge) for merge in merges)]
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, token in enumerate(SPECIAL_TOKENS)
    ]  # fmt: skip
    gaps = {"type": "Replace", "pattern": {"Regex": "N{10,}"}, "content": "-"}
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": gaps,
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": "-"}, "behavior": "Isolated", "invert": False
        },
        "post_processor": None, "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "[UNK]",
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
            "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(merge) for merge in merges],
        },
    }  # fmt: skip
    path.write_text(json.dumps(spec))
    return path


def philox(counter, key) -> list[int]:
    """The four words of one Philox block. numpy counts up first, so it starts one lower."""
    number = sum(word << (64 * i) for i, word in enumerate(counter)) - 1
    words = [(number % 2**256) >> (64 * i) & (2**64 - 1) for i in range(4)]
    generator = np.random.Philox(counter=np.array(words, np.uint64), key=np.array(key, np.uint64))
    return [int(word) for word in generator.random_raw(4)]


def below(word: int, bound: int) -> int:
    """A random word mapped to [0, bound)."""
    return word * bound >> 64
