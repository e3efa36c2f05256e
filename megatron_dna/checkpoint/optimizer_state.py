"""Adam's state as whole tensors by name, whichever of Megatron's optimizers keeps it.

What Megatron-Core (0.16 to 0.19) needs besides its own `fully_reshardable` format when torch's
Adam runs: state that exists before it is described, and a `step` of its own for each parameter
(one shared tensor would be incremented once a parameter). The step is therefore kept out of
Megatron's hands here and stored as a number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_dna.parallel.wrap import gather_parameters

MOMENTS = ("exp_avg", "exp_avg_sq")
_PREFIX = "optimizer.state"

Sharded: TypeAlias = Any
"""A ShardedTensor or ShardedTensorFactory of Megatron-Core, which has no types."""


def main_weight_key(key: str) -> str:
    """Where the fp32 main weight of model tensor `key` is stored, if it has one."""
    return f"{_PREFIX}.fp32_param.{key}"


def best_weight_key(key: str, stored: Collection[str]) -> str:
    """Where the most exact copy of model tensor `key` is among the `stored` tensors."""
    main = main_weight_key(key)
    return main if main in stored else key


def get_step(optimizer: MegatronOptimizer) -> int:
    """Updates that Adam has made.

    Transformer Engine's and Apex's count in each group, but not where this rank has nothing of it.
    """
    steps = [0]
    for part in _parts(optimizer):
        for group in part.optimizer.param_groups:
            holders = [part.optimizer.state.get(one, {}) for one in group["params"][:1]]
            steps += [int(holder["step"]) for holder in (group, *holders) if "step" in holder]
    return max(steps)


def set_step(optimizer: MegatronOptimizer, step: int) -> None:
    """Continue Adam's bias correction after `step` updates."""
    for part in _parts(optimizer):
        keeps_own_step = isinstance(part.optimizer, torch.optim.Adam | torch.optim.AdamW)
        for group in part.optimizer.param_groups:
            if not keeps_own_step:
                group["step"] = step
                continue
            for parameter in group["params"]:
                part.optimizer.state[parameter]["step"] = torch.tensor(float(step))


def describe(
    optimizer: MegatronOptimizer, model_tensors: dict[str, Any], is_loading: bool
) -> list[dict[Any, dict[str, Sharded]]]:
    """Megatron's description of the state tensors: for each optimizer, by parameter and name.

    The names are `exp_avg`, `exp_avg_sq` and `param` (the weight that Adam updates).

    Args:
        optimizer: Megatron's optimizer; its state is allocated if it is not yet.
        model_tensors: the model's description, holding the very parameters.
        is_loading: describe tensors to load into instead of the state's values.
    """
    described = []
    for part in _parts(optimizer):
        _allocate(part)
        if isinstance(part, DistributedOptimizer):
            with _without_step(part), _with_padding(part):
                state = part.sharded_param_state_fully_reshardable(
                    model_tensors, is_loading=is_loading, metadata={}
                )
        else:
            state = _describe_whole(part, model_tensors)
        described.append(state)
    return described


def to_save(optimizer: MegatronOptimizer, model_tensors: dict[str, Any]) -> dict[str, Sharded]:
    """The state as it is stored: moments, and main weights where the model's are not fp32."""
    dtypes = _weight_dtypes(model_tensors)
    tensors = {}
    for state in describe(optimizer, model_tensors, is_loading=False):
        for entry in state.values():
            for name, value in entry.items():
                key = value.key.removeprefix(f"{_PREFIX}.{name}.")
                if name == "param":
                    if dtypes[key] == torch.float32:
                        continue
                    value = replace(value, key=main_weight_key(key))
                tensors[value.key] = value
    return tensors


class StateToLoad:
    """The state as tensors to load into, then to be taken over by the optimizer."""

    def __init__(
        self,
        optimizer: MegatronOptimizer,
        model_tensors: dict[str, Any],
        stored: Collection[str],
        absent: Collection[str] = (),
        weights_only: bool = False,
    ) -> None:
        """Describe what to load; the model is loaded already.

        Args:
            optimizer: Megatron's optimizer.
            model_tensors: the model's description, holding the very parameters.
            stored: names of the tensors in the checkpoint.
            absent: model tensors that it lacks; their moments start from zero.
            weights_only: all moments start from zero.
        """
        self._optimizer = optimizer
        self._weights = {value.key: value.data for value in nested_values(model_tensors)}
        self._described = describe(optimizer, model_tensors, is_loading=True)
        self.tensors: dict[str, Sharded] = {}
        self._targets: dict[str, torch.Tensor] = {}
        for index, state in enumerate(self._described):
            for number, entry in state.items():
                for name, value in entry.items():
                    key = value.key.removeprefix(f"{_PREFIX}.{name}.")
                    if key in absent or (weights_only and name != "param"):
                        continue  # as Adam begins
                    if name == "param":
                        if self._weights[key].dtype == torch.float32:
                            continue  # it is the model's own
                        value = replace(value, key=best_weight_key(key, stored))
                    label = f"{index}/{number}/{name}"
                    self.tensors[label] = value
                    if not isinstance(_parts(optimizer)[index], DistributedOptimizer):
                        self._targets[label] = value.data

    @torch.no_grad()
    def take_over(self, loaded: dict[str, torch.Tensor], step: int) -> None:
        """Put what was loaded into `tensors` in its place; Adam continues after `step` updates."""
        for index, part in enumerate(_parts(self._optimizer)):
            if not isinstance(part, DistributedOptimizer):
                continue
            state: dict[Any, dict[str, torch.Tensor]] = {}
            for number, entry in self._described[index].items():
                state[number] = {}
                for name, value in entry.items():
                    key = value.key.removeprefix(f"{_PREFIX}.{name}.")
                    tensor = loaded.get(f"{index}/{number}/{name}")
                    if tensor is None:  # the weight is the model's own, a new moment zero
                        weight = self._weights[key]
                        tensor = weight if name == "param" else torch.zeros_like(weight)
                    state[number][name] = tensor
            with _without_step(part):
                part.load_parameter_state_from_fully_reshardable(state)
        for label, target in self._targets.items():
            if target.data_ptr() != loaded[label].data_ptr():
                target.copy_(loaded[label])
        set_step(self._optimizer, step)


def quantize_again(optimizer: MegatronOptimizer, model: Any) -> None:
    """Make the weights that are kept in FP8 from the fp32 ones, as an update does.

    Read from a checkpoint they have been through BF16, and would differ from an unbroken run's.

    Args:
        optimizer: Megatron's optimizer, with the fp32 weights loaded.
        model: wrapped in Megatron's DDP.
    """
    for part in _parts(optimizer):
        part._copy_main_params_to_model_params()
    gather_parameters(model)


def _parts(optimizer: MegatronOptimizer) -> list[Any]:
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if not part.is_stub_optimizer]


def _weight_dtypes(model_tensors: dict[str, Any]) -> dict[str, torch.dtype]:
    return {value.key: value.data.dtype for value in nested_values(model_tensors)}


def _allocate(part: Any) -> None:
    """Zero moments and step for parameters that Adam has not updated yet."""
    part.init_state_fn(part.optimizer, part.config)
    if isinstance(part.optimizer, torch.optim.Adam | torch.optim.AdamW):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                part.optimizer.state[parameter].setdefault("step", torch.tensor(0.0))


@contextlib.contextmanager
def _without_step(part: Any) -> Iterator[None]:
    """Hide the `step` of torch's Adam: Megatron would treat it as a tensor like a moment."""
    steps = {
        parameter: state.pop("step")
        for parameter, state in part.optimizer.state.items()
        if "step" in state
    }
    try:
        yield
    finally:
        for parameter, step in steps.items():
            part.optimizer.state[parameter]["step"] = step


@contextlib.contextmanager
def _with_padding(part: Any) -> Iterator[None]:
    """Let the optimizer gather its buckets with the padding at their ends.

    Megatron-Core (0.16 to 0.19) leaves the padding between buckets out of what it gathers, and then
    looks parameters up at places that count it: with more than one bucket (under PP the shared
    embedding has its own) all state behind a padded one would be another parameter's.
    """
    buckets = [bucket for buffer in part.buffers for bucket in buffer.buckets]
    sizes = [(buffer, buffer.numel) for buffer in part.buffers]
    sizes += [(bucket, bucket.grad_data.numel()) for bucket in buckets]
    before = [holder.numel_unpadded for holder, _ in sizes]
    for holder, numel in sizes:
        holder.numel_unpadded = numel
    try:
        yield
    finally:
        for (holder, _), numel in zip(sizes, before, strict=True):
            holder.numel_unpadded = numel


def _describe_whole(part: Any, model_tensors: dict[str, Any]) -> dict[int, dict[str, Sharded]]:
    """State of an optimizer that keeps all of it on every data-parallel rank."""
    described = {}
    for number, value in enumerate(nested_values(model_tensors)):
        main = getattr(value.data, "main_param", value.data)
        state = part.optimizer.state.get(main)
        if state is None:
            continue
        tensors = {name: state[name] for name in MOMENTS} | {"param": main.detach()}
        described[number] = {
            name: make_sharded_optimizer_tensor(value, tensor, prefix=f"{_PREFIX}.{name}")
            for name, tensor in tensors.items()
        }
    return described
