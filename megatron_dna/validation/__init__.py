"""The rules a configuration must keep, checked before any process group exists."""

from __future__ import annotations

from megatron_dna.config import Config
from megatron_dna.validation.data import validate_data
from megatron_dna.validation.fp8 import validate_fp8
from megatron_dna.validation.layout import data_parallel_size, validate_batch, validate_layout
from megatron_dna.validation.memory import validate_memory, validate_stages_fit
from megatron_dna.validation.model import validate_model
from megatron_dna.validation.training import validate_load, validate_training

__all__ = ["data_parallel_size", "validate"]


def validate(config: Config, world_size: int, files: bool = True) -> None:
    """Check everything that can be checked without a process group or a model.

    Args:
        config: the run's options.
        world_size: number of processes.
        files: whether the files it names must be there (a plan can do without).

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    validate_model(config.model)
    validate_memory(config.memory, config.data.kind)
    validate_data(config.data, files)
    validate_layout(config)
    validate_training(config)
    validate_fp8(config)
    validate_stages_fit(config)
    if files:
        validate_load(config.checkpoint)
    validate_batch(config, data_parallel_size(config, world_size))
