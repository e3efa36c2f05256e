"""Rules of the section `memory`, and of its stages."""

from __future__ import annotations

from megatron_dna.config import Config, MemoryConfig, StageConfig, UntilConfig
from megatron_dna.validation.rules import (
    require,
    require_not_negative,
    require_one_of,
    require_positive,
)


def validate_memory(memory: MemoryConfig, data_kind: str) -> None:
    """Recurrent memory and its curriculum.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    mem, depth, segments = memory.num_mem_tokens, memory.bptt_depth, memory.max_n_segments
    require_not_negative("memory", memory, "num_mem_tokens")
    require_positive("memory", memory, "max_n_segments")
    require(
        segments == 1 or mem > 0 or data_kind == "recall", "memory.max_n_segments", segments,
        "needs memory.num_mem_tokens > 0: without memory segments know nothing of each other",
        "set memory.num_mem_tokens, or memory.max_n_segments to 1",
    )  # fmt: skip
    require(
        depth == -1 or 1 <= depth <= segments, "memory.bptt_depth", depth,
        f"must be -1 (all) or lie between 1 and memory.max_n_segments ({segments})",
        "set it to -1",
    )  # fmt: skip
    require_one_of("memory", memory, "update", ("plain", "binary"))
    _validate_noise(memory)
    for number in range(len(memory.curriculum)):
        _validate_stage(memory, number)


def validate_stages_fit(config: Config) -> None:
    """What a stage needs from other sections.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    for number, stage in enumerate(config.memory.curriculum):
        key = f"memory.curriculum[{number}]"
        least = config.scheduler.min_lr
        require(
            stage.lr is None or stage.lr >= least, f"{key}.lr", stage.lr,
            f"must not be below scheduler.min_lr ({least})", "raise it, or lower scheduler.min_lr",
        )  # fmt: skip
        if stage.until is not None and stage.until.metric.startswith("valid/"):
            require(
                bool(config.data.valid) and config.train.eval_interval > 0,
                f"{key}.until.metric", stage.until.metric,
                "needs data.valid and train.eval_interval > 0",
                "set both, or watch train/loss or train/accuracy",
            )  # fmt: skip


def _validate_noise(memory: MemoryConfig) -> None:
    require_not_negative("memory", memory, "noise_std", "noise_ramp_iters")
    require(
        memory.noise_std == 0 or memory.num_mem_tokens > 0, "memory.noise_std", memory.noise_std,
        "needs memory.num_mem_tokens > 0", "set memory.num_mem_tokens, or memory.noise_std to 0",
    )  # fmt: skip
    last = max(0, len(memory.curriculum) - 1)
    require(
        0 <= memory.noise_start <= last, "memory.noise_start", memory.noise_start,
        f"must be a stage of memory.curriculum (0 to {last})", "set it to the first stage's, 0",
    )  # fmt: skip


def _validate_stage(memory: MemoryConfig, number: int) -> None:
    stage, key = memory.curriculum[number], f"memory.curriculum[{number}]"
    segments, longest = stage.n_segments, memory.max_n_segments
    require(
        1 <= segments <= longest, f"{key}.n_segments", segments,
        f"must lie between 1 and memory.max_n_segments ({longest})",
        "change it, or raise memory.max_n_segments",
    )  # fmt: skip
    require(
        segments >= memory.bptt_depth, f"{key}.n_segments", segments,
        f"must not be below memory.bptt_depth ({memory.bptt_depth})",
        "lower memory.bptt_depth, or set it to -1 (all segments)",
    )  # fmt: skip
    _validate_end(stage, key, is_last=number == len(memory.curriculum) - 1)
    if stage.lr is not None:
        require_positive(key, stage, "lr")
    require(
        0 <= stage.vary_n_segments <= 1, f"{key}.vary_n_segments", stage.vary_n_segments,
        "must lie between 0 and 1: it is a share of the batches", "0.5 varies every other batch",
    )  # fmt: skip


def _validate_end(stage: StageConfig, key: str, is_last: bool) -> None:
    ends = [stage.train_iters, stage.until]
    require(
        ends.count(None) == 1 or (is_last and ends.count(None) == 2), key,
        f"train_iters {stage.train_iters}, until {'set' if stage.until else None}",
        "must have exactly one of train_iters and until" + (" or none" if is_last else ""),
        "give its length as train_iters, or what ends it as until, and leave the other out",
    )  # fmt: skip
    if stage.train_iters is not None:
        require_positive(key, stage, "train_iters")
    if stage.until is not None:
        _validate_until(f"{key}.until", stage.until)


def _validate_until(key: str, until: UntilConfig) -> None:
    metrics = ("train/loss", "train/accuracy", "valid/loss", "valid/accuracy")
    require_one_of(key, until, "metric", metrics)
    require_positive(key, until, "window")
    require(
        until.threshold is not None or until.patience is not None, f"{key}.threshold", None,
        "or patience must be given", "a threshold ends the stage at a value, patience on a plateau",
    )  # fmt: skip
    if until.threshold is not None:
        is_share = until.metric.endswith("/accuracy")
        require(
            until.threshold > 0 and (until.threshold <= 1 or not is_share),
            f"{key}.threshold", until.threshold,
            "must lie between 0 and 1" if is_share else "must be positive",
            "0.98 is an accuracy of 98%" if is_share else "give a loss in nats, above 0",
        )  # fmt: skip
    if until.patience is not None:
        require_positive(key, until, "patience")
