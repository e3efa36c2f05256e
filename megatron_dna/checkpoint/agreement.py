"""What one rank does for all, and errors that all ranks must share.

A rank that raises alone leaves the others waiting in their next collective until it times out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Result = TypeVar("Result")


def on_first_rank(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 only; every rank returns its result or raises its error."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        outcome = _attempt(action)
    dist.broadcast_object_list(outcome, src=0)
    result, error = outcome
    if error is not None:
        raise error
    return result


def on_every_rank(action: Callable[[], Result]) -> list[Result]:
    """Run `action` on all ranks; every rank returns all results, or raises the first error."""
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, _attempt(action))
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]


def _attempt(action: Callable[[], Any]) -> list[Any]:
    """[result, None] or [None, error], whatever the error: the other ranks must hear of it."""
    try:
        return [action(), None]
    except Exception as error:  # noqa: BLE001
        return [None, error]
