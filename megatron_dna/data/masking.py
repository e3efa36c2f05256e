"""Windows to masked segments: a typed facade over `csrc/masking.cpp`.

Source: Devlin et al. 2018, section 3.1 (80/10/10), and Joshi et al. 2020, section 3.1 (spans);
differs: exactly k positions a segment; random replacements are never special tokens; spans are
placed by one draw over all arrangements on a circle, so that no position is masked more often than
another and none is drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_dna._core import Masker as _Masker
from megatron_dna.config import Config
from megatron_dna.data.indexed import TokenArray
from megatron_dna.tokenizer.bpe import DnaTokenizer


class VocabularyError(ValueError):
    """A token id that the tokenizer does not know.

    Attributes:
        slot: number of the window that holds it, in the call.
    """

    def __init__(self, token_id: int, vocab_size: int, slot: int) -> None:
        super().__init__(f"token id ({token_id}) must be below the vocabulary size ({vocab_size})")
        self.slot = slot


@dataclass(frozen=True)
class MaskedSegments:
    """A micro-batch of S segments a sample, as NumPy arrays."""

    input_ids: npt.NDArray[np.int64]
    """[S, B, C]: [CLS], C - 2 tokens, [SEP]; in a short document fewer tokens, then [PAD]."""
    masked_positions: npt.NDArray[np.int64]
    """[S, B, k] positions in the segment, ascending; unused slots 0."""
    labels: npt.NDArray[np.int64]
    """[S, B, k] original ids there; unused slots 0."""
    loss_mask: npt.NDArray[np.float32]
    """[S, B, k] 1 for used slots, 0 for unused."""
    num_real: npt.NDArray[np.int32]
    """[S, B] positions before the padding."""
    num_bases: npt.NDArray[np.int64]
    """[S, B] bases that the content tokens (no frame, no padding) spell."""
    samples: npt.NDArray[np.int64]
    """[B] sample numbers."""


class Masker:
    """Cuts windows into framed segments and masks them, the same way for the same sample number."""

    def __init__(self, config: Config, tokenizer: DnaTokenizer, stream: int = 0) -> None:
        """Prepares the tables of a vocabulary.

        Args:
            config: gives C, k, S, the mean length of spans and the seed.
            tokenizer: gives the ids.
            stream: random numbers of different streams are independent.

        Raises:
            ValueError: C, k or the mean length of spans is out of range.
        """
        self._segment_size = config.data.segment_size
        self._num_segments = config.memory.max_n_segments
        self._num_masked = config.num_masked_tokens
        self._vocab_size = tokenizer.vocab_size
        self._masker = _Masker(
            segment_size=self._segment_size,
            num_masked=self._num_masked,
            mean_span_length=config.data.mean_span_length,
            seed=config.data.seed % 2**64,
            stream=stream,
            cls_id=tokenizer.cls_id,
            sep_id=tokenizer.sep_id,
            pad_id=tokenizer.pad_id,
            mask_id=tokenizer.mask_id,
            special_ids=np.array(sorted(tokenizer.special_ids), np.int32),
            token_lengths=tokenizer.token_lengths,
        )

    def mask(self, windows: Sequence[TokenArray], samples: npt.NDArray[np.int64]) -> MaskedSegments:
        """Masked segments of one window a sample. Runs in C++ with the GIL released.

        A full segment has exactly k masked positions, or all of its maskable ones if special tokens
        leave fewer; a segment that its document does not fill has k / (C - 2) of its tokens masked,
        rounded, at least one. 80% of them show [MASK], 10% a random token that is not special, 10%
        stay. All is fixed by (seed, stream, sample number, segment).

        Args:
            windows: ids of at most S x (C - 2) tokens each.
            samples: int64 [windows], their sample numbers.

        Raises:
            VocabularyError: an id is outside the vocabulary.
            ValueError: a window is too long, or not uint16 or int32.
        """
        rows = (self._num_segments, len(samples))
        slots = (*rows, self._num_masked)
        arrays: dict[str, npt.NDArray[Any]] = {
            "input_ids": np.empty((*rows, self._segment_size), np.int64),
            "masked_positions": np.empty(slots, np.int64),
            "labels": np.empty(slots, np.int64),
            "loss_mask": np.empty(slots, np.float32),
            "num_real": np.empty(rows, np.int32),
            "num_bases": np.empty(rows, np.int64),
        }
        bad_id, bad_slot = self._masker.write(
            windows, samples, num_segments=self._num_segments, **arrays
        )
        if bad_id is not None:
            raise VocabularyError(bad_id, self._vocab_size, bad_slot)
        return MaskedSegments(**arrays, samples=samples)
