"""What the segment schedule costs, for the log: how busy stages are, and what they keep."""

from __future__ import annotations

from megatron_dna.config import Config
from megatron_dna.parallel.schedule import SegmentSchedule
from megatron_dna.training.activations import segment_bytes


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
    total = kept * max(
        segment_bytes(config, vocab_size, stage, num_segments > 1) for stage in range(stages)
    )
    return (
        line
        + f"; {kept} segments kept for the backward pass, about {total / 2**20:.0f} MiB a stage"
    )
