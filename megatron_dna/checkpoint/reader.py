"""Read a checkpoint's options and weights without a process group or a model."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as torch_checkpoint

from megatron_dna.checkpoint import folders
from megatron_dna.checkpoint.folders import CheckpointError
from megatron_dna.checkpoint.metadata import read_shapes
from megatron_dna.checkpoint.optimizer_state import best_weight_key
from megatron_dna.config import Config, load_config

CONFIG = "config.yaml"


def read_config(checkpoint: str | Path) -> Config:
    """The options of the run that wrote `checkpoint`.

    Raises:
        CheckpointError: the folder holds no config.yaml.
    """
    path = Path(checkpoint) / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} is not a checkpoint folder: it has no {CONFIG}")
    return load_config(path)


class TensorReader:
    """Reads whole tensors by key, whatever layout wrote them."""

    def __init__(self, checkpoint: str | Path) -> None:
        """Check every file of the checkpoint, then open it.

        Raises:
            CheckpointError: incomplete, damaged or unsafe.
        """
        self._checkpoint = Path(checkpoint)
        for name, record in folders.check_sizes(self._checkpoint).items():
            folders.check_digest(self._checkpoint, name, record)
        self._shapes = read_shapes(self._checkpoint)

    def read(self, key: str) -> torch.Tensor:
        """The full tensor stored under `key`, on the CPU in fp32.

        Of a model tensor that has an fp32 main weight (a bf16 run's), that one.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if key not in self._shapes:
            raise CheckpointError(f"{self._checkpoint} holds no tensor {key}")
        source = best_weight_key(key, self._shapes)
        tensor = torch.empty(self._shapes[source])
        reader = torch_checkpoint.FileSystemReader(self._checkpoint)
        torch_checkpoint.load({source: tensor}, storage_reader=reader, no_dist=True)
        return tensor
