"""Slow implementations that are plainly right, to hold fast ones against."""

from __future__ import annotations

import itertools
import re
from typing import Any


def bpe_merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding as it is defined: the earliest merge first, and leftmost of its kind."""
    while True:
        pairs = list(itertools.pairwise(symbols))
        rank, at = min(
            ((ranks[pair], i) for i, pair in enumerate(pairs) if pair in ranks), default=(-1, -1)
        )
        if rank < 0:
            return symbols
        symbols = [*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :]]


def bpe_ids(spec: dict[str, Any], text: str) -> list[int]:
    """Ids of a string by a tokenizer.json of GENA's kind (with Strip), from its parsed content."""
    vocab = spec["model"]["vocab"]
    ranks = {tuple(merge): rank for rank, merge in enumerate(spec["model"]["merges"])}
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    ids = []
    for piece in re.split("(" + "|".join(map(re.escape, added)) + ")", text):
        if piece in added:
            ids.append(added[piece])
            continue
        # Strip's white space is Unicode's: Python's, but for the four separators U+001C to U+001F.
        stripped = re.sub(r"^[^\S\x1c-\x1f]+|[^\S\x1c-\x1f]+$", "", piece)
        for word in re.split("(-)", re.sub("N{10,}", "-", stripped)):
            symbols = [letter if letter in vocab else "[UNK]" for letter in word]
            ids += [vocab[symbol] for symbol in bpe_merge(symbols, ranks)]
    return ids
