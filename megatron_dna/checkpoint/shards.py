"""What the distributed optimizer keeps on this rank, as boxes of whole tensors.

Megatron's distributed optimizer cuts a stage's weights, laid end to end, into one flat range a
data-parallel rank. A flat range of a row-major tensor is at most 2 d - 1 boxes (d its dimensions):
the end of a row, whole rows, the start of a row. So each rank saves and loads what it has, without
any other rank.

Megatron-Core's own format for whole tensors (`fully_reshardable`, 0.16 to 0.19) gathers the whole
state of the stage on every data-parallel rank, or on the first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes, an entry a dimension."""


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Cut elements `start` to `stop` of a row-major tensor into boxes, in their order."""
    if start >= stop:
        return
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows
    if start % row:
        before = first - 1
        yield from _in_row(shape, before, start % row, min(row, stop - before * row))
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if first <= last:
        yield from _in_row(shape, last, 0, stop % row)


def _in_row(shape: tuple[int, ...], row: int, start: int, stop: int) -> Iterator[Box]:
    for offsets, sizes in boxes(shape[1:], start, stop):
        yield (row, *offsets), (1, *sizes)


def describe_shards(
    part: DistributedOptimizer,
    model_tensors: dict[str, Any],
    names: Collection[str],
    prefix: str,
) -> Iterator[tuple[str, ShardedTensor]]:
    """This rank's state as Megatron's description of pieces of whole tensors, without a copy.

    Args:
        part: its state is allocated.
        model_tensors: the model's description, holding the very parameters.
        names: of the state tensors; `param` is the weight that Adam updates.
        prefix: of the keys; name and the weight's key follow.

    Yields:
        The name, and a piece.
    """
    described = {id(value.data): value for value in nested_values(model_tensors)}
    rank = part.data_parallel_group.rank()
    for ranges in part.gbuf_ranges:
        for buckets in ranges.values():
            for bucket in buckets:
                for parameter, places in bucket["param_map"].items():
                    value = described[id(parameter)]
                    # Data-parallel ranks hold other pieces, not replicas.
                    assert value.replica_id[-1] == rank, value
                    owned = replace(value, replica_id=(*value.replica_id[:-1], 0))
                    flat = places["param"]
                    tensors = part._get_main_param_and_optimizer_states(parameter)
                    for name in names:
                        for piece in _pieces(owned, tensors[name], flat.start, flat.end):
                            yield name, replace(piece, key=f"{prefix}.{name}.{value.key}")


def _pieces(value: Any, owned: torch.Tensor, start: int, stop: int) -> Iterator[ShardedTensor]:
    """`owned`, elements `start` to `stop` of the local tensor that `value` describes, in boxes."""
    for part in _local_tensors(value):
        assert part.data is not None
        assert part.data.is_contiguous(), value
        begin = part.data.storage_offset()
        end = begin + part.data.numel()
        place = max(start, begin) - start
        shape = tuple(part.local_shape)
        for offsets, sizes in boxes(shape, max(start, begin) - begin, min(stop, end) - begin):
            numel = math.prod(sizes)
            yield replace(
                part,
                data=owned[place : place + numel].detach().view(sizes),
                dtype=owned.dtype,
                local_shape=sizes,
                global_offset=tuple(
                    whole + box for whole, box in zip(part.global_offset, offsets, strict=True)
                ),
                axis_fragmentations=None,  # not a regular grid
                allow_shape_mismatch=False,
            )
            place += numel


def _local_tensors(value: Any) -> list[ShardedTensor]:
    """What is stored of a local tensor: all of it, or (gate and up of an MLP) parts. No data."""
    data = torch.empty(value.data.shape, device="meta")
    if isinstance(value, ShardedTensorFactory):
        return list(nested_values(replace(value, data=data).build()))
    return [replace(value, data=data, dtype=data.dtype)]
