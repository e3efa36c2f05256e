"""DNA text to ids and back: a typed facade over the exact encoders in `csrc`.

A tokenizer is a `tokenizer.json`: BPE of GENA-LM's kind, or non-overlapping k-mers, of which single
nucleotides are the shortest (`tokenizer/spec.py` says which files exactly). Ids equal those of
Hugging Face `tokenizers` on every string; a file that asks for anything more is refused, since it
could not be followed exactly.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_dna._core import Encoder, KmerEncoder
from megatron_dna.tokenizer.spec import (
    CLS,
    GAP,
    MASK,
    MAX_KMER_LENGTH,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNK,
    parse_tokenizer,
)

logger = logging.getLogger(__name__)


class DnaTokenizer:
    """Encodes DNA with the ids of one tokenizer.json.

    Attributes:
        vocab_size: number of ids, special tokens included.
        unk_id, cls_id, sep_id, pad_id, mask_id, gap_id: ids of [UNK] [CLS] [SEP] [PAD] [MASK] "-".
        special_ids: these six: never masked, never drawn as a random replacement.
        token_lengths: int32 [vocab_size], bases that each token spells; 0 for the special ones.
        token_spans: int64 [vocab_size], letters of the text behind each id: one behind [UNK].
        sha256: of the file, in hex.
    """

    def __init__(self, encoder: Encoder, tokens: Sequence[str], sha256: str) -> None:
        """Use `from_file`."""
        ids = {token: i for i, token in enumerate(tokens)}
        self._encoder = encoder
        self.vocab_size = len(tokens)
        self.unk_id, self.cls_id, self.sep_id = ids[UNK], ids[CLS], ids[SEP]
        self.pad_id, self.mask_id, self.gap_id = ids[PAD], ids[MASK], ids[GAP]
        self.special_ids = frozenset(ids[token] for token in SPECIAL_TOKENS)
        self._bases = ["" if i in self.special_ids else token for i, token in enumerate(tokens)]
        self.token_lengths: npt.NDArray[np.int32] = np.array(
            [len(bases) for bases in self._bases], np.int32
        )
        self.token_spans = self.token_lengths.astype(np.int64)
        self.token_spans[self.unk_id] = 1
        self.sha256 = sha256
        # Single bases of k-mers (k > 1), which more bases would have made a whole one.
        longest = "A" * MAX_KMER_LENGTH
        are_kmers = isinstance(encoder, KmerEncoder) and len(self.encode(longest)) < len(longest)
        self._incomplete = (
            frozenset(ids[base] for base in "ACGT") if are_kmers else frozenset[int]()
        )

    @classmethod
    def from_file(cls, path: str | Path) -> DnaTokenizer:
        """Reads a tokenizer.json.

        Raises:
            ValueError: it is not JSON, or not a tokenizer of a known kind; names what differs.
            OSError: the file cannot be read.
        """
        content = Path(path).read_bytes()
        try:
            encoder, tokens = parse_tokenizer(content)
        except ValueError as error:
            raise ValueError(f"tokenizer {path}: {error}") from error
        if not encoder.is_fast:
            logger.warning(
                "tokenizer %s: its vocabulary is too large for the fast tables, or has a token of "
                "more than 64 bases or no A, C, G, T: encoding is exact, but several times slower",
                path,
            )
        return cls(encoder, tokens, hashlib.sha256(content).hexdigest())

    def encode(self, sequence: bytes | str) -> npt.NDArray[np.int32]:
        """Ids of a whole sequence, int32 [tokens], without [CLS] and [SEP].

        Runs in C++ with the GIL released. Letters outside the vocabulary, lower case too, become
        [UNK] one by one, as in `tokenizers`: upper-case soft-masked sequence first.

        Raises:
            ValueError: the bytes are not UTF-8 (ASCII is).
        """
        return self._encoder.encode(sequence)

    def may_join(self, before: int, after: int) -> bool:
        """Whether the encodings of two parts of a text can be joined at a border that both have.

        BPE: where the two tokens that meet are encoded as themselves, since tokens are the encoding
        of their text if every two neighbours are. k-mers: where the second part begins anew, that
        is not after a single base: three of them can make a 3-mer though every two are valid.

        Args:
            before: last token of the first part, which is right up to there.
            after: first token of the second part behind the border.
        """
        if before in self._incomplete:
            return False
        ids = self.encode(self._bases[before] + self._bases[after])
        return np.array_equal(ids, (before, after))

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """The bases that the ids spell: `token_lengths[ids].sum()` letters, special ids none.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        values = np.asarray(ids, np.int64)
        if values.size and not (values.min() >= 0 and values.max() < self.vocab_size):
            raise ValueError(f"ids must be between 0 and {self.vocab_size - 1}, the vocabulary's")
        return "".join(self._bases[i] for i in values.tolist())
