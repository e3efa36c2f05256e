"""Bytes that a rank holds: weights, gradients, optimizer state, and activations."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_dna.config import Config
from megatron_dna.parallel.schedule import SegmentSchedule
from megatron_dna.planning.parameters import fp8_parameters, stage_parameters
from megatron_dna.training.activations import (
    ends_bytes,
    item_bytes,
    layer_bytes,
    residual_bytes,
    rotary_bytes,
    segment_bytes,
)


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each rank of one pipeline stage."""

    weights: float
    gradients: float
    """Always fp32 (Megatron's `grad_reduce_in_fp32`)."""
    optimizer: float
    """Two moments and, in bf16, fp32 main weights; a share under the distributed optimizer."""
    activations: float
    """At the peak of a step."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations


def stage_memory(
    config: Config, vocab_size: int, stage: int, dp: int, schedule: SegmentSchedule
) -> StageMemory:
    """What a rank of `stage` holds when `schedule` is what it works through.

    Megatron-Core pads its buffers to multiples of 64 to a few thousand elements: not counted.
    """
    parameters = stage_parameters(config, vocab_size, stage)
    per_parameter = 12 if config.train.precision == "bf16" else 8
    replicas = dp * config.parallel.context_parallel_size
    shards = replicas if config.parallel.use_distributed_optimizer else 1
    kept = kept_segments(config, stage, schedule)
    has_segments = schedule.num_segments > 1
    activations = kept * segment_bytes(config, vocab_size, stage, has_segments)
    if config.train.recompute_granularity == "full":
        # The layer that is computed again, beyond its input; its segment's ends are free by then.
        count = config.model.num_layers // config.parallel.pipeline_model_parallel_size
        largest = max(layer_bytes(config, stage * count + i) for i in range(count))
        again = largest - residual_bytes(config)
        activations += max(0.0, again - ends_bytes(config, vocab_size, stage, has_segments))
        activations += rotary_bytes(config)
    return StageMemory(
        weights=weight_bytes(config, vocab_size, stage) + fp8_copy_bytes(config, stage),
        gradients=parameters * 4,
        optimizer=parameters * per_parameter / shards,
        activations=activations,
    )


def weight_bytes(config: Config, vocab_size: int, stage: int) -> float:
    """What is gathered after an update: a byte a weight that is kept in FP8, else two or four."""
    item = item_bytes(config)
    whole = float(item * stage_parameters(config, vocab_size, stage))
    if config.fp8.param_gather:
        whole -= (item - 1) * fp8_parameters(config, stage)
    return whole


def fp8_copy_bytes(config: Config, stage: int) -> float:
    """Copies of weights for FP8 products: in both orientations, of which a kept weight is one."""
    return float((1 if config.fp8.param_gather else 2) * fp8_parameters(config, stage))


def kept_segments(config: Config, stage: int, schedule: SegmentSchedule) -> int:
    """Segments whose activations wait for their backward pass at the peak.

    Over several segments, all of a group, of all micro-batches; over one, what Megatron's 1F1B has
    in flight.
    """
    if schedule.num_segments > 1:
        return schedule.num_microbatches * schedule.group_size
    return min(schedule.num_microbatches, config.parallel.pipeline_model_parallel_size - stage)
