"""Which ids a run's data has."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_dna.config import Config
from megatron_dna.data.recall import RecallVocabulary
from megatron_dna.tokenizer.bpe import DnaTokenizer


class Vocabulary(Protocol):
    """What a model must know of the ids."""

    vocab_size: int
    """Number of ids."""
    token_lengths: npt.NDArray[np.int32]
    """[vocab_size] bases (recall: symbols) in each token; 0 for special ones."""
    sha256: str
    """Tells vocabularies apart, in hex."""


def open_vocabulary(config: Config) -> Vocabulary:
    """The vocabulary of `data.kind`: that of data.tokenizer, or of recall data.

    Raises:
        ValueError: data.tokenizer is not a tokenizer of GENA's kind.
    """
    if config.data.kind == "recall":
        return RecallVocabulary(config.data.recall_vocab_size)
    return DnaTokenizer.from_file(config.data.tokenizer)
