"""Read a checkpoint's options, state and weights without a process group or a model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as torch_checkpoint

from megatron_dna.checkpoint import folders
from megatron_dna.checkpoint.folders import CheckpointError
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


def read_weights(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """The model's whole tensors by name, fp32 on the CPU, in their most exact copy.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged or unsafe.
    """
    folder = Path(checkpoint)
    for name, record in folders.check_sizes(folder, required=REQUIRED).items():
        folders.check_digest(folder, name, record)
    shapes = read_shapes(folder)
    names = [name for name in shapes if not name.startswith("optimizer.")]
    sources = {name: best_weight_key(name, shapes) for name in names}
    tensors = {source: torch.empty(shapes[source]) for source in sources.values()}
    reader = torch_checkpoint.FileSystemReader(folder)
    torch_checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return {name: tensors[source] for name, source in sources.items()}
