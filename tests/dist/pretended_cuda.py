"""A training step on CUDA tensors that are not there: where each one is, and who waits for it.

torch's FakeTensor mode works out devices and shapes without arithmetic, and refuses to mix devices.
The layers are the local ones; the fake process group stands in for NCCL. torch must have been told
that there is a GPU: see `test_devices.py`, which runs

    python -m tests.dist.pretended_cuda RANK WORLD_SIZE SEGMENTS section.key=value ...

Prints, as JSON, the devices of weights and gradients, and the functions that wait for the device in
training, in the update and in evaluation, in order.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from megatron.core.distributed import param_and_grad_buffer
from megatron.core.optimizer import clip_grads
from megatron.core.tensor_parallel import random
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from megatron_dna.config import load_config
from megatron_dna.data.loader import Batch
from megatron_dna.model.encoder import build_model
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import (
    Platform,
    _CpuStandIn,
    _inert_context,
    _InertStream,
    _OnCpu,
)
from megatron_dna.parallel.step import run_step
from megatron_dna.parallel.wrap import wrap_model
from megatron_dna.training.optimizer import build_optimizer, update

DEVICE = torch.device("cuda", 0)
VOCAB = 512
SHAPE = [
    *("model.num_layers=4", "model.hidden_size=64", "model.ffn_hidden_size=128"),
    *("model.num_attention_heads=4", "data.segment_size=32", "train.micro_batch_size=2"),
    *("model.local_attention=8", "parallel.platform=cuda"),
]


class Waits(TorchFunctionMode):
    """Answers whoever asks a tensor for a number, and notes who asks one that is on the device."""

    _ANSWERS: ClassVar[dict[Any, Callable[[Tensor], Any]]] = {
        Tensor.__bool__: lambda tensor: True,
        Tensor.__int__: lambda tensor: 1,
        Tensor.__float__: lambda tensor: 1.0,
        Tensor.item: lambda tensor: 1.0,
    }

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, list[str]] = {}

    def begin(self, name: str) -> None:
        """From here on, what is found belongs to `name`."""
        self._now = self.found.setdefault(name, [])

    def note(self) -> None:
        """Somebody waits for the device."""
        stack = [frame for frame in traceback.extract_stack() if "/megatron" in frame.filename]
        if self._now[-1:] != [stack[-1].name]:  # `tolist` reads number by number
            self._now.append(stack[-1].name)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.type and len(args) == 1:  # fake ones do not say `cuda`
            return _OnCpu._CUDA_TYPES.get(func(*args), func(*args))
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func not in self._ANSWERS:
            return func(*args, **(kwargs or {}))
        if args[0].is_cuda:
            self.note()
        return self._ANSWERS[func](args[0])


def step(
    waits: Waits, rank: int, world_size: int, num_segments: int, overrides: list[str]
) -> dict[str, Any]:
    """Train, update and evaluate once, as `rank`."""
    config = load_config(None, [*SHAPE, f"train.global_batch_size={8 * world_size}", *overrides])
    platform = Platform("cuda", DEVICE, "nccl")
    world = topology.pretended_world(config, platform, rank, world_size)
    with world as place, FakeTensorMode(), waits:
        model = build_model(config, VOCAB, place.groups, "local", DEVICE)
        wrapped = wrap_model(model, config.parallel)
        optimizer = build_optimizer(config, wrapped)
        lengths = torch.ones(VOCAB, dtype=torch.long, device=DEVICE)
        states = torch.zeros(config.memory.num_mem_tokens, 2, config.model.hidden_size)
        count = config.train.global_batch_size // (2 * place.dp_size)
        for name in ("train", "evaluate"):
            waits.begin(name)
            run_step(
                wrapped,
                iter([window(num_segments, 32, config.num_masked_tokens) for _ in range(count)]),
                config,
                place,
                lengths,
                count,
                forward_only=name == "evaluate",
                noise=lambda batch, segment: states,
                count_correct=True,
            )
            if name == "train":
                waits.begin("update")
                update(optimizer, 1.0, math.isfinite)
        tensors = [*wrapped.parameters(), *(buffer.grad_data for buffer in wrapped.buffers)]
        return {"devices": sorted({str(one.device) for one in tensors}), **waits.found}


def window(num_segments: int, length: int, num_masked: int) -> Batch:
    """Two samples as the loader gives them: on the CPU."""
    ids = torch.zeros(num_segments, 2, length, dtype=torch.long)
    masked = torch.zeros(num_segments, 2, num_masked, dtype=torch.long)
    counts = torch.ones(num_segments, 2, dtype=torch.long)
    return Batch(
        ids, ids == 0, masked, masked, masked.float(), counts, counts, samples=torch.arange(2)
    )


def stand_in(waits: Waits) -> None:
    """Answers what torch and Megatron-Core ask of CUDA itself; tensors stay where they are."""
    stream = _InertStream()
    answers: dict[str, Any] = {
        "current_device": lambda: DEVICE,
        "get_device_capability": lambda device=None: (9, 0),
        "synchronize": waits.note,
        "manual_seed": lambda seed: None,
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda *args, **kwargs: None,
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        "Stream": _InertStream,
        "Event": _InertStream,
        "stream": _inert_context,
        "_lazy_init": lambda: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    random._get_cuda_rng_state = torch.cuda.get_rng_state
    random._set_cuda_rng_state = torch.cuda.set_rng_state
    _CpuStandIn._use_torch_optimizers()
    # torch has no fake form of data parallelism's coalesced collectives. A norm that the host reads
    # tensor by tensor is for machines without CUDA's kernels.
    param_and_grad_buffer._coalescing_manager = _no_collectives
    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        setattr(param_and_grad_buffer, name, lambda *args, **kwargs: stream)
    clip_grads.l2_norm_impl = lambda chunk, flag, tensors, *args: (
        torch.ones(1, device=tensors[0][0].device),
        None,
    )
    torch.nn.Module.to = _move  # type: ignore[assignment]


@contextlib.contextmanager
def _no_collectives(*args: Any, **kwargs: Any) -> Iterator[_InertStream]:
    yield _InertStream()


def _move(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """`Module.to`, which cannot move fake tensors."""
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                new = torch.nn.Parameter(old.detach().to(device))
                new.__dict__.update({k: v for k, v in vars(old).items() if k not in vars(new)})
                module._parameters[name] = new
    return model


if __name__ == "__main__":
    all_waits = Waits()
    stand_in(all_waits)
    numbers = map(int, sys.argv[1:4])
    print(json.dumps(step(all_waits, *numbers, overrides=sys.argv[4:])))
