"""What the options ask of the GPU and its libraries: checked at the start, before training."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import torch

from megatron_dna.config import Config, ConfigError
from megatron_dna.parallel.platform import Accelerator

_ATTENTION_SWITCHES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
"""Transformer Engine's environment variables; Megatron-Core wants all of them on."""


def check_accelerator(
    config: Config, layer_spec: str, found: Accelerator, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse options that this machine cannot run.

    Args:
        config: the run's options.
        layer_spec: `local` or `transformer_engine`, as chosen.
        found: the GPU and the libraries of this process.
        environment: its environment variables.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    if layer_spec != "transformer_engine":
        needs = []
        if config.fp8.is_on:
            needs.append(("fp8.recipe", config.fp8.recipe, "none"))
        if config.parallel.tp_comm_overlap:
            needs.append(("parallel.tp_comm_overlap", "true", "false"))
        for key, value, off in needs:
            raise ConfigError(
                f"{key} ({value}) needs CUDA and Transformer Engine, and the layers here are "
                f"{layer_spec}; install it (docs/install.md), or set {key} to {off}"
            )
        return
    if config.fp8.is_on:
        _check_fp8(config.fp8.recipe, found)
    _check_attention(environment)


def _check_fp8(recipe: str, found: Accelerator) -> None:
    """Source: `check_fp8_support` and its like in Transformer Engine 2.12."""
    have = ".".join(map(str, found.capability))
    if found.capability < (8, 9):
        raise ConfigError(
            f"fp8.recipe ({recipe}) needs a GPU of compute capability 8.9 (Ada) or above, and this "
            f"one's is {have}; set fp8.recipe to none"
        )
    if recipe == "blockwise" and (found.capability < (9, 0) or found.cuda < (12, 9)):
        raise ConfigError(
            f"fp8.recipe ({recipe}) needs compute capability 9.0 (Hopper) and CUDA 12.9 or above, "
            f"here are {have} and {'.'.join(map(str, found.cuda))}; set fp8.recipe to tensorwise"
        )


def _check_attention(environment: Mapping[str, str]) -> None:
    for name in _ATTENTION_SWITCHES:
        if environment.get(name, "1") != "1":
            raise ConfigError(
                f"{name} ({environment[name]}) must not be off: Megatron-Core chooses among all "
                f"kernels; unset {name}"
            )


def start_tp_overlap(config: Config) -> None:
    """Set up Transformer Engine's user buffers, over which TP's collectives hide behind products.

    To be called on every process, after the process groups exist and before layers are made. Does
    nothing without `parallel.tp_comm_overlap`.
    """
    if not config.parallel.tp_comm_overlap:
        return
    from transformer_engine.pytorch.module import base

    modes = base.UserBufferQuantizationMode
    kinds = [modes.FP8 if config.fp8.is_on else modes.NONE]
    if config.fp8.first_last_layers_bf16:
        kinds.append(modes.NONE)
    base.initialize_ub(
        shape=[config.context_length * config.train.micro_batch_size, config.model.hidden_size],
        tp_size=config.parallel.tensor_model_parallel_size,
        quantization_modes=kinds,
        dtype=torch.bfloat16,
        bootstrap_backend="nccl",
    )


def stop_tp_overlap() -> None:
    """Free the user buffers, where there are any."""
    base = sys.modules.get("transformer_engine.pytorch.module.base")
    if base is not None:
        base.destroy_ub()
