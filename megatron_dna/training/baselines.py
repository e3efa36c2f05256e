"""What a model must beat: predictions that look at no context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_dna.data.counts import count_tokens
from megatron_dna.data.indexed import IndexedTokens
from megatron_dna.tokenizer.bpe import DnaTokenizer


@dataclass(frozen=True)
class Baselines:
    """Cross-entropy on held-out tokens, in nats a token, and the same in bits a base."""

    uniform: float
    """Every token that is not special equally likely."""
    unigram: float
    """Each as often as in the training tokens (one added to every count)."""
    bases_per_token: float
    """Mean length of a held-out token."""

    def bits_per_base(self, nats_per_token: float) -> float:
        """`nats_per_token` in bits a base."""
        return nats_per_token / math.log(2) / self.bases_per_token


def compute_baselines(
    train: Sequence[str], valid: Sequence[str], tokenizer: DnaTokenizer
) -> Baselines:
    """Count tokens in the `train` prefixes and score those in `valid`, special tokens left out.

    Raises:
        ValueError: a prefix cannot be read, or there is nothing to score.
    """
    train_counts = _count_bases(train, tokenizer)
    valid_counts = _count_bases(valid, tokenizer)
    total = valid_counts.sum()
    if total == 0:
        raise ValueError(f"held-out data {list(valid)} has no tokens to score")
    is_content = np.ones(tokenizer.vocab_size, bool)
    is_content[sorted(tokenizer.special_ids)] = False
    smoothed = (train_counts + 1)[is_content]
    log_probability = np.log(smoothed / smoothed.sum())
    return Baselines(
        uniform=math.log(is_content.sum()),
        unigram=float(-(valid_counts[is_content] * log_probability).sum() / total),
        bases_per_token=float((valid_counts * tokenizer.token_lengths).sum() / total),
    )


def _count_bases(prefixes: Sequence[str], tokenizer: DnaTokenizer) -> npt.NDArray[np.int64]:
    """How often each id occurs in all prefixes, int64 [vocab_size]; special ids count as zero."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for prefix in prefixes:
        counts += count_tokens(IndexedTokens(prefix), tokenizer)
    counts[sorted(tokenizer.special_ids)] = 0
    return counts
