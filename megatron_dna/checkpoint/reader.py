"""Read a checkpoint's options, state and weights without a process group or a model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as torch_checkpoint

from megatron_dna.checkpoint.manifest import CheckpointError, check_digest, check_sizes
from megatron_dna.checkpoint.metadata import INDEX, read_shapes
from megatron_dna.checkpoint.optimizer_state import best_weight_key
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.config import Config, load_config

CONFIG = "config.yaml"
TRAIN_STATE = "train_state.json"
COMMON = "common.pt"
"""Megatron's file for what is not a tensor; empty here. Read with `weights_only`, unlike what
Megatron-Core 0.19 would take in its place, so it must be there."""

REQUIRED = (CONFIG, TRAIN_STATE, COMMON, INDEX)


def read_config(checkpoint: str | Path) -> Config:
    """The options of the run that wrote `checkpoint`.

    Raises:
        CheckpointError: the folder holds no config.yaml.
    """
    path = Path(checkpoint) / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} is not a checkpoint folder: it has no {CONFIG}")
    return load_config(path)


def read_train_state(checkpoint: str | Path) -> TrainState:
    """The state stored in `checkpoint`.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return TrainState.from_dict(json.loads((Path(checkpoint) / TRAIN_STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint}: {TRAIN_STATE} is damaged ({error})"
        ) from error


class WeightReader:
    """The model's whole tensors by name, read one at a time: fp32, in their most exact copy.

    Attributes:
        shapes: whole shape of every tensor of the model.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        """Verify the checkpoint and read its index.

        Raises:
            CheckpointError: the checkpoint is incomplete, damaged or unsafe.
        """
        self._folder = Path(checkpoint)
        for name, record in check_sizes(self._folder, required=REQUIRED).items():
            check_digest(self._folder, name, record)
        self._stored = read_shapes(self._folder)
        self.shapes = {
            name: shape for name, shape in self._stored.items() if not name.startswith("optimizer.")
        }

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        tensor = torch.empty(self.shapes[name])
        torch_checkpoint.load(
            {best_weight_key(name, self._stored): tensor},
            storage_reader=torch_checkpoint.FileSystemReader(self._folder),
            no_dist=True,
        )
        return tensor


def read_weights(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """All of them at once.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged or unsafe.
    """
    reader = WeightReader(checkpoint)
    return {name: reader.read(name) for name in reader.shapes}
