"""Every weight in both worlds: its name in transformers, its key in a checkpoint, both layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from megatron_dna.config import ModelConfig
from megatron_dna.model.encoder import padded_vocab_size


@dataclass(frozen=True)
class WeightRule:
    """One weight in both worlds. Both changes work on meta tensors too: that tells shapes."""

    hf_name: str
    """Name in the state dict of `ModernBertForMaskedLM` or `RmtForMaskedLM`."""
    key: str
    """Key in the checkpoint."""
    to_hf: Callable[[Tensor], Tensor]
    """From the checkpoint's layout to Hugging Face's."""
    from_hf: Callable[[Tensor], Tensor]
    """The inverse; ids that do not exist come back as zeros."""


def weight_rules(
    model: ModelConfig, vocab_size: int, with_memory: bool = False
) -> Iterator[WeightRule]:
    """The table: every weight once (the decoder is tied).

    Args:
        model: shape of the encoder.
        vocab_size: ids that the Hugging Face model has.
        with_memory: whether it is `RmtForMaskedLM`.
    """
    padded = padded_vocab_size(vocab_size, model.make_vocab_size_divisible_by)

    def same(weight: Tensor) -> Tensor:
        return weight

    def without_padding_ids(weight: Tensor) -> Tensor:
        return weight[:vocab_size].clone()

    def with_padding_ids(weight: Tensor) -> Tensor:
        return F.pad(weight, (0,) * (2 * weight.dim() - 1) + (padded - vocab_size,))

    def by_kind(weight: Tensor) -> Tensor:
        return qkv_by_kind(weight, model.num_attention_heads)

    def by_head(weight: Tensor) -> Tensor:
        return qkv_by_head(weight, model.num_attention_heads)

    def plain(hf_name: str, key: str) -> WeightRule:
        return WeightRule(hf_name, key, same, same)

    def vocab(hf_name: str, key: str) -> WeightRule:
        return WeightRule(hf_name, key, without_padding_ids, with_padding_ids)

    def norm(hf_name: str, prefix: str) -> Iterator[WeightRule]:
        for part in ("weight", "bias") if model.norm_bias else ("weight",):
            yield plain(f"{hf_name}.{part}", f"{prefix}{part}")

    body = "model"
    if with_memory:
        yield plain("model.initial_memory", "embedding.initial_memory")
        body = "model.encoder"
    yield vocab(f"{body}.embeddings.tok_embeddings.weight", "embedding.word_embeddings.weight")
    yield from norm(f"{body}.embeddings.norm", "embedding.norm.")
    for i in range(model.num_layers):
        ours, theirs = f"decoder.layers.{i}", f"{body}.layers.{i}"
        attention, mlp = f"{ours}.self_attention", f"{ours}.mlp"
        if i > 0:
            yield from norm(f"{theirs}.attn_norm", f"{attention}.linear_qkv.layer_norm_")
        qkv_key = f"{attention}.linear_qkv.weight"
        yield WeightRule(f"{theirs}.attn.Wqkv.weight", qkv_key, by_kind, by_head)
        yield plain(f"{theirs}.attn.Wo.weight", f"{attention}.linear_proj.weight")
        yield from norm(f"{theirs}.mlp_norm", f"{mlp}.linear_fc1.layer_norm_")
        yield plain(f"{theirs}.mlp.Wi.weight", f"{mlp}.linear_fc1.weight")
        yield plain(f"{theirs}.mlp.Wo.weight", f"{mlp}.linear_fc2.weight")
    yield from norm(f"{body}.final_norm", "decoder.final_layernorm.")
    yield plain("head.dense.weight", "head.dense.weight")
    yield from norm("head.norm", "head.norm.")
    yield vocab("decoder.bias", "output_layer.bias")


def qkv_by_kind(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder rows from Megatron's (q, k, v of head 0, of head 1, ...) to (all q, all k, all v).

    Args:
        weight: [3 * hidden, hidden].
        num_heads: attention heads.
    """
    hidden = weight.shape[1]
    by_head = weight.view(num_heads, 3, hidden // num_heads, hidden)
    return by_head.transpose(0, 1).reshape(3 * hidden, hidden)


def qkv_by_head(weight: Tensor, num_heads: int) -> Tensor:
    """The inverse of `qkv_by_kind`."""
    hidden = weight.shape[1]
    by_kind = weight.view(3, num_heads, hidden // num_heads, hidden)
    return by_kind.transpose(0, 1).reshape(3 * hidden, hidden)
