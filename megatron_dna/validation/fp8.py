"""Rules of the section `fp8`, and of the shapes that FP8 matrix products take.

Transformer Engine multiplies in FP8 what has rows and columns in multiples of 16 (8 rows for the
operands, 16 for the weights' gradient, whose inner dimension they are), and in blocks of 128 under
the blockwise recipe. Each rank's part of a matrix counts.
"""

from __future__ import annotations

import math

from megatron_dna.config import Config, Fp8Config
from megatron_dna.validation.rules import (
    next_multiple,
    require,
    require_not_negative,
    require_one_of,
    require_positive,
    smallest_factor,
)

RECIPES = ("none", "tensorwise", "blockwise", "delayed")


def multiple_of(fp8: Fp8Config) -> int:
    """What rows and widths of a rank's matrices must be multiples of."""
    return 128 if fp8.recipe == "blockwise" else 16


def validate_fp8(config: Config) -> None:
    """FP8's options, what they need elsewhere, and the shapes.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    fp8 = config.fp8
    require_one_of("fp8", fp8, "recipe", RECIPES)
    require_one_of("fp8", fp8, "format", ("hybrid", "e4m3"))
    require_not_negative("fp8", fp8, "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")
    require_positive("fp8", fp8, "amax_history_len")
    if not fp8.is_on:
        require(
            not fp8.param_gather, "fp8.param_gather", True, "needs fp8.recipe, which is none",
            "set fp8.recipe to tensorwise, or this to false",
        )  # fmt: skip
        return
    _validate_surroundings(config)
    _validate_bf16_layers(config)
    _validate_delayed(config)
    _validate_rows(config)
    _validate_widths(config)


def _validate_surroundings(config: Config) -> None:
    fp8, key = config.fp8, "fp8.recipe"
    off = "or fp8.recipe to none"
    require(
        config.train.precision == "bf16", key, fp8.recipe,
        f"needs train.precision bf16, which is {config.train.precision}",
        f"set train.precision to bf16, {off}",
    )  # fmt: skip
    require(
        config.model.layer_spec != "local", key, fp8.recipe,
        "needs Transformer Engine's layers, and model.layer_spec is local",
        f"set model.layer_spec to transformer_engine, {off}",
    )  # fmt: skip
    require(
        config.parallel.platform != "cpu", key, fp8.recipe,
        "needs CUDA, and parallel.platform is cpu", f"set parallel.platform to cuda, {off}",
    )  # fmt: skip
    require(
        not fp8.param_gather or config.parallel.use_distributed_optimizer,
        "fp8.param_gather", True,
        "needs parallel.use_distributed_optimizer, which keeps and gathers the weights",
        "set that to true, or fp8.param_gather to false",
    )  # fmt: skip


def _validate_bf16_layers(config: Config) -> None:
    fp8, model = config.fp8, config.model
    if not fp8.first_last_layers_bf16:
        return
    pp = config.parallel.pipeline_model_parallel_size
    per_stage = model.num_layers // pp
    start, end = fp8.num_layers_at_start_in_bf16, fp8.num_layers_at_end_in_bf16
    for name, value in (("start", start), ("end", end)):
        require(
            value <= per_stage, f"fp8.num_layers_at_{name}_in_bf16", value,
            f"must not be above the layers of a pipeline stage ({per_stage})",
            f"set it to {per_stage} or less",
        )  # fmt: skip
    require(
        0 < start + end < model.num_layers,
        "fp8.num_layers_at_start_in_bf16 + fp8.num_layers_at_end_in_bf16", start + end,
        f"must lie between 1 and model.num_layers - 1 ({model.num_layers - 1})",
        "set both to 1, or fp8.recipe to none for BF16 throughout",
    )  # fmt: skip


def _validate_delayed(config: Config) -> None:
    fp8, memory = config.fp8, config.memory
    if fp8.recipe != "delayed":
        return
    require(
        not fp8.first_last_layers_bf16, "fp8.first_last_layers_bf16", True,
        "does not go with fp8.recipe delayed, which keeps one history over all layers",
        "set fp8.recipe to tensorwise, or this to false",
    )  # fmt: skip
    require(
        config.train.recompute_granularity != "full" or memory.max_n_segments == 1,
        "fp8.recipe", fp8.recipe,
        "does not go with train.recompute_granularity full and memory.max_n_segments "
        f"({memory.max_n_segments}) above 1: it recomputes in the order of the forward pass, and "
        "backpropagation through segments is in reverse",
        "set fp8.recipe to tensorwise, or train.recompute_granularity to null",
    )  # fmt: skip


def _validate_rows(config: Config) -> None:
    """Rows of a rank's activations: (M + C) x micro-batch, over CP, and over TP under SP."""
    parallel, size = config.parallel, config.train.micro_batch_size
    split = {"context": parallel.context_parallel_size}
    if parallel.sequence_parallel:
        split["tensor_model"] = parallel.tensor_model_parallel_size
    shards = math.prod(split.values())
    over = "".join(f" / parallel.{kind}_parallel_size" for kind in split if split[kind] > 1)
    multiple = multiple_of(config.fp8)
    length = next_multiple(config.seq_length, smallest_factor(multiple * shards, size))
    batch = next_multiple(size, smallest_factor(multiple * shards, config.seq_length))
    require(
        config.seq_length * size % (multiple * shards) == 0, "data.segment_size",
        config.data.segment_size,
        f"must make (memory.num_mem_tokens + data.segment_size) x train.micro_batch_size"
        f"{over} "
        f"({config.seq_length * size / shards:g}) a multiple of {multiple} under fp8.recipe "
        f"{config.fp8.recipe}",
        f"the next that fits is {length - config.memory.num_mem_tokens} "
        f"(or a train.micro_batch_size of {batch})",
    )  # fmt: skip


def _validate_widths(config: Config) -> None:
    """Widths of a rank's matrices: hidden / TP and ffn / TP, of which all others are multiples."""
    tp, multiple = config.parallel.tensor_model_parallel_size, multiple_of(config.fp8)
    # A width must also go into the heads, each of even width.
    heads = 2 * config.model.num_attention_heads
    for name, divisor in (("hidden_size", heads), ("ffn_hidden_size", 1)):
        value = getattr(config.model, name)
        unit = multiple * tp * smallest_factor(divisor, multiple * tp)
        require(
            value % (multiple * tp) == 0, f"model.{name}", value,
            f"must be a multiple of {multiple} on each of the {tp} tensor-parallel ranks "
            f"({value / tp:g}) under fp8.recipe {config.fp8.recipe}",
            f"the next that fits is {next_multiple(value, unit)}",
        )  # fmt: skip
