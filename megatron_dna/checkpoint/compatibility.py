"""Which options may differ between a checkpoint and the run that continues from it."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_dna.checkpoint.manifest import CheckpointError
from megatron_dna.config import Config

logger = logging.getLogger(__name__)

# Options of the architecture's sections that do not change what the weights mean.
_FREE = {"model.layer_spec", "model.init_method_std"}
# Options of memory that decide what the weights mean; the others say how it is trained.
_MEMORY = {"memory.num_mem_tokens", "memory.update"}

MEMORY_TENSORS = ("embedding.initial_memory",)
"""Tensors that a run with memory has and one without has not."""


def changed_options(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Old and new value of every option that differs, by full key."""
    old, new = _flatten(before), _flatten(after)
    return {key: (old[key], new[key]) for key in new if old.get(key) != new[key]}


def check_compatible(checkpoint: Path, before: Config, after: Config) -> None:
    """Refuse another architecture; log every other change.

    Raises:
        CheckpointError: an option that shapes the model differs; names key and values.
    """
    for key, (old, new) in changed_options(before, after).items():
        if _shapes_model(key) or key in _MEMORY:
            raise CheckpointError(
                f"{key} ({new}) differs from checkpoint {checkpoint} ({old}); set it back, or give "
                "train.output_dir another folder to start a new run"
            )
        logger.info("changed since the checkpoint: %s from %s to %s", key, old, new)


def check_loadable(checkpoint: Path, before: Config, after: Config) -> None:
    """Refuse another architecture as the start of a new run. Memory may be new, or be left out.

    Raises:
        CheckpointError: an option that shapes the model differs; names key and values.
    """
    for key, (old, new) in changed_options(before, after).items():
        is_other_memory = key == "memory.num_mem_tokens" and old > 0 and new > 0
        if _shapes_model(key) or is_other_memory:
            raise CheckpointError(
                f"{key} ({new}) differs from checkpoint.load {checkpoint} ({old}); set it to that, "
                "or load another checkpoint"
            )
        if key in _MEMORY:
            logger.info("not as in the loaded checkpoint: %s is %s, was %s", key, new, old)


def _shapes_model(key: str) -> bool:
    return key.startswith("model.") and key not in _FREE


def check_tokenizer(checkpoint: Path, before: str, after: str) -> None:
    """Refuse ids of another tokenizer.

    Raises:
        CheckpointError: the tokenizers' digests differ.
    """
    if before and before != after:
        raise CheckpointError(
            f"data.tokenizer is not the one of checkpoint {checkpoint} (sha256 {after}, not "
            f"{before}); give that one (or, to start a new run, another train.output_dir)"
        )


def _flatten(config: Config) -> dict[str, Any]:
    sections: dict[str, dict[str, Any]] = asdict(config)
    return {
        f"{section}.{name}": value
        for section, options in sections.items()
        for name, value in options.items()
    }
