"""Gradients of a split model put together again, by checkpoint key."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_dna.parallel.topology import Topology

Piece = tuple[tuple[slice, ...], tuple[int, ...], torch.Tensor]
"""(where in the full tensor, its shape, values)."""


def gather_main_grads(wrapped: Any, place: Topology) -> None:
    """Undo the sharding of reduced gradients that the distributed optimizer leaves."""
    if not wrapped.ddp_config.use_distributed_optimizer:
        return
    # Every bucket is sharded by itself: the tied embedding has one of its own.
    group = place.groups.dp_cp
    for bucket in (bucket for buffer in wrapped.buffers for bucket in buffer.buckets):
        shard = bucket.grad_data.numel() // group.size()
        own = slice(group.rank() * shard, (group.rank() + 1) * shard)
        reduced = torch.zeros_like(bucket.grad_data)
        reduced[own] = bucket.grad_data[own]
        torch.distributed.all_reduce(reduced, group=group)
        bucket.grad_data.copy_(reduced)


def local_pieces(model: Any, of: str) -> dict[str, list[Piece]]:
    """This rank's pieces of `of` (`main_grad`, `grad` or `data`) of every parameter."""
    trained = (p for p in model.parameters() if p.requires_grad)
    by_storage = {_address(p): getattr(p, of) for p in trained}
    pieces: dict[str, list[Piece]] = {}
    for entry in model.sharded_state_dict().values():
        if isinstance(entry, ShardedTensorFactory):
            parts = entry.build()
        elif isinstance(entry, ShardedTensor):
            parts = [entry]
        else:
            continue
        values = by_storage[_address(entry.data)].detach().clone().chunk(len(parts))
        for part, value in zip(parts, values, strict=True):
            where = tuple(s for s in part.global_slice() if isinstance(s, slice))
            pieces.setdefault(part.key, []).append((where, tuple(part.global_shape), value))
    return pieces


def _address(tensor: Any) -> int:
    """Where the values lie; those of a weight that is kept in FP8 are inside it."""
    inner = getattr(tensor, "_rowwise_data", getattr(tensor, "_data", tensor))
    return int(inner.data_ptr())


def assemble(ranks: list[dict[str, list[Piece]]]) -> dict[str, torch.Tensor]:
    """Full tensors from the pieces of all ranks; what no rank has is NaN."""
    full: dict[str, torch.Tensor] = {}
    for pieces in ranks:
        for key, entries in pieces.items():
            for where, shape, value in entries:
                tensor = full.setdefault(key, torch.full(shape, float("nan"), dtype=value.dtype))
                tensor[where] = value
    return full
