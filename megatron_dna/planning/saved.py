"""Counts the bytes that autograd keeps for the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor


class _Kept:
    """A saved tensor; dies with the node of the graph that saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedBytes:
    """While entered, keeps account of the storages that autograd saves, each counted once."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        """`weights`: tensors whose storages do not count."""
        self.now = 0
        """Bytes kept at this moment."""
        self.peak = 0
        """The most so far."""
        self._ignored = {_address(tensor) for tensor in weights}
        self._users: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept.tensor)

    def _keep(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor.detach())  # an output that held itself would never be freed
        address = _address(tensor)
        if address not in self._ignored:
            size = tensor.untyped_storage().nbytes()
            if not self._users.get(address):
                self.now += size
                self.peak = max(self.peak, self.now)
            self._users[address] = self._users.get(address, 0) + 1
            weakref.finalize(kept, self._release, address, size)
        return kept

    def _release(self, address: int, size: int) -> None:
        self._users[address] -= 1
        if not self._users[address]:
            self.now -= size

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each counted once."""
    return sum({_address(t): t.untyped_storage().nbytes() for t in tensors}.values())


def without(tensors: Iterable[Tensor], others: Iterable[Tensor]) -> list[Tensor]:
    """Those of `tensors` that do not share a storage with one of `others`."""
    known = {_address(tensor) for tensor in others}
    return [tensor for tensor in tensors if _address(tensor) not in known]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
