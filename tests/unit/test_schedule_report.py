"""What the log says of the segment schedule before a long run is paid for."""

from __future__ import annotations

import pytest

from megatron_dna.config import load_config
from megatron_dna.training.schedule_report import describe_schedule, segment_bytes

OPTIONS = [
    "model.num_layers=4", "model.hidden_size=64", "model.ffn_hidden_size=96",
    "model.num_attention_heads=4", "data.segment_size=60", "memory.num_mem_tokens=4",
    "memory.max_n_segments=6", "train.micro_batch_size=2", "train.global_batch_size=8",
    "train.precision=bf16", "parallel.pipeline_model_parallel_size=4",
]  # fmt: skip


def test_idle_stages_are_told_with_what_would_fill_them():
    config = load_config(None, OPTIONS)
    line = describe_schedule(config, 6, dp_size=2, vocab_size=100)
    # N = 2, P = 4, W = 6: 5 segments of 4 ticks, then 2 + 3.
    assert "6 segments, 2 micro-batches in flight, 4 stages: busy 48%" in line
    assert "N >= 4 would fill it" in line
    assert "12 segments kept" in line
    full = describe_schedule(config, 6, dp_size=1, vocab_size=100)
    assert "4 micro-batches in flight" in full
    assert "would fill" not in full
    short = describe_schedule(config, 2, dp_size=2, vocab_size=100)
    assert "2 segments, 6 micro-batches in flight" in short  # three windows from each
    recall = load_config(None, [*OPTIONS, "data.kind=recall"])
    line = describe_schedule(recall, 2, dp_size=2, vocab_size=100)
    assert "2 segments, 2 micro-batches in flight" in line  # made that long, not cut
    first_only = load_config(None, [*OPTIONS, "memory.constant_tokens=false"])
    line = describe_schedule(first_only, 2, dp_size=2, vocab_size=100)
    assert "2 micro-batches in flight" in line
    grouped = load_config(None, [*OPTIONS, "memory.bptt_depth=2"])
    assert "4 segments kept" in describe_schedule(grouped, 6, dp_size=2, vocab_size=100)


def test_full_recomputation_keeps_layer_inputs_only():
    config = load_config(None, [*OPTIONS, "train.recompute_granularity=full"])
    head = 4 * config.num_masked_tokens * 100
    assert segment_bytes(config, 100) == 2 * (1 * 64 * 64 * 2 + head)
    assert segment_bytes(load_config(None, OPTIONS), 100) > 8 * segment_bytes(config, 100) / 2


@pytest.mark.parametrize(
    "split", ["tensor_model_parallel_size=2", "pipeline_model_parallel_size=2"]
)
def test_stages_and_ranks_share_what_is_kept(split: str):
    base = [*OPTIONS, "parallel.pipeline_model_parallel_size=1"]
    whole = segment_bytes(load_config(None, base), 0)
    part = segment_bytes(load_config(None, [*base, f"parallel.{split}"]), 0)
    assert whole / 2 <= part < whole
