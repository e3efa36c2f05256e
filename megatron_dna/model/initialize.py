"""Initial weights that do not depend on how the model is split.

Every full tensor is drawn from a stream seeded by the run's seed and the tensor's own name; a rank
then keeps its slice. So TP, PP and DP layouts start from the same weights, bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedStateDict,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.fp8_utils import is_float8tensor


def initialize_weights(state: ShardedStateDict, seed: int, std: float, num_layers: int) -> None:
    """Fill the tensors of a model's sharded state dict in place.

    Matrices are normal with `std`; those that write to the residual stream (`linear_proj`,
    `linear_fc2`) have std / sqrt(2 num_layers). Norm weights are one, biases zero.
    """
    for value in nested_values(state):
        is_quantized = is_float8tensor(getattr(value, "data", None))
        if is_quantized:
            kept = value.data
            value = replace(value, data=torch.empty(kept.shape, dtype=kept.dtype))
        shards = value.build() if isinstance(value, ShardedTensorFactory) else value
        for shard in nested_values(shards) if isinstance(shards, dict | list) else [shards]:
            if isinstance(shard, ShardedTensor):
                _initialize_shard(shard, seed, std, num_layers)
        if is_quantized:
            _quantize(kept, value.data)


@torch.no_grad()
def _quantize(parameter: torch.Tensor, drawn: torch.Tensor) -> None:
    """Fill a weight that is kept in FP8; the optimizer's fp32 weight starts from `drawn` itself."""
    parameter.copy_(drawn.to(parameter.device))
    if hasattr(parameter, "get_high_precision_init_val"):  # Transformer Engine's, on the CPU
        parameter.get_high_precision_init_val().copy_(drawn)


def mark_split_weights(state: ShardedStateDict) -> None:
    """Mark the parameters that are split over TP, as Megatron-Core does when it draws weights.

    The gradient norm takes unmarked ones for replicas and counts them on the first TP rank only.
    """
    for value in nested_values(state):
        if isinstance(value, ShardedTensorFactory):
            shards = list(nested_values(value.build()))
        else:
            shards = [value] if isinstance(value, ShardedTensor) else []
        for shard in shards:
            if tuple(shard.local_shape) != tuple(shard.global_shape[shard.prepend_axis_num :]):
                value.data.tensor_model_parallel = True


def _initialize_shard(shard: ShardedTensor, seed: int, std: float, num_layers: int) -> None:
    assert shard.data is not None
    with torch.no_grad():
        if shard.key.endswith("bias"):
            shard.data.zero_()
        elif len(shard.global_shape) - shard.prepend_axis_num == 1:
            shard.data.fill_(1.0)
        else:
            writes_residual = "linear_proj." in shard.key or "linear_fc2." in shard.key
            scale = std / math.sqrt(2 * num_layers) if writes_residual else std
            full = torch.normal(
                0.0, scale, tuple(shard.global_shape), generator=_generator(seed, shard.key)
            )
            shard.data.copy_(full[shard.global_slice()])


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
