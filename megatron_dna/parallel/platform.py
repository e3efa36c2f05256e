"""The one place that knows about CUDA, NCCL, gloo, and what Megatron-Core needs without CUDA.

Megatron-Core addresses "the current CUDA device" throughout, yet its arithmetic is plain torch and
its collectives plain `torch.distributed`. On a CPU machine `setup_platform` therefore redirects
those addresses to the CPU. Nothing else in the package tests for a device.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

from megatron_dna.config import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Platform:
    """What a run computes on."""

    name: str
    """`cpu` or `cuda`."""
    device: torch.device
    """Where this process's tensors live."""
    backend: str
    """torch.distributed backend: `gloo` or `nccl`."""

    @property
    def is_cuda(self) -> bool:
        """Whether this is a CUDA machine."""
        return self.name == "cuda"

    @property
    def description(self) -> str:
        """Device name for the log, such as `NVIDIA H100` or `CPU, 2 threads`."""
        if self.is_cuda:
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads a process"

    def synchronize(self) -> None:
        """Wait for the device to finish, so that a wall clock can be read."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def wait_for_compute(self) -> None:
        """Wait for this rank's own kernels, not for the communication beside them."""
        if self.is_cuda:
            torch.cuda.current_stream(self.device).synchronize()


def setup_platform(requested: str) -> Platform:
    """Choose the platform (`cpu`, `cuda` or `auto`) and make Megatron-Core run on it.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available() and not _CpuStandIn.installed
    if requested == "cuda" and not has_cuda:
        raise ConfigError(
            "parallel.platform (cuda) needs a CUDA device and none is visible; use cpu"
        )
    if requested == "cuda" or (requested == "auto" and has_cuda):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return Platform("cuda", device, "nccl")
    _CpuStandIn.install()
    return Platform("cpu", torch.device("cpu"), "gloo")


@dataclass(frozen=True)
class Accelerator:
    """What this process's GPU is, and the versions that decide what it can run; zeros: absent."""

    capability: tuple[int, int] = (0, 0)
    """Compute capability: (9, 0) is Hopper, (10, 0) and above Blackwell."""
    cuda: tuple[int, ...] = (0, 0)
    """Version that torch was built with."""


def find_accelerator(platform: Platform) -> Accelerator:
    """What is there; nothing on a CPU platform."""
    if not platform.is_cuda:
        return Accelerator()
    return Accelerator(
        capability=torch.cuda.get_device_capability(platform.device),
        cuda=_numbers(torch.version.cuda or "0.0"),
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor version."""
    return tuple(int(part) for part in version.split(".")[:2])


def accelerator_libraries() -> dict[str, str]:
    """Optional libraries that change what runs, by name, as found: for the start-up log.

    The `apex` of PyPI is another package than NVIDIA's; only one with `apex.optimizers` counts.
    """
    found = {}
    if importlib.util.find_spec("transformer_engine") is not None:
        found["Transformer Engine"] = "found"
    else:
        found["Transformer Engine"] = "absent"
    found["Apex"] = "absent"
    if importlib.util.find_spec("apex") is not None:
        has_optimizers = importlib.util.find_spec("apex.optimizers") is not None
        found["Apex"] = "found" if has_optimizers else "absent (the apex here is not NVIDIA's)"
    return found


class _OnCpu(TorchFunctionMode):
    """Answers calls that address CUDA on the CPU."""

    # Megatron-Core's distributed optimizer compares Tensor.type() with these names.
    _CUDA_TYPES: ClassVar[dict[str, str]] = {
        "torch.FloatTensor": "torch.cuda.FloatTensor",
        "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
        "torch.HalfTensor": "torch.cuda.HalfTensor",
    }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            name = func(*args)
            return self._CUDA_TYPES.get(name, name)
        if kwargs:
            device = kwargs.get("device")
            if device is not None and str(device).startswith("cuda"):
                kwargs = kwargs | {"device": "cpu"}
            return func(*args, **kwargs)
        return func(*args)


class _InertStream:
    """Stands in for torch.cuda.Stream and Event: on the CPU everything is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.cuda_stream = 0

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        return None

    synchronize = wait = wait_stream = wait_event = record = record_event = _nothing

    def query(self) -> bool:
        """Whether the stream is idle: always."""
        return True


@contextlib.contextmanager
def _inert_context(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def _scale(
    chunk_size: int, noop_flag: torch.Tensor, tensors: list[list[torch.Tensor]], factor: float
) -> None:
    """The second list becomes the first times `factor`; Megatron-Core's own makes copies first."""
    for source, target in zip(*tensors, strict=True):
        torch.mul(source, factor, out=target)


class _CpuStandIn:
    """Redirects the CUDA calls of Megatron-Core (0.16 to 0.19) for the life of the process."""

    installed = False

    @classmethod
    def install(cls) -> None:
        """Install once; further calls do nothing."""
        if cls.installed:
            return
        cls.installed = True
        cpu = torch.device("cpu")
        stream = _InertStream()
        replacements: dict[str, Any] = {
            "current_device": lambda: cpu,
            "set_device": lambda device: None,
            "synchronize": lambda device=None: None,
            "empty_cache": lambda: None,
            "manual_seed": torch.manual_seed,
            "get_rng_state": lambda device=None: torch.get_rng_state(),
            "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
            "current_stream": lambda device=None: stream,
            "default_stream": lambda device=None: stream,
            "Stream": _InertStream,
            "Event": _InertStream,
            "stream": _inert_context,
        }
        for name, replacement in replacements.items():
            setattr(torch.cuda, name, replacement)

        from megatron.core.tensor_parallel import random as parallel_random

        def get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
            return torch.get_rng_state()

        def set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            torch.set_rng_state(state)

        parallel_random._get_cuda_rng_state = get_rng_state
        parallel_random._set_cuda_rng_state = set_rng_state
        cls._use_torch_optimizers()
        _OnCpu().__enter__()  # type: ignore[no-untyped-call]

    @staticmethod
    def _use_torch_optimizers() -> None:
        """Where Transformer Engine or Apex is installed, Megatron-Core takes their CUDA kernels."""
        from megatron.core import optimizer
        from megatron.core.optimizer import clip_grads, distrib_optimizer
        from megatron.core.optimizer import optimizer as mixed_precision
        from megatron.core.utils import (
            local_multi_tensor_applier,
            local_multi_tensor_l2_norm,
        )

        optimizer.SGD = torch.optim.SGD
        for module in (optimizer, distrib_optimizer):
            module.Adam = torch.optim.AdamW
            module.USING_PYTORCH_OPTIMIZER = True
        clip_grads.l2_norm_impl = local_multi_tensor_l2_norm
        clip_grads.multi_tensor_scale_tensor_impl = None  # of 0.19
        for module in (clip_grads, mixed_precision):
            module.multi_tensor_applier = local_multi_tensor_applier
            module.multi_tensor_scale_impl = _scale
