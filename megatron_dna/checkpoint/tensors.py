"""The model's tensors as Megatron-Core describes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.fp8_utils import dequantize_fp8_tensor, is_float8tensor


def model_tensors(model: torch.nn.Module) -> dict[str, Any]:
    """The stage's tensors as Megatron describes them, without Transformer Engine's extra state."""
    state: dict[str, Any] = unwrap(model).sharded_state_dict()  # type: ignore[operator]
    kinds = (ShardedTensor, ShardedTensorFactory)
    return {name: value for name, value in state.items() if isinstance(value, kinds)}


def in_high_precision(tensors: dict[str, Any]) -> dict[str, Any]:
    """`tensors` with BF16 copies of weights that are kept in FP8: checkpoints have no FP8."""
    return {
        name: replace(value, data=dequantize_fp8_tensor(value.data))
        if is_float8tensor(value.data)
        else value
        for name, value in tensors.items()
    }


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The stage inside DDP and precision wrappers."""
    while isinstance(getattr(model, "module", None), torch.nn.Module):
        model = model.module  # type: ignore[assignment]
    return model
