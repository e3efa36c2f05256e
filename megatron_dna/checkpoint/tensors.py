"""The model's tensors as Megatron-Core describes them."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory


def model_tensors(model: torch.nn.Module) -> dict[str, Any]:
    """The stage's tensors as Megatron describes them, without Transformer Engine's extra state."""
    state: dict[str, Any] = unwrap(model).sharded_state_dict()  # type: ignore[operator]
    kinds = (ShardedTensor, ShardedTensorFactory)
    return {name: value for name, value in state.items() if isinstance(value, kinds)}


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The stage inside DDP and precision wrappers."""
    while isinstance(getattr(model, "module", None), torch.nn.Module):
        model = model.module  # type: ignore[assignment]
    return model
