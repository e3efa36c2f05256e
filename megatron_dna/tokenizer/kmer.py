"""Tokenizers that need no training: non-overlapping k-mers, and single nucleotides (k = 1)."""

from __future__ import annotations

import itertools
from pathlib import Path

from tokenizers import Regex, models

from megatron_dna.tokenizer.spec import (
    LETTERS,
    MAX_KMER_LENGTH,
    SPECIAL_TOKENS,
    UNK,
    kmer_pattern,
)
from megatron_dna.tokenizer.template import check_output, save_tokenizer


def write_kmer_tokenizer(k: int, output: str | Path) -> int:
    """Writes a tokenizer.json of all k-mers; returns the size of its vocabulary.

    From left to right, each k of A, C, G and T in a row are one token; where fewer are left before
    another letter or the end, each is a token by itself. Ids: the special tokens, the letters, the
    k-mers in the order of the alphabet; for k = 6 there are 4,107.

    Source: Dalla-Torre et al. 2023 (Nucleotide Transformer), for k = 6; differs: special tokens and
    runs of 10 or more N are those of GENA-LM.

    Args:
        k: bases of a token, 1 to 8. With 1 every letter is a token, as in AIDO.DNA.
        output: the file to write; its folder is made.

    Raises:
        ValueError: `k` is out of range, or `output` is no place for a file.
        OSError: the file cannot be written.
    """
    if not 1 <= k <= MAX_KMER_LENGTH:
        raise ValueError(f"k ({k}) must be between 1 and {MAX_KMER_LENGTH}; change --k")
    output = Path(output)
    check_output(output)
    kmers = ["".join(bases) for bases in itertools.product("ACGT", repeat=k)] if k > 1 else []
    ids = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *LETTERS, *kmers))}
    save_tokenizer(models.WordLevel(ids, unk_token=UNK), output, Regex(kmer_pattern(k)))
    return len(ids)
