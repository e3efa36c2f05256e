"""What tools that use a model folder share: what they say, where they compute, what they need."""

from __future__ import annotations

import argparse
import importlib.util

import torch
from transformers.utils import logging


def quiet_transformers() -> None:
    """No progress bars and reports of transformers; what matters of them is checked here."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_installed(extra: str, *modules: str) -> None:
    """Raises ValueError, which names the extra, if one of the modules is not there."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"{module} is not installed; pip install megatron_dna[{extra}]")


def find_device(name: str | None) -> torch.device:
    """What --device names; without it CUDA where there is one, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0).to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"--device ({name}) is not one of this machine's; try cpu") from error
    return device


def find_device_and_dtype(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """What --device and --precision name; without the latter bf16 on CUDA, else fp32.

    Raises:
        ValueError: see `find_device`.
    """
    device = find_device(args.device)
    precision = args.precision or ("bf16" if device.type == "cuda" else "fp32")
    return device, torch.bfloat16 if precision == "bf16" else torch.float32
