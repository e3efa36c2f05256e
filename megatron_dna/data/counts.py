"""How often each token occurs in a .bin/.idx pair."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron_dna.data.indexed import IndexedTokens
from megatron_dna.tokenizer.bpe import DnaTokenizer


def count_tokens(tokens: IndexedTokens, tokenizer: DnaTokenizer) -> npt.NDArray[np.int64]:
    """How often each id occurs, int64 [vocab_size], special ids included. Memory: some MB.

    Raises:
        ValueError: an id is outside the vocabulary.
    """
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for ids in tokens.iter_chunks():
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= tokenizer.vocab_size:
            raise ValueError(
                f"{tokens.prefix}.bin holds id {lowest if lowest < 0 else highest}, outside the "
                f"tokenizer's vocabulary ({tokenizer.vocab_size}); give the tokenizer it was made "
                "with"
            )
        counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    return counts
