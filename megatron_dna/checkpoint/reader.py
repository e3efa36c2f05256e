"""Read single tensors of a checkpoint without a process group or a model."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as torch_checkpoint
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_dna.config import Config, load_config


def read_config(checkpoint: Path) -> Config:
    """The options of the run that wrote `checkpoint`.

    Raises:
        ValueError: the folder holds no config.yaml.
    """
    path = checkpoint / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{checkpoint} is not a checkpoint folder: it has no config.yaml")
    return load_config(path)


class TensorReader:
    """Reads whole tensors by key, whatever layout wrote them."""

    def __init__(self, checkpoint: Path) -> None:
        self._reader = torch_checkpoint.FileSystemReader(checkpoint)
        self._checkpoint = checkpoint
        self._metadata = self._reader.read_metadata().state_dict_metadata

    def read(self, key: str) -> torch.Tensor:
        """The full tensor stored under `key`, on the CPU.

        Raises:
            ValueError: there is no such tensor.
        """
        entry = self._metadata.get(key)
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{self._checkpoint} holds no tensor {key}")
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        torch_checkpoint.load({key: tensor}, storage_reader=self._reader, no_dist=True)
        return tensor
