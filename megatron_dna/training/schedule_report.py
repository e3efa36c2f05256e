"""What the segment schedule costs, for the log: how busy stages are, and what they keep."""

from __future__ import annotations

from megatron_dna.config import Config
from megatron_dna.parallel.schedule import SegmentSchedule


def describe_schedule(config: Config, num_segments: int, dp_size: int, vocab_size: int) -> str:
    """One line on training on windows of `num_segments` segments.

    Args:
        config: the run's options.
        num_segments: n, segments of a window.
        dp_size: data-parallel replicas.
        vocab_size: ids of the vocabulary.
    """
    memory, train = config.memory, config.train
    # Recall data makes windows of any length; others are cut from windows of all segments.
    is_cut = memory.constant_tokens and config.data.kind == "genome"
    per_window = memory.max_n_segments // num_segments if is_cut else 1
    loaded = train.global_batch_size // (train.micro_batch_size * dp_size)
    schedule = SegmentSchedule(num_segments, memory.bptt_depth, loaded * per_window)
    in_flight, stages = schedule.num_microbatches, config.parallel.pipeline_model_parallel_size
    line = (
        f"memory schedule: {num_segments} segments, {in_flight} micro-batches in flight, {stages} "
        f"stages: busy {100 * schedule.busy_share(stages):.0f}%"
    )
    if in_flight < stages:
        line += f"; N >= {stages} would fill it: raise train.global_batch_size"
    kept = in_flight * schedule.group_size
    total = kept * segment_bytes(config, vocab_size) / 2**20
    return line + f"; {kept} segments kept for the backward pass, about {total:.0f} MiB a stage"


def segment_bytes(config: Config, vocab_size: int) -> float:
    """Activations that the last stage keeps of one segment of one micro-batch, roughly.

    Under full recomputation the inputs of its layers; else also what the matrix products, norms and
    GeGLU of a layer save. Attention saves no scores (flash or memory-efficient kernels).
    """
    model, train, parallel = config.model, config.train, config.parallel
    tp = parallel.tensor_model_parallel_size
    item = 2 if train.precision == "bf16" else 4
    layers = model.num_layers // parallel.pipeline_model_parallel_size
    inputs = model.hidden_size / (tp if parallel.sequence_parallel else 1)
    if train.recompute_granularity == "full":
        per_token = inputs
    else:
        # Two norms and what they normalise; query, key and value, two of them rotated, and the
        # result of attention; both halves of GeGLU's input, the activated half and the product.
        per_token = 4 * inputs + (6 * model.hidden_size + 4 * model.ffn_hidden_size) / tp
    probabilities = 4 * config.num_masked_tokens * vocab_size / tp
    per_sample = layers * per_token * config.seq_length * item + probabilities
    return train.micro_batch_size * per_sample
