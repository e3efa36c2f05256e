"""AdamW and its learning-rate schedule, both Megatron-Core's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_dna.config import Config, SchedulerConfig

logger = logging.getLogger(__name__)


def build_optimizer(config: Config, model: DistributedDataParallel) -> MegatronOptimizer:
    """AdamW with decoupled weight decay (none on norms and biases) and global-norm clipping.

    In bf16 it keeps fp32 main weights; under `parallel.use_distributed_optimizer` every
    data-parallel rank keeps its share of them and of the moments.
    """
    options = config.optimizer
    bf16 = config.train.precision == "bf16"
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=options.lr,
            min_lr=config.scheduler.min_lr,
            weight_decay=options.weight_decay,
            decoupled_weight_decay=True,
            adam_beta1=options.adam_beta1,
            adam_beta2=options.adam_beta2,
            adam_eps=options.adam_eps,
            clip_grad=options.clip_grad,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            use_distributed_optimizer=config.parallel.use_distributed_optimizer,
            overlap_param_gather=config.parallel.overlap_param_gather,
            # Decides how weights that are kept in FP8 are updated.
            fp8_recipe=config.fp8.recipe if config.fp8.is_on else None,
        ),
        [model],
    )
    logger.info("optimizer: %s", describe_optimizer(optimizer))
    return optimizer


@torch.no_grad()
def update(
    optimizer: MegatronOptimizer, clip_grad: float, accept: Callable[[float], bool]
) -> float:
    """Clip the gradients and take the optimizer's step, if `accept` agrees to their norm.

    Megatron-Core's own `step` takes it whatever the norm is: NaN would be in every weight.

    Args:
        optimizer: Megatron's optimizer, with the gradients in place.
        clip_grad: largest norm; 0 never clips.
        accept: whether a norm is fit for use; the same on every rank.

    Returns:
        The norm of all gradients before clipping.
    """
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    if not accept(norm):
        return norm
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        parameters = [] if part.is_stub_optimizer else part.get_parameters()
        if clip_grad > 0 and parameters:
            clip_grad_by_total_norm_fp32(parameters, max_norm=clip_grad, total_norm=norm)
    optimizer.step_with_ready_grads()
    return norm


def describe_optimizer(optimizer: MegatronOptimizer) -> str:
    """Which Adam runs and whose state it keeps, for the log."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    inner = type(parts[0].optimizer)
    source = {"transformer_engine": "Transformer Engine", "apex": "Apex", "torch": "torch"}
    origin = inner.__module__.split(".")[0]
    return f"{inner.__name__} of {source.get(origin, origin)} in {type(parts[0]).__name__}"


def build_scheduler(config: Config, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """The learning rate by iteration; sets that of iteration 0 (one `step(1)` an iteration)."""
    decay_iters = config.scheduler.lr_decay_iters or config.train.train_iters
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0 if config.scheduler.lr_warmup_iters else config.optimizer.lr,
        max_lr=config.optimizer.lr,
        min_lr=config.scheduler.min_lr,
        lr_warmup_steps=config.scheduler.lr_warmup_iters,
        lr_decay_steps=decay_iters,
        lr_decay_style=config.scheduler.lr_decay_style,
        start_wd=config.optimizer.weight_decay,
        end_wd=config.optimizer.weight_decay,
        wd_incr_steps=decay_iters,
        wd_incr_style="constant",
        wsd_decay_steps=wsd_decay_iters(config.scheduler, decay_iters),
        lr_wsd_decay_style="linear",
    )


def set_peak_learning_rate(scheduler: OptimizerParamScheduler, peak: float) -> None:
    """Let warm-up and decay lead to and from `peak` from here on, whatever went before."""
    for group in scheduler.optimizer.param_groups:
        group["max_lr"] = peak
    scheduler.step(0)


def wsd_decay_iters(scheduler: SchedulerConfig, decay_iters: int) -> int:
    """Length of the final decay of `WSD`, within what the warm-up leaves."""
    wanted = scheduler.lr_wsd_decay_iters or max(1, decay_iters // 10)
    return min(wanted, decay_iters - scheduler.lr_warmup_iters)


def learning_rate(optimizer: MegatronOptimizer) -> float:
    """The rate of the next optimizer step."""
    group: dict[str, Any] = optimizer.param_groups[0]
    return float(group["lr"])
