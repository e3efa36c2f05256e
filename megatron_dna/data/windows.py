"""Documents to samples: a typed facade over the index in `csrc/windows.cpp`.

A window is W = S x (C - 2) tokens of one document. A document of L tokens has ceil(L / W) windows
in every epoch, all full and all different; only a document shorter than W has a short one. Training
windows start at a new random phase each epoch, so a token is seen at every place of a window:

    phase 0     |-------|-------|-------|           the last window is shifted back to be full
                                    |-------|
    phase p     ..|-------|-------|-------|         windows end to end from p on ...
                                    |-------|       ... and one more at the longer uncovered end

Every token of a long document is in a window but for at most W / 2 tokens at one end, a different
stretch each epoch. Away from the ends each token is seen once an epoch, and within W of an end 1/2
to 2 times on average, which full windows at uniform phases inside a document cannot avoid.

The order of an epoch is a permutation keyed by (seed, source, epoch) that is computed window by
window: the index holds 12 bytes a document and nothing a window, and sample n is the same for any
number of ranks and workers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron_dna._core import WindowIndex as _WindowIndex

Int64Array = npt.NDArray[np.int64]


class WindowIndex:
    """The endless sequence of windows over the documents of one source."""

    def __init__(
        self,
        document_lengths: npt.NDArray[np.int32],
        window_tokens: int,
        *,
        seed: int,
        source: int = 0,
        random_phase: bool = True,
        min_tokens: int = 1,
    ) -> None:
        """Counts the windows of an epoch.

        Args:
            document_lengths: int32 [documents], tokens of each.
            window_tokens: W, tokens of a full window.
            seed: of order and phase; any integer.
            source: number of this source in its blend: sources differ in order and phase.
            random_phase: a new phase each (epoch, document); False starts at multiples of W.
            min_tokens: documents with fewer tokens are skipped.

        Raises:
            ValueError: a size is not positive, or a length is negative.
        """
        self._index = _WindowIndex(
            np.ascontiguousarray(document_lengths, np.int32),
            window_tokens=window_tokens,
            min_tokens=min_tokens,
            seed=seed % 2**64,
            stream=source,
            random_phase=random_phase,
        )

    def __len__(self) -> int:
        """Windows of one epoch."""
        return len(self._index)

    def locate(self, samples: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Where samples lie: documents, first tokens and numbers of tokens, int64 [samples].

        Sample n belongs to epoch n // len(self). Runs in C++ with the GIL released.

        Raises:
            ValueError: a sample is negative, or there is no window.
        """
        return self._index.locate(np.ascontiguousarray(samples, np.int64))
