"""What a masked language model says about every token, each masked once.

Pass j of k masks the tokens j, j + k, j + 2k, ... of each segment and predicts them from the rest
of the segment, and from the memory of the segments before, which was made of unmasked tokens.

Source: the pseudo-log-likelihood of Salazar et al. 2020 ("Masked Language Model Scoring"); differs:
they mask one token a pass, so that each sees all others, which costs as many passes as tokens.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from megatron_dna.inference.genome import Segment
from megatron_dna.inference.stream import StreamModel

Track = Literal["loss", "entropy"]

_ROWS = 1024
"""Predictions that are made at once: with a vocabulary of 32,000 they take 131 MB."""


class MaskedReader:
    """A `Reader` of one value a token: nats for each of its bases, NaN where there is an N."""

    def __init__(self, model: StreamModel, track: Track, num_passes: int) -> None:
        """Read with a model that has its head (`masked_lm`).

        Args:
            model: the model.
            track: `loss`: -ln of the true token's probability; `entropy`: of the prediction.
            num_passes: k.

        Raises:
            ValueError: `num_passes` is below 2.
        """
        if num_passes < 2:
            raise ValueError(
                f"--passes ({num_passes}) must be at least 2: with 1 all tokens are masked at once "
                "and none is left to predict from"
            )
        self.model, self.track, self.num_passes = model, track, num_passes
        tokenizer = model.tokenizer
        lengths = tokenizer.token_lengths.astype(np.float32)
        has_n = ["N" in tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        lengths[(lengths == 0) | has_n] = np.nan
        self._lengths = torch.from_numpy(lengths)

    @torch.inference_mode()
    def __call__(
        self, segments: list[Segment], memory: list[Tensor | None]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """fp32 [batch, longest, 1] on the CPU, and each row's new memory."""
        ids = self.model.pad([segment.ids for segment in segments])
        values = torch.full(ids.shape, torch.nan)
        lengths = torch.tensor([len(segment.ids) for segment in segments], device=ids.device)
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        is_token = (place > 0) & (place < lengths[:, None] - 1)
        for number in range(self.num_passes):
            chosen = is_token & ((place - 1) % self.num_passes == number)
            if chosen.any():
                values[chosen.cpu()] = self._predict(ids, chosen, memory)
        new_memory = memory
        if self.model.has_memory:
            _, new_memory = self.model.encode(ids, memory)
        return (values / self._lengths[ids.cpu()])[..., None], new_memory

    def _predict(self, ids: Tensor, chosen: Tensor, memory: list[Tensor | None]) -> Tensor:
        """Nats of each chosen token, fp32 [chosen] on the CPU."""
        masked = ids.masked_fill(chosen, self.model.tokenizer.mask_id)
        states, _ = self.model.encode(masked, memory)
        nats = []
        pairs = zip(states[chosen].split(_ROWS), ids[chosen].split(_ROWS), strict=True)
        for some, truth in pairs:
            log_p = self.model.logits(some).log_softmax(1)
            if self.track == "loss":
                nats.append(-log_p.gather(1, truth[:, None])[:, 0])
            else:
                nats.append(-(log_p.exp() * log_p).sum(1))
        return torch.cat(nats).cpu()
