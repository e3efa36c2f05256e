"""Find, verify and load checkpoints at any layout; `saving` writes them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.fp8_utils import is_float8tensor
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from megatron_dna.checkpoint import folders
from megatron_dna.checkpoint.agreement import on_every_rank, on_first_rank
from megatron_dna.checkpoint.manifest import (
    CheckpointError,
    check_digest,
    check_sizes,
    read_manifest,
)
from megatron_dna.checkpoint.metadata import read_shapes
from megatron_dna.checkpoint.optimizer_state import (
    StateToLoad,
    best_weight_key,
    quantize_again,
)
from megatron_dna.checkpoint.reader import CONFIG, REQUIRED, read_train_state
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.checkpoint.tensors import in_high_precision, model_tensors

logger = logging.getLogger(__name__)


def verify_checkpoint(path: str | Path) -> None:
    """Compare every file with the manifest, the ranks sharing the reading. Every rank calls this.

    Raises:
        CheckpointError: a file is missing or differs; the message names it.
    """
    folder = Path(path)
    files = on_first_rank(lambda: check_sizes(folder, required=REQUIRED))
    mine = list(files.items())[dist.get_rank() :: dist.get_world_size()]

    def check() -> None:
        for name, record in mine:
            check_digest(folder, name, record)

    on_every_rank(check)


def find_verified(root: str | Path) -> Path | None:
    """The newest checkpoint under `root` that is whole in every byte. Every rank calls this.

    A damaged one is skipped with a warning that names the file; None if there is none at all.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    candidates = on_first_rank(lambda: folders.candidates(Path(root)))
    for folder in candidates:
        try:
            verify_checkpoint(folder)
        except CheckpointError as error:
            logger.warning("skipped: %s", error)
        else:
            return folder
    if candidates:
        raise CheckpointError(
            f"no checkpoint under {root} is whole; move it away to start from the beginning"
        )
    return None


def load_checkpoint(
    path: str | Path,
    model: torch.nn.Module,
    optimizer: MegatronOptimizer | None = None,
    verify: bool = True,
    may_be_new: Collection[str] = (),
    fresh_optimizer: bool = False,
) -> TrainState:
    """Load a checkpoint into the model and optimizer. Every rank calls this.

    Args:
        path: a checkpoint folder, written at any layout.
        model: this rank's pipeline stage (wrapped in DDP or not).
        optimizer: None loads weights only.
        verify: compare all files with the manifest first.
        may_be_new: tensors of the model that the checkpoint may lack: they stay as they are, with
            moments of zero.
        fresh_optimizer: give the optimizer its main weights only: Adam begins anew.

    Returns:
        The state stored with it.

    Raises:
        CheckpointError: damaged, a tensor is missing or has another shape; the message names it.
    """
    folder = Path(path)
    if verify:
        verify_checkpoint(folder)
    manifest, state, shapes = on_first_rank(
        lambda: (read_manifest(folder), read_train_state(folder), read_shapes(folder))
    )
    absent = {name for name in may_be_new if name not in shapes}
    _load_model(folder, model, shapes, absent)
    if optimizer is None:
        return state
    if not manifest["has_optimizer"]:
        logger.warning("checkpoint %s has weights only: the optimizer starts afresh", folder)
        fresh_optimizer = True
    wanted = StateToLoad(optimizer, model_tensors(model), shapes, absent, fresh_optimizer)
    loaded = _load_tensors(folder, wanted.tensors, shapes)
    wanted.take_over(loaded, 0 if fresh_optimizer else int(manifest["optimizer_step"]))
    if any(is_float8tensor(parameter) for parameter in model.parameters()):
        quantize_again(optimizer, model)
    return state


@torch.no_grad()
def _load_model(
    folder: Path,
    model: torch.nn.Module,
    shapes: dict[str, tuple[int, ...]],
    absent: Collection[str],
) -> None:
    described = model_tensors(model).items()
    tensors = {name: value for name, value in described if value.key not in absent}
    targets = {name: value.data for name, value in tensors.items()}
    tensors = in_high_precision(tensors)
    for name, value in tensors.items():
        if value.data.dtype == torch.float32:
            tensors[name] = replace(value, key=best_weight_key(value.key, shapes))
    loaded = _load_tensors(folder, tensors, shapes)
    for name, target in targets.items():
        if target.data_ptr() != loaded[name].data_ptr():
            target.copy_(loaded[name])


def _load_tensors(
    folder: Path, tensors: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """Fill `tensors` (in place where Megatron can) and return them; their shapes must match."""
    on_every_rank(lambda: _check_shapes(folder, tensors, shapes))
    try:
        loaded: dict[str, torch.Tensor] = dist_checkpointing.load(dict(tensors), str(folder))
    except CheckpointException as error:  # torch's, shared by all ranks; not an Exception
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error
    return loaded


def _check_shapes(
    folder: Path, tensors: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    for value in tensors.values():
        parts = nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else [value]
        for part in parts:
            if part.key not in shapes:
                raise CheckpointError(
                    f"checkpoint {folder} has no tensor {part.key}; it is of another architecture"
                )
            if shapes[part.key] != tuple(part.global_shape):
                raise CheckpointError(
                    f"checkpoint {folder}: {part.key} has shape {list(shapes[part.key])}, "
                    f"the model's is {list(part.global_shape)}; load it with the options in its "
                    f"{CONFIG}"
                )
