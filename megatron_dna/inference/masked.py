"""A masked language model: how likely tokens are in their context, and its states around them.

It reads one segment at a time; with memory, the memory is the initial one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megatron_dna.inference.alleles import Tokens
from megatron_dna.inference.stream import StreamModel

Doubles = npt.NDArray[np.float64]
MIN_SEGMENT_SIZE = 16


class MaskedModel:
    """The masked language model of a model folder, plain or RMT, and its tokenizer.

    Attributes:
        tokenizer: of the folder.
        segment_size: tokens of an input, [CLS] and [SEP] included.
        hidden_size: width of the states.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        segment_size: int | None = None,
    ) -> None:
        """Load it. `segment_size`: at most the model's, which is the default.

        Raises:
            ValueError: not a model folder that this package makes or trains, or not all of one.
        """
        self._stream = StreamModel(folder, device, dtype, masked_lm=True)
        longest = self._stream.segment_size
        if segment_size is not None and not MIN_SEGMENT_SIZE <= segment_size <= longest:
            raise ValueError(
                f"--segment-size ({segment_size}) must be between {MIN_SEGMENT_SIZE} and "
                f"{longest}, what the model was trained on"
            )
        self.segment_size: int = segment_size or longest
        self.tokenizer, self.hidden_size = self._stream.tokenizer, self._stream.hidden_size
        self.sha256 = self._stream.sha256

    @torch.inference_mode()
    def log_probabilities(self, alleles: Sequence[Tokens], batch_size: int) -> Doubles:
        """Log-probability of each allele's changed tokens, all of them masked at once.

        The masked tokens are independent of each other given their context; no token is 0.

        Args:
            alleles: tokens of a segment; those that differ only in ids that are masked share
                one pass through the model.
            batch_size: inputs that go through the model at once.

        Returns:
            [alleles], in nats.
        """
        mask_id = self.tokenizer.mask_id
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, allele in enumerate(alleles):
            masked = replace(allele, changed=(mask_id,) * len(allele.changed))
            if allele.changed:
                groups.setdefault(self._input(masked), []).append(i)
        found = np.zeros(len(alleles))
        for rows, states in self._states(list(groups), batch_size):
            is_masked = torch.tensor(
                [[i == mask_id for i in ids] + [False] * (len(rows[0]) - len(ids)) for ids in rows]
            )
            # [masked tokens of the batch, vocab]
            log_p = self._stream.logits(states[is_masked.to(states.device)]).log_softmax(-1)
            ends = is_masked.sum(1).cumsum(0).tolist()
            wanted = [
                (i, slot, token)
                for ids, end in zip(rows, ends, strict=True)
                for i in groups[ids]
                for slot, token in enumerate(alleles[i].changed, end - len(alleles[i].changed))
            ]
            members, slots, tokens = np.array(wanted).T
            np.add.at(found, members, log_p[slots, tokens].double().cpu().numpy())
        return found

    @torch.inference_mode()
    def pool_flanks(self, alleles: Sequence[Tokens], batch_size: int) -> Doubles:
        """Mean of the final states over the tokens beside the changed ones, of unmasked input.

        Returns:
            [alleles, hidden]; NaN where there is nothing beside them.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, allele in enumerate(alleles):
            groups.setdefault(self._input(allele), []).append(i)
        found = np.full((len(alleles), self.hidden_size), np.nan)
        for rows, states in self._states(list(groups), batch_size):
            members = [(row, i) for row, ids in enumerate(rows) for i in groups[ids]]
            weights = torch.zeros(len(members), states.shape[1], dtype=torch.float64)
            for weight, (_, i) in zip(weights, members, strict=True):
                start = 1 + len(alleles[i].left)
                end = start + len(alleles[i].changed)
                weight[1:start] = 1
                weight[end : end + len(alleles[i].right)] = 1
            weights /= weights.sum(1, keepdim=True)  # 0 / 0 is NaN
            picked = states[[row for row, _ in members]].double()
            means = torch.einsum("bl,blh->bh", weights.to(states.device), picked)
            found[[i for _, i in members]] = means.cpu()
        return found

    def _input(self, allele: Tokens) -> tuple[int, ...]:
        return (
            self.tokenizer.cls_id,
            *(*allele.left, *allele.changed, *allele.right),
            self.tokenizer.sep_id,
        )

    def _states(
        self, inputs: list[tuple[int, ...]], batch_size: int
    ) -> Iterator[tuple[list[tuple[int, ...]], Tensor]]:
        """Final states of inputs, batch by batch, with padding behind the shorter ones.

        Yields:
            Inputs, and their states [inputs, longest, hidden]. All inputs come, long ones first.
        """
        inputs = sorted(inputs, key=len, reverse=True)
        for first in range(0, len(inputs), batch_size):
            rows = inputs[first : first + batch_size]
            ids = self._stream.pad([np.array(row) for row in rows])
            yield rows, self._stream.encode(ids, [None] * len(rows))[0]
