"""Puts `kernels` where Transformer Engine expects its compiled binding, and a GPU where it looks.

To be called before anything imports `transformer_engine`, on a machine without CUDA.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import torch
from torch.distributed import distributed_c10d as c10d

from tests.transformer_engine import enums, kernels, quantize

HOPPER = types.SimpleNamespace(
    major=9, minor=0, multi_processor_count=132, name="a pretended GPU", total_memory=80 << 30
)


class _Binding(types.ModuleType):
    """The module `transformer_engine_torch`; what it lacks fails by name when it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _absent(name)


def _absent(name: str) -> Callable[..., Any]:
    def absent(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{name} has no stand-in on the CPU")

    return absent


class _Meta:
    """Scales and histories of a module under the delayed recipe."""

    scale: Any = None
    scale_inv: Any = None
    amax_history: Any = None


def _binding() -> types.ModuleType:
    binding = _Binding("transformer_engine_torch")
    parts = {**enums.ALL, "FP8TensorMeta": _Meta}
    for function in (quantize.quantize, quantize.create_empty_quantized_tensor):
        parts[function.__name__] = function
    for name in ("rmsnorm_fwd", "rmsnorm_bwd"):  # taken by `import *`
        parts[name] = _absent(name)
    for name, function in inspect.getmembers(kernels, inspect.isfunction):
        if function.__module__ == kernels.__name__ and not name.startswith("_"):
            parts[name] = function
    for name in ("CommOverlap", "CommOverlapP2P"):  # named in annotations
        parts[name] = type(name, (), {})
    vars(binding).update(parts)
    return binding


def _address_the_cpu() -> None:
    """As `platform._OnCpu` does, but within backward passes too, where no function mode reaches."""
    torch.Tensor.is_cuda = property(lambda tensor: True)
    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor
    for name in ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "cuda" in str(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return make(*args, **kwargs)

    return made


_coalescing = torch.distributed._coalescing_manager


@contextlib.contextmanager
def _coalescing_as_nccl(
    group: Any = None, device: Any = None, async_ops: bool | None = False
) -> Iterator[Any]:
    """What gloo lacks of coalesced collectives.

    Those on a device follow each other, blocking. Of the others gloo would convert all to the type
    of the first: they are sent type by type.
    """
    if device is not None:
        yield MagicMock(name="handle of collectives that are over")
        return
    waiting = c10d._world.pg_coalesce_state
    group = group or c10d._get_default_group()
    waiting[group] = []
    manager = c10d._CoalescingManager()
    yield manager
    collected = waiting.pop(group)
    for dtype in dict.fromkeys(one.tensor.dtype for one in collected):
        with _coalescing(group, None, async_ops) as part:
            waiting[group] += [one for one in collected if one.tensor.dtype == dtype]
        manager.works += part.works


@contextlib.contextmanager
def _tools() -> Iterator[None]:
    """Stand-ins, during the import, for what Transformer Engine imports and we never use."""
    importlib.import_module("torch._dynamo")  # it looks for some of them itself
    names = ["einops", "onnx", "onnxscript"]
    names += ["triton", "triton.language", "triton.language.standard"]
    absent = [name for name in names if importlib.util.find_spec(name.split(".")[0]) is None]
    for name in absent:
        sys.modules[name] = MagicMock(name=name, __path__=[], __spec__=None)
        sys.modules[name].__version__ = "3.5.0"
    yield
    for name in absent:
        del sys.modules[name]


def is_installed() -> bool:
    """Whether this process has Transformer Engine on the CPU."""
    return isinstance(sys.modules.get("transformer_engine_torch"), _Binding)


def install() -> None:
    """Make `import transformer_engine.pytorch` work on this machine, with `kernels` beneath it."""
    if "transformer_engine" in sys.modules:
        raise RuntimeError("transformer_engine is imported already")
    version = tuple(map(int, importlib.metadata.version("transformer_engine").split(".")[:2]))
    kernels.takes_windows_without_a_mask = version >= (2, 17)
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_properties = lambda device=None: HOPPER
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    _address_the_cpu()
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.distributed._coalescing_manager = _coalescing_as_nccl
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda optimizer: None
    torch.version.cuda = torch.version.cuda or "13.0"
    os.environ["NVTE_TORCH_COMPILE"] = "0"  # compiling for the CPU takes minutes
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # the libraries of CUDA are not asked for
    sys.modules["transformer_engine_torch"] = _binding()
    spec = importlib.util.find_spec("transformer_engine")
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["transformer_engine"] = package
    import transformer_engine.common

    transformer_engine.common.load_framework_extension = lambda framework: None
    with _tools():
        spec.loader.exec_module(package)
        from transformer_engine.pytorch import distributed
    distributed._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    distributed._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
