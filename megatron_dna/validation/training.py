"""Rules of the sections `train`, `optimizer`, `scheduler`, `checkpoint` and `logging`."""

from __future__ import annotations

from pathlib import Path

from megatron_dna.config import CheckpointConfig, Config, OptimizerConfig
from megatron_dna.validation.rules import (
    require,
    require_not_negative,
    require_one_of,
    require_positive,
)


def validate_training(config: Config) -> None:
    """The loop, the optimizer and its learning rate, and what is saved and reported.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    train, logging = config.train, config.logging
    require_positive(
        "train", train, "train_iters", "micro_batch_size", "global_batch_size", "eval_iters"
    )
    require_one_of("train", train, "precision", ("bf16", "fp32"))
    require_one_of("train", train, "recompute_granularity", (None, "selective", "full"))
    require_not_negative("train", train, "eval_interval", "max_skipped_steps")
    require(
        train.loss_spike_factor == 0 or train.loss_spike_factor > 1, "train.loss_spike_factor",
        train.loss_spike_factor, "must be 0 (off) or above 1: it multiplies the running mean",
        "2 skips a step with twice the usual loss",
    )  # fmt: skip
    _validate_optimizer(config.optimizer)
    _validate_scheduler(config)
    require_not_negative(
        "checkpoint", config.checkpoint, "save_interval", "keep_last", "keep_every"
    )
    require_positive("logging", logging, "log_interval")
    require_one_of("logging", logging, "level", ("DEBUG", "INFO", "WARNING", "ERROR"))


def validate_load(checkpoint: CheckpointConfig) -> None:
    """Where weights come from.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    load = checkpoint.load
    require(
        load is None or Path(load).is_dir(), "checkpoint.load", load, "is not a folder",
        "give an iter_... folder, or a run's output folder for its newest checkpoint",
    )  # fmt: skip
    require(
        load is not None or not checkpoint.load_optimizer, "checkpoint.load_optimizer", True,
        "needs checkpoint.load", "set that, or this to false",
    )  # fmt: skip


def _validate_optimizer(optimizer: OptimizerConfig) -> None:
    require_positive("optimizer", optimizer, "lr", "adam_eps")
    require_not_negative("optimizer", optimizer, "weight_decay", "clip_grad")
    for name, usual in (("adam_beta1", 0.9), ("adam_beta2", 0.98)):
        value = getattr(optimizer, name)
        require(
            0 <= value < 1, f"optimizer.{name}", value, "must be at least 0 and below 1",
            f"the default is {usual}",
        )  # fmt: skip


def _validate_scheduler(config: Config) -> None:
    scheduler = config.scheduler
    require_one_of(
        "scheduler", scheduler, "lr_decay_style", ("constant", "linear", "cosine", "WSD")
    )
    for name in ("lr_decay_iters", "lr_wsd_decay_iters"):
        if getattr(scheduler, name) is not None:
            require_positive("scheduler", scheduler, name)
    decay_iters = scheduler.lr_decay_iters or config.train.train_iters
    require(
        0 <= scheduler.lr_warmup_iters < decay_iters, "scheduler.lr_warmup_iters",
        scheduler.lr_warmup_iters, f"must be below the end of the decay ({decay_iters})",
        "shorten it, or raise scheduler.lr_decay_iters or train.train_iters",
    )  # fmt: skip
    require(
        0 <= scheduler.min_lr <= config.optimizer.lr, "scheduler.min_lr", scheduler.min_lr,
        f"must lie between 0 and optimizer.lr ({config.optimizer.lr})",
        "a tenth of optimizer.lr is usual",
    )  # fmt: skip
