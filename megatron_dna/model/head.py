"""From final hidden states to the loss, on the masked positions only."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_dna.model.layers import LayerNorm, head_config


class PredictionHead(MegatronModule):
    """ModernBERT's head before the decoder: dense, GELU, norm; replicated over TP.

    Every TP rank computes the same on the same k positions, so gradients need no sum.
    """

    def __init__(self, config: TransformerConfig, norm_bias: bool) -> None:
        super().__init__(config)
        config = head_config(config)
        self.dense = torch.nn.Linear(
            config.hidden_size, config.hidden_size, bias=False, dtype=config.params_dtype
        )
        self.norm = LayerNorm(config, config.hidden_size, config.layernorm_epsilon, norm_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform `hidden` [..., hidden]."""
        output: Tensor = self.norm(F.gelu(self.dense(hidden)))
        return output


def without_padding_ids(logits: Tensor, vocab_size: int, vocab_start: int) -> Tensor:
    """Give the ids that only pad the vocabulary no probability, in place.

    Args:
        logits: [..., padded_vocab / tp], this TP rank's columns.
        vocab_size: ids that exist.
        vocab_start: id of the first column.
    """
    first_padding = max(0, vocab_size - vocab_start)
    if first_padding < logits.shape[-1]:
        logits[..., first_padding:] = float("-inf")
    return logits


def masked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats over a vocabulary that is split over TP.

    Args:
        logits: [k, micro_batch, padded_vocab / tp].
        labels: [k, micro_batch].

    Returns:
        [k, micro_batch], fp32.
    """
    losses: Tensor = tensor_parallel.vocab_parallel_cross_entropy(
        logits.float(), labels.contiguous()
    )
    return losses


@torch.no_grad()
def likeliest_ids(logits: Tensor, vocab_start: int, tp_group: dist.ProcessGroup) -> Tensor:
    """The likeliest id at each position, over a vocabulary that is split over TP.

    Gathers one score and one id a rank and position instead of all logits.

    Args:
        logits: [k, micro_batch, padded_vocab / tp], this TP rank's columns.
        vocab_start: id of the first column.
        tp_group: the ranks that share the vocabulary.

    Returns:
        int64 [k, micro_batch], the same on every TP rank.
    """
    best, ids = logits.max(dim=-1, keepdim=True)
    every_best = tensor_parallel.gather_from_tensor_model_parallel_region(best, group=tp_group)
    every_id = tensor_parallel.gather_from_tensor_model_parallel_region(
        ids + vocab_start, group=tp_group
    )
    winner = every_best.argmax(dim=-1, keepdim=True)
    chosen: Tensor = every_id.gather(-1, winner)
    return chosen.squeeze(-1)
