"""What the log says of the segment schedule before a long run is paid for."""

from __future__ import annotations

from megatron_dna.config import load_config
from megatron_dna.training.activations import segment_bytes
from megatron_dna.training.schedule_report import describe_schedule

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


def test_what_is_kept_is_what_plans_say():
    """The log and the planner must not differ; tests/dist/test_planning.py measures the planner."""
    config = load_config(None, [*OPTIONS, "train.recompute_granularity=full"])
    for one in (config, load_config(None, OPTIONS)):
        fullest = max(segment_bytes(one, 50_000, stage, True) for stage in range(4))
        line = describe_schedule(one, 6, dp_size=2, vocab_size=50_000)
        assert f"about {12 * fullest / 2**20:.0f} MiB a stage" in line
