"""Which layouts of a run fit, fastest first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from megatron_dna.config import Config, ConfigError, ParallelConfig
from megatron_dna.planning.gpus import GPUS_PER_NODE, Gpu
from megatron_dna.planning.plan import Plan, make_plan

MAX_MICRO_BATCH = 256


def search(
    config: Config, num_gpus: int, gpu: Gpu, vocab_size: int, tokens: int | None = None
) -> list[Plan]:
    """Plans that fit in memory, by tokens a second.

    Varied: TP and CP within a node (with sequence parallelism wherever the length divides), PP,
    micro-batch size (powers of two), no or full recomputation, with CP selective too; DP is what is
    left over. The global batch stays as it is, so all train the same model. Layouts that validation
    refuses are left out.

    Raises:
        ConfigError: no layout is valid, with the reason for the run's own, or none fits.
    """
    valid = 0
    plans = []
    for candidate in _candidates(config, num_gpus):
        try:
            plan = make_plan(candidate, num_gpus, gpu, vocab_size, tokens)
        except ConfigError:
            continue
        valid += 1
        if plan.fits:
            plans.append(plan)
    if not valid:
        make_plan(config, num_gpus, gpu, vocab_size, tokens)  # says what is wrong
    if not plans:
        raise ConfigError(
            f"--num-gpus ({num_gpus}) x --gpu ({gpu.name}) holds none of {valid} valid layouts; "
            "use more GPUs, a GPU with more memory, or a smaller memory.bptt_depth"
        )
    return sorted(plans, key=lambda plan: -plan.tokens_per_s)


def _candidates(config: Config, num_gpus: int) -> Iterator[Config]:
    batch = config.train.global_batch_size
    sizes = [size for size in _powers_of_two(MAX_MICRO_BATCH) if batch % size == 0]
    for parallel in _layouts(config, num_gpus):
        kinds = (
            (None, "full", "selective") if parallel.context_parallel_size > 1 else (None, "full")
        )
        for size in sizes:
            for recompute in kinds:
                train = dataclasses.replace(
                    config.train, micro_batch_size=size, recompute_granularity=recompute
                )
                yield dataclasses.replace(config, parallel=parallel, train=train)


def _layouts(config: Config, num_gpus: int) -> Iterator[ParallelConfig]:
    in_node = min(GPUS_PER_NODE, num_gpus)
    for tp in _powers_of_two(in_node):
        for cp in _powers_of_two(in_node // tp):
            for pp in range(1, config.model.num_layers + 1):
                if config.model.num_layers % pp or num_gpus % (tp * cp * pp):
                    continue
                yield dataclasses.replace(
                    config.parallel,
                    tensor_model_parallel_size=tp,
                    context_parallel_size=cp,
                    pipeline_model_parallel_size=pp,
                    sequence_parallel=tp > 1 and config.seq_length % (tp * cp) == 0,
                )


def _powers_of_two(largest: int) -> Iterator[int]:
    size = 1
    while size <= largest:
        yield size
        size *= 2
