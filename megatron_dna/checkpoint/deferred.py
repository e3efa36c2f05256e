"""Tensors on their way to the disk: agreed on by all ranks now, written whenever it suits.

`torch.distributed.checkpoint.save` lets the ranks agree who writes what, writes, and gathers what
was written into an index. Only the writing takes long, and it is the one part without
communication: `DeferredWriter` takes it out, so that it can run beside training.

Megatron-Core's own asynchronous writer forks a process for it, which imports the program again and
asks for CUDA's pinned memory; a thread does the same over a copy in ordinary memory.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

Data: TypeAlias = "torch.Tensor | io.BytesIO"
"""What is written: a tensor, or bytes that torch has made of something else."""


class DeferredWriter(FileSystemWriter):
    """torch's writer, which plans when torch asks it to write, and writes when `write` is called.

    After `torch.distributed.checkpoint.save` with it, every rank calls `write` once and the first
    rank then `write_index`; neither communicates.
    """

    def __init__(self, folder: Path, copy: bool) -> None:
        """For the files of this rank in `folder`.

        Args:
            folder: where to; it exists.
            copy: take the tensors as they are during the call of `save`, so that they may change
                before `write`.
        """
        # All is in host memory by then: nothing to copy ahead. (torch would wait for CUDA's stream,
        # and for that of another rank's device: a new thread begins with the first one.)
        super().__init__(folder, per_thread_copy_ahead=0)
        self._copy = copy
        self._plan: SavePlan | None = None
        self._metadata: Metadata | None = None
        self._data: dict[MetadataIndex, Data] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Called by torch: note what this rank is to write."""
        self._plan = plan
        for item in plan.items:
            data: Any = planner.resolve_data(item)
            if isinstance(data, torch.Tensor):
                data = data.detach().to("cpu", copy=self._copy)
            self._data[item.index] = data
        nothing: Future[list[WriteResult]] = Future()
        nothing.set_result([])
        return nothing

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called by torch on the first rank: note what the index is to hold."""
        self._metadata = metadata

    def write(self) -> list[WriteResult]:
        """Write this rank's tensors and see them onto the disk; forgets them.

        Raises:
            OSError, RuntimeError: the disk is full or fails.
        """
        assert self._plan is not None
        try:
            return super().write_data(self._plan, _Taken(self._data)).value()
        finally:
            self._data = {}

    def write_index(self, results: list[list[WriteResult]]) -> None:
        """Write the index from what `write` returned, by rank.

        Raises:
            OSError: the disk is full or fails.
        """
        assert self._metadata is not None
        super().finish(self._metadata, results)


class _Taken(DefaultSavePlanner):
    """Hands out what was taken."""

    def __init__(self, data: dict[MetadataIndex, Data]) -> None:
        super().__init__()
        self._data = data

    def resolve_data(self, write_item: WriteItem) -> Data:
        """The data of one write."""
        return self._data[write_item.index]
