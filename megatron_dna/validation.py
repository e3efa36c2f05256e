"""The rules a configuration must keep, checked before any process group exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_dna.config import (
    RECALL_BARCODE_LENGTH,
    RECALL_FIRST_SYMBOL,
    Config,
    ConfigError,
    DataConfig,
    MemoryConfig,
    ModelConfig,
    UntilConfig,
)


def data_parallel_size(config: Config, world_size: int) -> int:
    """DP, model replicas among `world_size` ranks.

    Raises:
        ConfigError: the model-parallel sizes do not divide the world size.
    """
    parallel = config.parallel
    model_size = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    _require(
        world_size % model_size == 0,
        "parallel.tensor_model_parallel_size x parallel.pipeline_model_parallel_size",
        model_size,
        f"must divide the number of processes ({world_size})",
        f"start a multiple of {model_size} processes with torchrun --nproc_per_node",
    )
    return world_size // model_size


def _require(holds: bool, key: str, value: Any, rule: str, fix: str = "") -> None:
    value = str(value).lower() if isinstance(value, bool) else value  # as YAML spells it
    if not holds:
        raise ConfigError(f"{key} ({value}) {rule}" + (f"; {fix}" if fix else ""))


def _require_positive(section: str, options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        _require(value > 0, f"{section}.{name}", value, "must be positive")


def _require_one_of(key: str, value: str | None, choices: Sequence[str | None]) -> None:
    _require(value in choices, key, value, "must be one of " + ", ".join(map(str, choices)))


def validate(config: Config, world_size: int, files: bool = True) -> None:
    """Check everything that can be checked without a process group or a model.

    Args:
        config: the run's options.
        world_size: number of processes.
        files: whether the files it names must be there (a plan can do without).

    Raises:
        ConfigError: with key, value, rule and, where it is not plain from the rule, the fix.
    """
    _validate_model(config.model)
    _validate_memory(config.memory, config.data.kind)
    _validate_data(config.data, files)
    _validate_parallel(config)
    _validate_training(config)
    _validate_stages_fit(config)
    if files:
        _validate_load(config)
    replicas = data_parallel_size(config, world_size)
    train = config.train
    step = train.micro_batch_size * replicas
    _require(
        train.global_batch_size % step == 0,
        "train.global_batch_size",
        train.global_batch_size,
        f"must be a multiple of train.micro_batch_size x data-parallel size ({step})",
        f"the next that fits is {-(-train.global_batch_size // step) * step}",
    )


def _validate_model(model: ModelConfig) -> None:
    _require_positive(
        "model", model, "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads",
        "norm_eps", "global_attn_every_n_layers", "global_rope_theta", "local_rope_theta",
        "init_method_std", "make_vocab_size_divisible_by",
    )  # fmt: skip
    _require(
        model.hidden_size % (2 * model.num_attention_heads) == 0,
        "model.num_attention_heads",
        model.num_attention_heads,
        f"must divide model.hidden_size ({model.hidden_size}) into heads of even width",
    )
    _require(
        model.local_attention >= 2 and model.local_attention % 2 == 0,
        "model.local_attention",
        model.local_attention,
        "must be even and at least 2: half the window lies to each side",
    )
    choices = ("auto", "local", "transformer_engine")
    _require_one_of("model.layer_spec", model.layer_spec, choices)


def _validate_memory(memory: MemoryConfig, data_kind: str) -> None:
    mem, depth, segments = memory.num_mem_tokens, memory.bptt_depth, memory.max_n_segments
    _require(mem >= 0, "memory.num_mem_tokens", mem, "must not be negative")
    _require_positive("memory", memory, "max_n_segments")
    _require(
        segments == 1 or mem > 0 or data_kind == "recall", "memory.max_n_segments", segments,
        "needs memory.num_mem_tokens > 0: without memory segments know nothing of each other",
    )  # fmt: skip
    _require(
        depth == -1 or 1 <= depth <= segments, "memory.bptt_depth", depth,
        f"must be -1 (all) or lie between 1 and memory.max_n_segments ({segments})",
    )  # fmt: skip
    _require_one_of("memory.update", memory.update, ("plain", "binary"))
    _validate_noise(memory)
    for number in range(len(memory.curriculum)):
        _validate_stage(memory, number)


def _validate_noise(memory: MemoryConfig) -> None:
    std, start = memory.noise_std, memory.noise_start
    _require(std >= 0, "memory.noise_std", std, "must not be negative")
    _require(
        std == 0 or memory.num_mem_tokens > 0, "memory.noise_std", std,
        "needs memory.num_mem_tokens > 0",
    )  # fmt: skip
    last = max(0, len(memory.curriculum) - 1)
    _require(
        0 <= start <= last, "memory.noise_start", start,
        f"must be a stage of memory.curriculum (0 to {last})",
    )  # fmt: skip
    ramp = memory.noise_ramp_iters
    _require(ramp >= 0, "memory.noise_ramp_iters", ramp, "must not be negative")


def _validate_stage(memory: MemoryConfig, number: int) -> None:
    stage, key = memory.curriculum[number], f"memory.curriculum[{number}]"
    segments, longest = stage.n_segments, memory.max_n_segments
    _require(
        1 <= segments <= longest, f"{key}.n_segments", segments,
        f"must lie between 1 and memory.max_n_segments ({longest})",
    )  # fmt: skip
    _require(
        segments >= memory.bptt_depth, f"{key}.n_segments", segments,
        f"must not be below memory.bptt_depth ({memory.bptt_depth})",
        "lower memory.bptt_depth, or set it to -1 (all segments)",
    )  # fmt: skip
    ends = [stage.train_iters, stage.until]
    is_last = number == len(memory.curriculum) - 1
    _require(
        ends.count(None) == 1 or (is_last and ends.count(None) == 2), key,
        f"train_iters {stage.train_iters}, until {'set' if stage.until else None}",
        "must have exactly one of train_iters and until" + (" or none" if is_last else ""),
    )  # fmt: skip
    if stage.train_iters is not None:
        _require_positive(key, stage, "train_iters")
    if stage.lr is not None:
        _require_positive(key, stage, "lr")
    _require(
        0 <= stage.vary_n_segments <= 1, f"{key}.vary_n_segments", stage.vary_n_segments,
        "must lie between 0 and 1: it is a share of the batches",
    )  # fmt: skip
    if stage.until is not None:
        _validate_until(f"{key}.until", stage.until)


def _validate_until(key: str, until: UntilConfig) -> None:
    metrics = ("train/loss", "train/accuracy", "valid/loss", "valid/accuracy")
    _require_one_of(f"{key}.metric", until.metric, metrics)
    _require_positive(key, until, "window")
    _require(
        until.threshold is not None or until.patience is not None, f"{key}.threshold", None,
        "or patience must be given", "a threshold ends the stage at a value, patience on a plateau",
    )  # fmt: skip
    if until.threshold is not None:
        is_share = until.metric.endswith("/accuracy")
        _require(
            until.threshold > 0 and (until.threshold <= 1 or not is_share),
            f"{key}.threshold", until.threshold,
            "must lie between 0 and 1" if is_share else "must be positive",
        )  # fmt: skip
    if until.patience is not None:
        _require_positive(key, until, "patience")


def _validate_data(data: DataConfig, files: bool) -> None:
    _require_one_of("data.kind", data.kind, ("genome", "recall"))
    if data.kind == "recall":
        _validate_recall(data)
    elif files:
        _validate_files(data)
    _require(data.segment_size >= 8, "data.segment_size", data.segment_size, "must be at least 8")
    _require(
        0 < data.mlm_probability < 1, "data.mlm_probability", data.mlm_probability,
        "must lie between 0 and 1",
    )  # fmt: skip
    _require(
        1 <= data.mean_span_length <= data.segment_size, "data.mean_span_length",
        data.mean_span_length, f"must lie between 1 and data.segment_size ({data.segment_size})",
    )  # fmt: skip
    _require(data.num_workers >= 0, "data.num_workers", data.num_workers, "must not be negative")


def _validate_recall(data: DataConfig) -> None:
    """Room for the markers and more than one symbol, and for barcode and question in a segment."""
    least = RECALL_FIRST_SYMBOL + 2
    _require(
        data.recall_vocab_size >= least, "data.recall_vocab_size", data.recall_vocab_size,
        f"must be at least {least}: {RECALL_FIRST_SYMBOL} special tokens and markers, then symbols",
    )  # fmt: skip
    least = 2 + 2 * (1 + RECALL_BARCODE_LENGTH)
    _require(
        data.segment_size >= least, "data.segment_size", data.segment_size,
        f"must be at least {least} for recall data: [CLS], barcode and question with a marker each "
        "(a window may have one segment), [SEP]",
    )  # fmt: skip


def _validate_files(data: DataConfig) -> None:
    _require(bool(data.tokenizer), "data.tokenizer", "", "must name a tokenizer.json")
    _require(
        Path(data.tokenizer).is_file(),
        "data.tokenizer",
        data.tokenizer,
        "is not a file",
        "make one with tools/train_tokenizer.py",
    )
    _require(
        bool(data.train), "data.train", "[]", "must list at least one {prefix, weight}",
        "make one with tools/preprocess_genome.py",
    )  # fmt: skip
    for name, sources in (("train", data.train), ("valid", data.valid)):
        for i, source in enumerate(sources):
            key = f"data.{name}[{i}]"
            _require(source.weight > 0, f"{key}.weight", source.weight, "must be positive")
            for suffix in (".bin", ".idx"):
                _require(
                    Path(source.prefix + suffix).is_file(),
                    f"{key}.prefix",
                    source.prefix,
                    f"has no file {source.prefix}{suffix}",
                    "make it with tools/preprocess_genome.py",
                )


def _validate_parallel(config: Config) -> None:
    model, parallel = config.model, config.parallel
    _require_positive(
        "parallel", parallel, "tensor_model_parallel_size", "pipeline_model_parallel_size",
        "timeout_minutes",
    )  # fmt: skip
    _require_one_of("parallel.platform", parallel.platform, ("auto", "cpu", "cuda"))
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    for key, value in (
        ("model.num_attention_heads", model.num_attention_heads),
        ("model.ffn_hidden_size", model.ffn_hidden_size),
        ("model.make_vocab_size_divisible_by", model.make_vocab_size_divisible_by),
    ):
        _require(
            value % tp == 0, "parallel.tensor_model_parallel_size", tp,
            f"must divide {key} ({value})",
        )  # fmt: skip
    _require(
        model.num_layers % pp == 0, "parallel.pipeline_model_parallel_size", pp,
        f"must divide model.num_layers ({model.num_layers})",
    )  # fmt: skip
    if parallel.sequence_parallel:
        _require(
            tp > 1, "parallel.sequence_parallel", True,
            "needs parallel.tensor_model_parallel_size > 1",
        )  # fmt: skip
        _require(
            config.seq_length % tp == 0, "parallel.tensor_model_parallel_size", tp,
            "must divide memory.num_mem_tokens + data.segment_size "
            f"({config.seq_length}) under parallel.sequence_parallel",
        )  # fmt: skip
    if parallel.overlap_param_gather:
        _require(
            parallel.use_distributed_optimizer and parallel.overlap_grad_reduce,
            "parallel.overlap_param_gather", True,
            "needs parallel.use_distributed_optimizer and parallel.overlap_grad_reduce",
        )  # fmt: skip


def _validate_training(config: Config) -> None:
    train, scheduler, optimizer = config.train, config.scheduler, config.optimizer
    _require_positive(
        "train", train, "train_iters", "micro_batch_size", "global_batch_size", "eval_iters"
    )
    _require_one_of("train.precision", train.precision, ("bf16", "fp32"))
    _require_one_of(
        "train.recompute_granularity", train.recompute_granularity, (None, "selective", "full")
    )
    _require_positive("optimizer", optimizer, "lr", "adam_eps")
    for name in ("adam_beta1", "adam_beta2"):
        value = getattr(optimizer, name)
        _require(0 <= value < 1, f"optimizer.{name}", value, "must be at least 0 and below 1")
    for name in ("weight_decay", "clip_grad"):
        value = getattr(optimizer, name)
        _require(value >= 0, f"optimizer.{name}", value, "must not be negative")
    choices = ("constant", "linear", "cosine", "WSD")
    _require_one_of("scheduler.lr_decay_style", scheduler.lr_decay_style, choices)
    decay_iters = scheduler.lr_decay_iters or train.train_iters
    _require(
        0 <= scheduler.lr_warmup_iters < decay_iters, "scheduler.lr_warmup_iters",
        scheduler.lr_warmup_iters, f"must be below the end of the decay ({decay_iters})",
    )  # fmt: skip
    _require(
        0 <= scheduler.min_lr <= optimizer.lr, "scheduler.min_lr", scheduler.min_lr,
        f"must lie between 0 and optimizer.lr ({optimizer.lr})",
    )  # fmt: skip
    for section, name in (("train", "eval_interval"), ("checkpoint", "save_interval"),
                          ("checkpoint", "keep_last"), ("checkpoint", "keep_every"),
                          ("train", "max_skipped_steps")):  # fmt: skip
        value = getattr(getattr(config, section), name)
        _require(value >= 0, f"{section}.{name}", value, "must not be negative")
    _require(
        train.loss_spike_factor == 0 or train.loss_spike_factor > 1, "train.loss_spike_factor",
        train.loss_spike_factor, "must be 0 (off) or above 1: it multiplies the running mean",
    )  # fmt: skip
    _require_positive("logging", config.logging, "log_interval")
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    _require_one_of("logging.level", config.logging.level, levels)


def _validate_stages_fit(config: Config) -> None:
    """What a stage needs from other sections."""
    for number, stage in enumerate(config.memory.curriculum):
        key = f"memory.curriculum[{number}]"
        least = config.scheduler.min_lr
        _require(
            stage.lr is None or stage.lr >= least, f"{key}.lr", stage.lr,
            f"must not be below scheduler.min_lr ({least})",
        )  # fmt: skip
        if stage.until is not None and stage.until.metric.startswith("valid/"):
            _require(
                bool(config.data.valid) and config.train.eval_interval > 0,
                f"{key}.until.metric", stage.until.metric,
                "needs data.valid and train.eval_interval > 0",
            )  # fmt: skip


def _validate_load(config: Config) -> None:
    load = config.checkpoint.load
    _require(
        load is None or Path(load).is_dir(), "checkpoint.load", load, "is not a folder",
        "give an iter_... folder, or a run's output folder for its newest checkpoint",
    )  # fmt: skip
    _require(
        load is not None or not config.checkpoint.load_optimizer,
        "checkpoint.load_optimizer", True, "needs checkpoint.load",
    )  # fmt: skip
