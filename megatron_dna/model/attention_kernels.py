"""Which of Transformer Engine's kernels computes attention, and with which mask.

Transformer Engine chooses by machine, versions of libraries, shape, mask and window. Where nothing
else fits it takes, without a word, a kernel that keeps the scores of all pairs of positions: slow,
and large. Here it is asked beforehand.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

import torch
from megatron.core.transformer.enums import AttnMaskType

from megatron_dna.config import Config, ConfigError

_FAST = ("flash-attn", "cuDNN")


class Attention(NamedTuple):
    """What a layer computes on one rank."""

    dtype: torch.dtype
    micro_batch: int
    heads: int
    head_dim: int
    seq_length: int
    half_width: int | None
    """Tokens seen to each side; None for all."""
    is_training: bool = True


def attention_kernel(attention: Attention, mask_type: AttnMaskType) -> str:
    """What Transformer Engine takes on this machine: `flash-attn`, `cuDNN` or `unfused`.

    Source: Transformer Engine 2.12 to 2.17, `DotProductAttention.forward`.
    """
    from transformer_engine.pytorch.attention.dot_product_attention import utils

    half_width = -1 if attention.half_width is None else attention.half_width
    flash, _, fused, *_ = utils.get_attention_backend(
        utils.AttentionParams(
            qkv_dtype=attention.dtype,
            qkv_layout="sbhd_sbhd_sbhd",
            batch_size=attention.micro_batch,
            num_heads=attention.heads,
            num_gqa_groups=attention.heads,
            max_seqlen_q=attention.seq_length,
            max_seqlen_kv=attention.seq_length,
            head_dim_qk=attention.head_dim,
            head_dim_v=attention.head_dim,
            attn_mask_type=mask_type.name,
            window_size=(half_width, half_width),
            core_attention_bias_requires_grad=False,
            deterministic=os.environ.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1") == "0",
            is_training=attention.is_training,
        )
    )
    return _FAST[0] if flash else _FAST[1] if fused else "unfused"


@lru_cache(maxsize=64)
def mask_type_of_full_windows(attention: Attention) -> AttnMaskType:
    """`no_mask`, or `padding` where only a mask that hides nothing gets a fast kernel.

    So it is for windows to both sides on cuDNN up to Transformer Engine 2.12 at least.
    """
    kinds = (AttnMaskType.no_mask, AttnMaskType.padding)
    fast = (kind for kind in kinds if attention_kernel(attention, kind) in _FAST)
    return next(fast, AttnMaskType.no_mask)


@lru_cache(maxsize=4)
def nothing_hidden(micro_batch: int, seq_length: int, device: torch.device) -> torch.Tensor:
    """Padding mask without padding, [micro_batch, 1, 1, seq], False."""
    return torch.zeros(micro_batch, 1, 1, seq_length, dtype=torch.bool, device=device)


def check_attention(config: Config, layer_spec: str) -> str:
    """Refuse options for which Transformer Engine has only its slow kernel on this machine.

    Args:
        config: the run's options.
        layer_spec: `local` or `transformer_engine`, as chosen.

    Returns:
        The kernels, for the log; empty where Transformer Engine computes no attention in BF16.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    model, parallel = config.model, config.parallel
    is_used = layer_spec == "transformer_engine" and parallel.context_parallel_size == 1
    if not is_used or config.train.precision != "bf16":
        return ""
    described = []
    every = model.global_attn_every_n_layers
    half_widths = {"all": None} | ({"window": model.local_attention // 2} if every > 1 else {})
    for name, half_width in half_widths.items():
        attention = Attention(
            torch.bfloat16,
            config.train.micro_batch_size,
            model.num_attention_heads // parallel.tensor_model_parallel_size,
            model.hidden_size // model.num_attention_heads,
            config.context_length,
            half_width,
        )
        padded = attention_kernel(attention, AttnMaskType.padding)
        if padded == "unfused":
            _refuse(name, every)
        mask_type = mask_type_of_full_windows(attention)
        full = attention_kernel(attention, mask_type)
        described.append(f"{name}: {full} with {mask_type.name}, {padded} where padded")
    return "; ".join(described)


def _refuse(name: str, every: int) -> None:
    kind = "windows to both sides" if name == "window" else "attention to all positions"
    raise ConfigError(
        f"model.global_attn_every_n_layers ({every}) needs {kind}, full and padded, for which "
        f"Transformer Engine has no fast kernel here (cuDNN {torch.backends.cudnn.version()}); "
        "install flash-attn 2.3 or above, or Transformer Engine 2.12 or above beside cuDNN 9.6 or "
        "above (but not 9.10.0, 9.10.1 or 9.14.0), or set model.layer_spec to local"
    )
