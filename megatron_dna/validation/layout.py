"""Rules of the section `parallel`, and of what the number of processes decides."""

from __future__ import annotations

import math

from megatron_dna.config import Config
from megatron_dna.validation.rules import (
    next_divisor,
    next_multiple,
    require,
    require_one_of,
    require_positive,
)


def data_parallel_size(config: Config, world_size: int) -> int:
    """DP, model replicas among `world_size` ranks.

    Raises:
        ConfigError: the model-parallel sizes do not divide the world size.
    """
    parallel = config.parallel
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    model_size: int = math.prod(getattr(parallel, name) for name in names)
    require(
        world_size % model_size == 0,
        " x ".join(f"parallel.{name}" for name in names),
        model_size,
        f"must divide the number of processes ({world_size})",
        f"start a multiple of {model_size} processes with torchrun --nproc_per_node",
    )
    return world_size // model_size


def validate_batch(config: Config, replicas: int) -> None:
    """The global batch over the data-parallel replicas.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    train = config.train
    step = train.micro_batch_size * replicas
    require(
        train.global_batch_size % step == 0, "train.global_batch_size", train.global_batch_size,
        f"must be a multiple of train.micro_batch_size x data-parallel size ({step})",
        f"the next that fits is {next_multiple(train.global_batch_size, step)}",
    )  # fmt: skip


def validate_layout(config: Config) -> None:
    """How the work is split.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    model, parallel = config.model, config.parallel
    require_positive(
        "parallel", parallel, "tensor_model_parallel_size", "pipeline_model_parallel_size",
        "context_parallel_size", "timeout_minutes",
    )  # fmt: skip
    require_one_of("parallel", parallel, "platform", ("auto", "cpu", "cuda"))
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    for key, size, name in (
        ("parallel.tensor_model_parallel_size", tp, "num_attention_heads"),
        ("parallel.tensor_model_parallel_size", tp, "ffn_hidden_size"),
        ("parallel.tensor_model_parallel_size", tp, "make_vocab_size_divisible_by"),
        ("parallel.pipeline_model_parallel_size", pp, "num_layers"),
    ):
        whole = getattr(model, name)
        other = next_multiple(whole, size)
        require(
            whole % size == 0, key, size, f"must divide model.{name} ({whole})",
            f"{next_divisor(whole, size)} does; or set model.{name} to {other}",
        )  # fmt: skip
    require(
        tp > 1 or not parallel.sequence_parallel, "parallel.sequence_parallel", True,
        "needs parallel.tensor_model_parallel_size > 1", "raise that, or set this to false",
    )  # fmt: skip
    _validate_length(config)
    if parallel.overlap_param_gather:
        require(
            parallel.use_distributed_optimizer and parallel.overlap_grad_reduce,
            "parallel.overlap_param_gather", True,
            "needs parallel.use_distributed_optimizer and parallel.overlap_grad_reduce",
            "set both to true",
        )  # fmt: skip
    if parallel.tp_comm_overlap:
        _validate_tp_comm_overlap(config)


def _validate_length(config: Config) -> None:
    """Positions over the ranks that share them: those of CP, and of TP under SP."""
    parallel, length = config.parallel, config.seq_length
    sizes = {"parallel.context_parallel_size": parallel.context_parallel_size}
    if parallel.sequence_parallel:
        sizes["parallel.tensor_model_parallel_size"] = parallel.tensor_model_parallel_size
    shares = math.prod(sizes.values())
    key = " x ".join(name for name, size in sizes.items() if size > 1)
    under = " under parallel.sequence_parallel" if parallel.sequence_parallel else ""
    fitting = next_multiple(length, shares) - config.memory.num_mem_tokens
    require(
        length % shares == 0, key, shares,
        f"must divide memory.num_mem_tokens + data.segment_size ({length}){under}",
        f"the next data.segment_size that fits is {fitting}",
    )  # fmt: skip


def _validate_tp_comm_overlap(config: Config) -> None:
    """What Transformer Engine's user buffers need."""
    key = "parallel.tp_comm_overlap"
    require(
        config.parallel.sequence_parallel, key, True, "needs parallel.sequence_parallel",
        "set that to true (with parallel.tensor_model_parallel_size > 1)",
    )  # fmt: skip
    require(
        config.model.layer_spec != "local", key, True,
        "needs Transformer Engine's layers, and model.layer_spec is local",
        "set model.layer_spec to transformer_engine",
    )  # fmt: skip
    require(
        config.parallel.platform != "cpu", key, True, "needs CUDA, and parallel.platform is cpu",
        "set parallel.platform to cuda",
    )  # fmt: skip
    require(
        config.train.precision == "bf16", key, True,
        f"needs train.precision bf16, which is {config.train.precision}",
        "set train.precision to bf16",
    )  # fmt: skip
    require(
        config.fp8.recipe != "blockwise", key, True,
        "does not go with fp8.recipe blockwise, which Transformer Engine's buffers cannot hold",
        "set fp8.recipe to tensorwise, or this to false",
    )  # fmt: skip
