"""Synthetic windows that only memory can solve: a barcode first, noise, a question last.

Segment 0 is [CLS] WRITE b1 b2 b3 b4 noise [SEP]; the last segment is [CLS] noise READ [MASK] x 4
[SEP], and the labels are b1 to b4. Everything else is noise from the same symbols, so nothing but
the markers tells a barcode apart, and nothing but memory brings it over. Both are at fixed places.

Every symbol is a pure function of (seed, split, sample, segment, position), and the noise does not
depend on how many segments follow: chains of any length can be made segment by segment.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_dna.config import RECALL_BARCODE_LENGTH, RECALL_FIRST_SYMBOL, Config
from megatron_dna.data.masking import MaskedSegments

CLS_ID, SEP_ID, MASK_ID = 1, 2, 4  # as in GENA's tokenizers
WRITE_ID, READ_ID = 6, 7
BARCODE_POSITION = 2
"""Position in segment 0 of the first symbol of the barcode; WRITE stands before it."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

Unsigned = npt.NDArray[np.uint64]


class RecallVocabulary:
    """The ids of recall data: GENA's six special ones, two markers, symbols.

    Attributes:
        vocab_size: number of ids.
        token_lengths: int32 [vocab_size], 1 for a symbol, 0 for the others.
        sha256: in hex; tells vocabularies apart as a tokenizer file's digest does.
    """

    def __init__(self, vocab_size: int) -> None:
        """The vocabulary of `data.recall_vocab_size` ids."""
        self.vocab_size = vocab_size
        self.token_lengths: npt.NDArray[np.int32] = np.ones(vocab_size, np.int32)
        self.token_lengths[:RECALL_FIRST_SYMBOL] = 0
        self.sha256 = hashlib.sha256(f"recall vocabulary of {vocab_size} ids".encode()).hexdigest()


@dataclass(frozen=True)
class RecallTask:
    """Makes any segments of any samples of a split."""

    vocab_size: int
    segment_size: int
    """C, [CLS] and [SEP] included."""
    seed: int
    stream: int
    """Random numbers of different streams (splits) are independent."""

    @classmethod
    def of(cls, config: Config, stream: int) -> RecallTask:
        """The task that `config.data` describes."""
        data = config.data
        return cls(data.recall_vocab_size, data.segment_size, data.seed, stream)

    @property
    def num_symbols(self) -> int:
        """Different symbols; chance is one in so many."""
        return self.vocab_size - RECALL_FIRST_SYMBOL

    def barcodes(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The barcode of each sample, int64 [B, 4]."""
        return self._draw(samples, 0, RECALL_BARCODE_LENGTH)

    def make(
        self,
        samples: npt.NDArray[np.int64],
        num_segments: int,
        segments: range | None = None,
    ) -> MaskedSegments:
        """Windows of `num_segments` segments, or only some segments of them.

        Args:
            samples: int64 [B], their numbers.
            num_segments: segments of a window; the last one asks.
            segments: which of them to make; None makes all.
        """
        segments = range(num_segments) if segments is None else segments
        k, size = RECALL_BARCODE_LENGTH, self.segment_size
        slots = (len(segments), len(samples), k)
        ids = np.empty((len(segments), len(samples), size), np.int64)
        positions, labels = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        loss_mask = np.zeros(slots, np.float32)
        num_bases = np.full(ids.shape[:2], size - 2, np.int64)
        for row, segment in enumerate(segments):
            ids[row, :, 0], ids[row, :, -1] = CLS_ID, SEP_ID
            ids[row, :, 1:-1] = self._draw(samples, segment + 1, size - 2)
            if segment == 0:
                ids[row, :, BARCODE_POSITION - 1] = WRITE_ID
                ids[row, :, BARCODE_POSITION : BARCODE_POSITION + k] = self.barcodes(samples)
                num_bases[row] -= 1
            if segment == num_segments - 1:
                asked = np.arange(size - 1 - k, size - 1)
                ids[row, :, asked[0] - 1], ids[row, :, asked] = READ_ID, MASK_ID
                positions[row], loss_mask[row] = asked, 1
                labels[row] = self.barcodes(samples)
                num_bases[row] -= 1
        return MaskedSegments(
            input_ids=ids,
            masked_positions=positions,
            labels=labels,
            loss_mask=loss_mask,
            num_real=np.full(ids.shape[:2], size, np.int32),
            num_bases=num_bases,
            samples=samples,
        )

    def _draw(
        self, samples: npt.NDArray[np.int64], place: int, length: int
    ) -> npt.NDArray[np.int64]:
        """Symbols [B, length]; place 0 is the barcode, s + 1 the noise of segment s."""
        state = np.full((len(samples), 1), self.seed % 2**64, np.uint64)
        for number in (self.stream, samples[:, None], place, np.arange(length)[None]):
            state = _mix(state + _GAMMA * (np.atleast_1d(number).astype(np.uint64) + np.uint64(1)))
        symbols: npt.NDArray[np.int64] = (state % np.uint64(self.num_symbols)).astype(np.int64)
        return symbols + RECALL_FIRST_SYMBOL


def _mix(state: Unsigned) -> Unsigned:
    """Scrambles 64 bits. Source: Steele et al. 2014, SplitMix (the finaliser of Stafford, 13)."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    mixed: Unsigned = state ^ (state >> np.uint64(31))
    return mixed
