"""Write a checkpoint of weights alone, tensor by tensor, without a process group or a model.

The format is that of `saving.save_checkpoint`, so it loads under any TP x CP x PP x DP layout. Only
one tensor is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import megatron.core
import torch
import torch.distributed.checkpoint as torch_checkpoint
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_dna.checkpoint import folders
from megatron_dna.checkpoint.manifest import list_files, record_file
from megatron_dna.checkpoint.reader import COMMON, CONFIG, TRAIN_STATE
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.config import Config, to_yaml

_BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""Megatron's metadata.json: which of its formats the tensors are in."""


def write_weights(
    root: str | Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    state: TrainState,
    config: Config,
) -> Path:
    """Write `root`/iter_NNNNNNN with the model's tensors in fp32 and no optimizer.

    Args:
        root: the folder of checkpoints.
        shapes: whole shape of every tensor by its key.
        read: makes the tensor of a key when its turn comes.
        state: names the folder by its iteration.
        config: stored beside the tensors.

    Returns:
        The checkpoint's folder.
    """
    temporary = folders.begin(Path(root), state.iteration)
    torch_checkpoint.save(
        {key: torch.empty(shape, device="meta") for key, shape in shapes.items()},
        # In one file torch keeps every tensor until the last is written.
        storage_writer=torch_checkpoint.FileSystemWriter(temporary, single_file_per_rank=False),
        planner=_LazyPlanner(read),
        no_dist=True,
    )
    folders.write_text(temporary / "metadata.json", json.dumps(_BACKEND))
    names = add_plain_files(temporary, state, config)
    return folders.publish(
        temporary,
        state.iteration,
        {name: record_file(temporary / name) for name in names},
        facts(optimizer_step=0, has_optimizer=False),
    )


class _LazyPlanner(DefaultSavePlanner):
    """Describes tensors by their shapes, and makes each one only when it is written."""

    def __init__(self, read: Callable[[str], Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.read = read

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The tensor of one write, fp32 [its described shape]."""
        tensor = self.read(index.fqn).to(torch.float32).contiguous()
        described = self.state_dict[index.fqn].shape
        assert tensor.shape == described, f"{index.fqn}: {tensor.shape} is not {described}"
        return tensor


def add_plain_files(temporary: Path, state: TrainState, config: Config) -> list[str]:
    """Write what is not a tensor, and list all files."""
    folders.write_text(temporary / CONFIG, to_yaml(config))
    folders.write_text(temporary / TRAIN_STATE, json.dumps(state.to_dict(), indent=1) + "\n")
    if not (temporary / COMMON).exists():  # Megatron-Core 0.19 has another place for it
        torch.save({}, temporary / COMMON)
    return list_files(temporary)


def facts(optimizer_step: int, has_optimizer: bool) -> dict[str, Any]:
    """What a checkpoint's manifest says besides its files."""
    return {
        "optimizer_step": optimizer_step,
        "has_optimizer": has_optimizer,
        "torch": torch.__version__,
        "megatron_core": megatron.core.__version__,
    }
