"""Which part of the work this process has; the only module that touches Megatron's groups."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_dna.config import Config
from megatron_dna.parallel.platform import Platform


@dataclass(frozen=True)
class Ring:
    """The stages of a pipeline as a ring, with a group of its own for memory.

    Hidden states and memory between the same two ranks are in different groups, so that neither
    waits for the other.
    """

    rank: int
    """This stage."""
    size: int
    """Stages."""
    hidden_group: dist.ProcessGroup
    memory_group: dist.ProcessGroup


@dataclass(frozen=True)
class Topology:
    """This process's place in the TP x CP x PP x DP grid, and the groups it belongs to."""

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    cp_rank: int
    cp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int
    groups: ProcessGroupCollection
    """Megatron's process groups."""
    ring: Ring
    """The pipeline as memory travels it."""

    @property
    def is_first_stage(self) -> bool:
        """Whether this process holds the embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this process holds the head and computes the loss."""
        return self.pp_rank == self.pp_size - 1

    @property
    def is_log_rank(self) -> bool:
        """Whether this process writes logs and metrics."""
        return self.rank == 0

    @property
    def counts_loss(self) -> bool:
        """Whether this process's loss is summed: one of the TP and CP ranks of the last stage."""
        return self.is_last_stage and self.tp_rank == 0 and self.cp_rank == 0


def initialize(config: Config, platform: Platform) -> Topology:
    """Join the world that torchrun describes (alone without torchrun) and divide it.

    A process group that exists already is used as it is.
    """
    # The watchdog of training comes first: a rank that waits for a hung one must not end it.
    minutes = config.parallel.timeout_minutes + 10
    timeout = datetime.timedelta(minutes=minutes)
    if not dist.is_initialized():
        if "RANK" in os.environ:
            dist.init_process_group(platform.backend, timeout=timeout)
        else:
            dist.init_process_group(
                platform.backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
            )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.parallel.pipeline_model_parallel_size,
        context_parallel_size=config.parallel.context_parallel_size,
        distributed_timeout_minutes=max(1, round(minutes)),
    )
    # Initial weights are drawn by name, not from these streams; they serve Megatron's modules.
    tensor_parallel.model_parallel_cuda_manual_seed(config.train.seed)
    return Topology(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=parallel_state.get_tensor_model_parallel_world_size(),
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=parallel_state.get_context_parallel_world_size(),
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=parallel_state.get_pipeline_model_parallel_world_size(),
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        groups=ProcessGroupCollection.use_mpu_process_groups(),
        ring=_ring(timeout),
    )


@contextlib.contextmanager
def pretended_world(
    config: Config, platform: Platform, rank: int, world_size: int
) -> Iterator[Topology]:
    """Be `rank` of a world in which no other rank exists: collectives return at once.

    For dry runs: what collectives leave in tensors means nothing, and every rank says what this one
    says.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    create_group, gather = parallel_state.create_group, dist.all_gather_object

    def create_fake_group(*args: Any, **kwargs: Any) -> dist.ProcessGroup:
        return create_group(*args, **(kwargs | {"backend": None}))  # Megatron's gloo groups too

    def echo(object_list: Any, obj: Any, group: Any = None) -> Any:
        object_list[:] = [obj] * len(object_list)  # as tensors they would hold nothing

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    parallel_state.create_group, dist.all_gather_object = create_fake_group, echo
    try:
        place = initialize(config, platform)
        # Megatron's streams of random numbers check each other's state; these are inert.
        tensor_parallel.random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
        yield place
    finally:
        tensor_parallel.random.initialize_rng_tracker(force_reset=True)
        parallel_state.create_group, dist.all_gather_object = create_group, gather
        shutdown()


def _ring(timeout: datetime.timedelta) -> Ring:
    """Every rank makes every pipeline's memory group, as torch.distributed wants."""
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    own = dist.get_process_group_ranks(pipeline)
    every: list[list[int]] = [[]] * dist.get_world_size()
    dist.all_gather_object(every, own)
    memory_group = pipeline
    for ranks in sorted({tuple(ranks) for ranks in every}):
        group = dist.new_group(list(ranks), timeout)
        if list(ranks) == own:
            memory_group = group
    return Ring(pipeline.rank(), pipeline.size(), pipeline, memory_group)


def sum_over_world(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all processes, in place and on every process."""
    dist.all_reduce(values)
    return values


def max_over_world(values: torch.Tensor) -> torch.Tensor:
    """The largest of each of `values` over all processes, in place and on every process."""
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def shutdown() -> None:
    """Leave the world. Safe to call twice."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
