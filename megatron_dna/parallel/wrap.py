"""Data parallelism around a pipeline stage: Megatron-Core's DDP and gradient finalisation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.fp8_utils import is_float8tensor, post_all_gather_processing
from megatron.core.transformer.module import MegatronModule

from megatron_dna.config import ParallelConfig


def wrap_model(model: MegatronModule, parallel: ParallelConfig) -> DistributedDataParallel:
    """`model` with gradients summed over data-parallel ranks, in fp32."""
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        fp8_param_gather=model.config.fp8_param,
    )
    wrapped = DistributedDataParallel(model.config, ddp_config, model)
    model.config.finalize_model_grads_func = finalize_model_grads
    model.config.no_sync_func = wrapped.no_sync if parallel.overlap_grad_reduce else None
    return wrapped


@contextlib.contextmanager
def whole_parameters(model: DistributedDataParallel) -> Iterator[None]:
    """Use the parameters outside of a training step: to evaluate or save them.

    Under `parallel.overlap_param_gather` an update reaches the other ranks' copies only in the
    next forward pass; here it is gathered first.
    """
    overlapped = model.ddp_config.overlap_param_gather
    if overlapped:
        model.disable_forward_pre_hook(param_sync=False)
        gather_parameters(model)
    try:
        yield
    finally:
        if overlapped:
            model.enable_forward_pre_hook()


def gather_parameters(model: DistributedDataParallel) -> None:
    """Gather the updated parameters over data-parallel ranks, now.

    Weights that are kept in FP8 have a second, transposed copy for the backward pass. Megatron-Core
    0.16 makes it anew where it waits for a gather that overlaps, but not after one that is forced.
    """
    model.start_param_sync(force_sync=True)
    quantized = [parameter for parameter in model.parameters() if is_float8tensor(parameter)]
    if quantized:
        post_all_gather_processing(quantized)
