"""Bytes that a rank holds: weights, gradients, optimizer state, and activations."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_dna.config import Config
from megatron_dna.model.encoder import padded_vocab_size
from megatron_dna.parallel.schedule import SegmentSchedule
from megatron_dna.planning.parameters import stage_parameters


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


def item_bytes(config: Config) -> int:
    """Bytes of a weight or an activation."""
    return 2 if config.train.precision == "bf16" else 4


def stage_memory(
    config: Config, vocab_size: int, stage: int, dp: int, schedule: SegmentSchedule
) -> StageMemory:
    """What a rank of `stage` holds when `schedule` is what it works through.

    Megatron-Core pads its buffers to multiples of 64 to a few thousand elements: not counted.
    """
    parameters = stage_parameters(config, vocab_size, stage)
    per_parameter = 12 if config.train.precision == "bf16" else 8
    shards = dp if config.parallel.use_distributed_optimizer else 1
    kept = kept_segments(config, stage, schedule)
    has_segments = schedule.num_segments > 1
    activations = kept * segment_bytes(config, vocab_size, stage, has_segments)
    if config.train.recompute_granularity == "full":
        # The layer that is computed again, beyond its input; its segment's ends are free by then.
        again = layer_bytes(config) - _residual_bytes(config)
        activations += max(0.0, again - _ends_bytes(config, vocab_size, stage, has_segments))
    return StageMemory(
        weights=parameters * item_bytes(config),
        gradients=parameters * 4,
        optimizer=parameters * per_parameter / shards,
        activations=activations,
    )


def kept_segments(config: Config, stage: int, schedule: SegmentSchedule) -> int:
    """Segments whose activations wait for their backward pass at the peak.

    Over several segments, all of a group, of all micro-batches; over one, what Megatron's 1F1B has
    in flight.
    """
    if schedule.num_segments > 1:
        return schedule.num_microbatches * schedule.group_size
    return min(schedule.num_microbatches, config.parallel.pipeline_model_parallel_size - stage)


def layer_bytes(config: Config) -> float:
    """What a layer saves for the backward pass of one segment of one micro-batch, in bytes.

    Two norms and what they normalise; queries, keys and values, two of them rotated, and what
    attention makes of them; GeGLU's input, its two halves once more (one activated) and their
    product; cosines and sines; statistics of norms and attention, whose scores are never kept.
    """
    model, parallel = config.model, config.parallel
    tp = parallel.tensor_model_parallel_size
    sharded = tp if parallel.sequence_parallel else 1
    per_token = 4 * model.hidden_size / sharded
    per_token += (6 * model.hidden_size + 5 * model.ffn_hidden_size) / tp
    head_width = model.hidden_size // model.num_attention_heads
    rotation = 4 * config.seq_length * head_width * item_bytes(config)
    statistics = 4 * 2 / sharded + model.num_attention_heads / tp
    rows = config.train.micro_batch_size * config.seq_length
    return rotation + rows * (per_token * item_bytes(config) + 4 * statistics)


def segment_bytes(config: Config, vocab_size: int, stage: int, has_segments: bool) -> float:
    """What a stage saves of one segment of one micro-batch, in bytes.

    Under full recomputation the inputs of layers instead of what is in them. Selective
    recomputation saves nothing here: attention keeps no scores that could be left out.
    """
    full = config.train.recompute_granularity == "full"
    layer = _residual_bytes(config) if full else layer_bytes(config)
    layers = config.model.num_layers // config.parallel.pipeline_model_parallel_size * layer
    if full and stage == 0:
        layers += layer  # input of the embedding norm; without recomputation layer 0 has one less
    return layers + _ends_bytes(config, vocab_size, stage, has_segments)


def _residual_bytes(config: Config) -> float:
    """Hidden states between two layers."""
    parallel = config.parallel
    sharded = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    rows = config.train.micro_batch_size * config.seq_length
    return rows * config.model.hidden_size * item_bytes(config) / sharded


def _ends_bytes(config: Config, vocab_size: int, stage: int, has_segments: bool) -> float:
    """What a stage keeps of a segment after its layers."""
    model, parallel = config.model, config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    residual, item = _residual_bytes(config), item_bytes(config)
    if stage < pp - 1:
        # The engine frees what it has sent, Megatron's 1F1B does not.
        return 0.0 if has_segments else residual
    micro_batch = config.train.micro_batch_size
    kept = residual  # input of the final norm
    if config.memory.num_mem_tokens:
        # New memory is a view of all final states.
        kept += micro_batch * config.seq_length * model.hidden_size * item
    # Head: inputs of dense, GELU, norm and decoder; the fp32 probabilities.
    padded_vocab = padded_vocab_size(vocab_size, model.make_vocab_size_divisible_by)
    positions = micro_batch * config.num_masked_tokens
    return kept + positions * (4 * model.hidden_size * item + 4 * padded_vocab / tp)
