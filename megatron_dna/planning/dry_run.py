"""One rank of a world that is not there: the real code path, on tensors without storage.

torch's fake process group stands in for all other ranks and its FakeTensor mode (tensors on the
meta device that say they are elsewhere) for memory. Everything else is what training runs: process
groups, model, weights, DDP's buffers, optimizer state, a forward and a backward pass. What differs
from a GPU: the layers are the `local` ones, in BF16 or FP32; DP's own collectives are left out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_dna.config import Config, Fp8Config
from megatron_dna.model.encoder import build_model
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.topology import Topology
from megatron_dna.parallel.wrap import wrap_model
from megatron_dna.planning.saved import SavedBytes, storage_bytes, without
from megatron_dna.training.optimizer import build_optimizer
from megatron_dna.validation import validate

# One for the process: the model caches a few small tensors from call to call.
_NO_STORAGE = FakeTensorMode()


@dataclass(frozen=True)
class DryRun:
    """What one rank allocated."""

    rank: int
    world_size: int
    tp_rank: int
    cp_rank: int
    pp_rank: int
    dp_rank: int
    parameters: int
    weights: int
    """Bytes."""
    gradients: int
    """Bytes."""
    optimizer: int
    """Bytes."""
    segment: int
    """Bytes saved for the backward pass of one segment of one micro-batch."""


def dry_run(config: Config, world_size: int, rank: int, vocab_size: int) -> DryRun:
    """Build rank `rank` of `world_size` and take one segment forward and back.

    Call it in a process that does nothing else afterwards.

    Raises:
        ValueError: the options do not fit the world.
    """
    validate(config, world_size, files=False)
    # What only Transformer Engine's layers have.
    parallel = dataclasses.replace(config.parallel, tp_comm_overlap=False)
    config = dataclasses.replace(config, fp8=Fp8Config(), parallel=parallel)
    platform = setup_platform("cpu")
    with topology.pretended_world(config, platform, rank, world_size) as place, _NO_STORAGE:
        model = build_model(config, vocab_size, place.groups, "local", platform.device)
        wrapped = wrap_model(model, config.parallel)
        optimizer = build_optimizer(config, wrapped)
        segment = _segment_bytes(wrapped, config, place)
        return DryRun(
            rank, world_size, place.tp_rank, place.cp_rank, place.pp_rank, place.dp_rank,
            sum(parameter.numel() for parameter in wrapped.parameters()),
            *state_bytes(wrapped, optimizer), segment,
        )  # fmt: skip


def state_bytes(
    model: DistributedDataParallel, optimizer: MegatronOptimizer
) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state that this rank has allocated."""
    weights = list(model.parameters())
    gradients = [buffer.grad_data for buffer in model.buffers]
    state: list[Tensor] = []
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        part.init_state_fn(part.optimizer, part.config)
        for group in part.optimizer.param_groups:
            state += group["params"]  # in fp32 these are the weights
        for moments in part.optimizer.state.values():
            state += [value for value in moments.values() if torch.is_tensor(value)]
    own = without(state, weights)
    return storage_bytes(weights), storage_bytes(gradients), storage_bytes(own)


def _segment_bytes(model: DistributedDataParallel, config: Config, place: Topology) -> int:
    """One segment of one micro-batch forward and back; bytes kept in between."""
    size, k = config.train.micro_batch_size, config.num_masked_tokens
    ids = torch.zeros(size, config.data.segment_size, dtype=torch.long)
    positions = torch.zeros(size, k, dtype=torch.long)
    if not place.is_first_stage:
        dtype = next(model.parameters()).dtype
        shape = (config.residual_length, size, config.model.hidden_size)
        model.module.set_input_tensor(torch.zeros(shape, dtype=dtype, requires_grad=True))
    # torch has no fake form of the coalesced collectives that DP uses.
    if model.ddp_config.overlap_param_gather:
        model.disable_forward_pre_hook(param_sync=False)
    with model.no_sync(), SavedBytes(model.parameters()) as saved:
        output = model(ids, None, positions, positions)
        kept = saved.now
        result = output.hidden if output.losses is None else output.losses
        result.sum().backward()
    if output.new_memory is not None:
        kept += storage_bytes([output.new_memory])  # waits for the next segment's gradient
    return kept
