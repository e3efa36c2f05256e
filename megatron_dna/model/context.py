"""Context parallelism: the ranks of a CP group each have a part of every sequence.

Positions are cut into as many equal parts as there are ranks, the r-th for rank r: here every query
sees as many keys, so Megatron-Core's zigzag order, which balances causal attention, would balance
nothing. Norms and matrix products work on a rank's own positions, attention gathers the keys and
values of all (`layers.LocalCoreAttention`), and the head's masked positions are dealt out evenly,
wherever they lie. What the model returns is whole again, the same on every rank of the group.

Each rank's gradients of weights are those of its own share: they only have to be added up.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import tensor_parallel
from torch import Tensor


def own_positions(length: int, group: dist.ProcessGroup) -> slice:
    """Where this rank's part of a sequence of `length` lies."""
    size = length // group.size()
    return slice(group.rank() * size, (group.rank() + 1) * size)


def gather_parts(part: Tensor, group: dist.ProcessGroup, alike_after: bool) -> Tensor:
    """Join the ranks' parts along the first dimension.

    Args:
        part: [n / cp, ...].
        group: the CP group.
        alike_after: whether all ranks go on to compute the same with the result. Each then takes
            back its part of the gradient as it is; else gradients are added up over the ranks.

    Returns:
        [n, ...].
    """
    if group.size() == 1:
        return part
    whole: Tensor = tensor_parallel.gather_from_sequence_parallel_region(
        part, tensor_parallel_output_grad=not alike_after, group=group
    )
    return whole


def own_share(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's share of `values` [micro_batch, n]: [micro_batch, ceil(n / cp)], 0 beyond n."""
    size = _share_size(values.shape[1], group)
    padded = F.pad(values, (0, size * group.size() - values.shape[1]))
    return padded[:, group.rank() * size : (group.rank() + 1) * size]


def deal_states(hidden: Tensor, positions: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's share of the hidden states at `positions`, from whichever rank has them.

    Args:
        hidden: [seq / cp, micro_batch, hidden], this rank's part.
        positions: [micro_batch, n], indices into the whole sequence.
        group: the CP group.

    Returns:
        [ceil(n / cp), micro_batch, hidden]: states of `own_share(positions)`; zeros beyond n.
    """
    if group.size() == 1:
        return _select(hidden, positions)
    size = _share_size(positions.shape[1], group)
    missing = size * group.size() - positions.shape[1]
    local = F.pad(positions - group.rank() * len(hidden), (0, missing), value=-1)
    is_elsewhere = (local < 0) | (local >= len(hidden))
    states = _select(hidden, local.masked_fill(is_elsewhere, 0))
    share: Tensor = tensor_parallel.reduce_scatter_to_sequence_parallel_region(
        states.masked_fill(is_elsewhere.t().unsqueeze(-1), 0), group=group
    )
    return share


def join_shares(share: Tensor, num_positions: int, group: dist.ProcessGroup) -> Tensor:
    """What all ranks made of their shares, [ceil(n / cp), ...]: [n, ...], the same on each."""
    return gather_parts(share, group, alike_after=True)[:num_positions]


def _share_size(num_positions: int, group: dist.ProcessGroup) -> int:
    return -(-num_positions // group.size())


def _select(hidden: Tensor, positions: Tensor) -> Tensor:
    """Of `hidden` [seq, micro_batch, hidden] what is at `positions` [micro_batch, n], n first."""
    micro_batch = hidden.shape[1]
    rows = positions.t() * micro_batch + torch.arange(micro_batch, device=hidden.device)
    # For the backward pass this saves the rows' numbers alone; `gather` would save all of `hidden`.
    return F.embedding(rows, hidden.flatten(0, 1))
