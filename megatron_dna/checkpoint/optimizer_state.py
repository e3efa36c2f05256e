"""Adam's state as whole tensors by name, whichever of Megatron's optimizers keeps it.

torch's Adam keeps a `step` in the state of each parameter: it is kept out of Megatron's hands here
and stored as one number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_dna.checkpoint.shards import describe_shards
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
    optimizer: MegatronOptimizer, model_tensors: dict[str, Any]
) -> Iterator[tuple[str, str, Sharded]]:
    """Megatron's description of the state tensors, which holds the very tensors.

    Args:
        optimizer: Megatron's optimizer; its state is allocated if it is not yet.
        model_tensors: the model's description, holding the very parameters.

    Yields:
        `exp_avg`, `exp_avg_sq` or `param` (the weight that Adam updates), the key of the model's
        tensor, and the description; the distributed optimizer has several for one tensor.
    """
    for part in _parts(optimizer):
        _allocate(part)
        if isinstance(part, DistributedOptimizer):
            described = describe_shards(part, model_tensors, ("param", *MOMENTS), _PREFIX)
        else:
            described = _describe_whole(part, model_tensors)
        for name, value in described:
            yield name, value.key.removeprefix(f"{_PREFIX}.{name}."), value


def to_save(optimizer: MegatronOptimizer, model_tensors: dict[str, Any]) -> list[Sharded]:
    """The state as it is stored: moments, and main weights where the model's are not fp32."""
    dtypes = _weight_dtypes(model_tensors)
    tensors = []
    for name, key, value in describe(optimizer, model_tensors):
        if name == "param":
            if dtypes[key] == torch.float32:
                continue
            value = replace(value, key=main_weight_key(key))
        tensors.append(value)
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
        self.tensors: dict[str, Sharded] = {}
        self._targets: dict[str, torch.Tensor] = {}
        self._new_moments: list[torch.Tensor] = []
        dtypes = _weight_dtypes(model_tensors)
        for number, (name, key, value) in enumerate(describe(optimizer, model_tensors)):
            is_new = key in absent or (weights_only and name != "param")
            if name == "param":
                if is_new or dtypes[key] == torch.float32:
                    continue  # it stays as it is; it is the model's own
                value = replace(value, key=best_weight_key(key, stored))
            elif is_new:
                self._new_moments.append(value.data)
                continue
            self.tensors[str(number)] = value
            self._targets[str(number)] = value.data

    @torch.no_grad()
    def take_over(self, loaded: dict[str, torch.Tensor], step: int) -> None:
        """Put what was loaded into `tensors` in its place; Adam continues after `step` updates."""
        for moment in self._new_moments:
            moment.zero_()
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


def _describe_whole(part: Any, model_tensors: dict[str, Any]) -> Iterator[tuple[str, Sharded]]:
    """State of an optimizer that keeps all of it on every data-parallel rank."""
    for value in nested_values(model_tensors):
        main = getattr(value.data, "main_param", value.data)
        state = part.optimizer.state.get(main)
        if state is None:
            continue
        tensors = {"param": main.detach()} | {name: state[name] for name in MOMENTS}
        for name, tensor in tensors.items():
            yield name, make_sharded_optimizer_tensor(value, tensor, prefix=f"{_PREFIX}.{name}")
