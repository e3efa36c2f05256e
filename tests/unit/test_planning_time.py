"""Seconds of a plan, by hand: plain arithmetic beside what `megatron_dna.planning` says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_dna.config import load_config
from megatron_dna.parallel.schedule import SegmentSchedule
from megatron_dna.planning.compute import StageClock, Tick
from megatron_dna.planning.gpus import GPUS, Gpu
from megatron_dna.planning.plan import (
    exposed_transfers_s,
    make_plan,
    other_recompute,
    schedule_times,
)
from megatron_dna.planning.report import ESTIMATE, page

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VOCAB = 32000
H100 = GPUS["h100"]


def _recipe(name: str, *overrides: str):
    return load_config(EXAMPLES / f"{name}.yaml", list(overrides))


SLOW = Gpu(
    "slow", memory_gib=80, bf16_tflops=0.002, fp8_tflops=0, fp32_tflops=0.001,
    memory_tb_per_s=1e6, nvlink_gb_per_s=0.001, network_gb_per_s=0.001, source="made up",
)  # fmt: skip
"""Launches take no time beside its arithmetic, nor does its memory."""


def test_step_of_a_small_model_takes_what_its_parts_do():
    """Times that are all out by a factor would pass every comparison of two plans."""
    width, ffn, length, layers, vocab = 256, 384, 128, 2, 512
    config = _recipe(
        "tiny", f"model.hidden_size={width}", f"model.ffn_hidden_size={ffn}",
        f"model.num_layers={layers}", "model.num_attention_heads=4",
        "model.global_attn_every_n_layers=1", f"data.segment_size={length}",
        "train.micro_batch_size=4", "train.global_batch_size=16", "train.precision=bf16",
        "parallel.tensor_model_parallel_size=2", "parallel.overlap_grad_reduce=false",
        "parallel.overlap_param_gather=false",
    )  # fmt: skip
    plan = make_plan(config, 4, SLOW, vocab)
    micro_batches, tp, rows = 2, 2, 4 * length  # DP 2
    # Matrix products: two FLOPs a multiply-add, at 75% of the peak.
    column, row = width * 3 * width + width * 2 * ffn, width * width + ffn * width
    head = 4 * config.num_masked_tokens * (width * width + width * vocab / tp)
    rate = 0.75 * 2e9
    products_s = 2 * (layers * rows * (column + row) / tp + head) / rate
    # Scores and what they weigh: two products of [length, length] and width; 35% of the peak.
    attention_s = layers * 4 * rows * length * width / tp / (0.35 * 2e9)
    # An all-reduce in a node: both ways 5 us and half of the bytes at 80% of the link.
    link = 0.8 * 0.001e9
    reduce_s = 2 * (5e-6 + rows * width * 2 / 2 / link)
    # Two a layer each way, those of the backward pass behind the column products' first half.
    column_s = 2 * rows * column / tp / rate
    assert column_s < 2 * reduce_s
    tensor_s = layers * (2 * reduce_s + 2 * reduce_s - column_s) + reduce_s  # and the embedding
    # Backward: each product twice, attention two and a half times.
    work_s = micro_batches * (3 * products_s + 3.5 * attention_s + tensor_s)
    assert plan.work_s == pytest.approx(work_s, rel=1e-3)
    assert plan.scheduled_s == plan.work_s
    held = vocab / tp * width + width + layers * (column + row) / tp + 3 * width
    held += width * width + 2 * width + vocab / tp
    replicas_s = 2 * 5e-6 + (4 + 2) * held / 2 / link  # gradients in fp32, weights in bf16
    assert plan.step_s == pytest.approx(work_s + replicas_s, rel=1e-3)


def _exposed(segments: int, depth: int, count: int, stages: int, tick: Tick) -> float:
    schedule = SegmentSchedule(segments, depth, count)
    return exposed_transfers_s(schedule, tick, stages, hidden_s=0.3, memory_s=0.1)


def test_memory_on_its_way_back_makes_stages_wait():
    """A search that took these transfers as hidden would choose long pipelines wrongly."""
    tick = Tick(1.0, 2.0, 0.0, 0.0, 0.0)
    # One micro-batch on two stages: every segment is on its way alone. Forward it takes 1, 0.3,
    # 1 and 0.1 s, the last one without its memory; backward the same with 2 s.
    forward, backward = 3 * 2.3 + 2 * 0.1, 3 * 4.3 + 2 * 0.1
    _, scheduled = schedule_times(SegmentSchedule(3, -1, 1), tick.total_s, 2)
    assert scheduled + _exposed(3, -1, 1, 2, tick) == pytest.approx(forward + backward)
    # As many micro-batches as stages: each comes back as the last one has left, but for transfers.
    assert _exposed(3, -1, 2, 2, tick) == pytest.approx(2 * (0.3 + 2 * 0.4))
    # One more: its task covers them. What is left is the first micro-batch's way to stage 1.
    assert _exposed(3, -1, 3, 2, tick) == pytest.approx(2 * 0.3)
    # Or covers a part: 0.25 of 0.4 s forward, 0.4 of them (2 x 0.25 would do more) backward.
    brief = Tick(0.25, 0.5, 0.0, 0.0, 0.0)
    assert _exposed(3, -1, 3, 2, brief) == pytest.approx(2 * 0.3 + 2 * 0.15)
    # Groups of 2 and 1: memory is waited for once, the way to stage 1 is taken twice.
    assert _exposed(3, 2, 1, 2, tick) == pytest.approx(2 * (0.4 + 2 * 0.3))


def test_pipelines_of_segments_pay_for_their_transfers():
    config = _recipe("7b_rmt", "train.global_batch_size=64")  # 2 micro-batches on 4 stages
    plan = make_plan(config, 256, H100, VOCAB)
    sent, memory = 1024 * 4096 * 2 / 2, 16 * 4096 * 2  # under SP, whole
    hidden_s, memory_s = (15e-6 + size / (0.8 * 50e9) for size in (sent, memory))
    waits = 7 * (3 * hidden_s + memory_s) + 3 * hidden_s
    assert plan.traffic["pipeline"].exposed_s == pytest.approx(2 * waits)
    assert plan.step_s > plan.scheduled_s + 2 * waits


def test_tied_embedding_is_added_up_between_the_ends():
    """32,000 x 4,096 fp32 gradients over TP 2, between nodes; nothing on one stage."""
    plan = make_plan(_recipe("7b_rmt"), 256, H100, VOCAB)
    traffic = plan.traffic["embedding"]
    assert traffic.bytes_sent == 32000 / 2 * 4096 * 4
    assert traffic.exposed_s == pytest.approx(2 * 15e-6 + traffic.bytes_sent / (0.8 * 50e9))
    rest = sum(plan.traffic[kind].exposed_s for kind in ("pipeline", "gradients", "parameters"))
    expected = plan.scheduled_s + rest + traffic.exposed_s + plan.optimizer_s
    assert plan.step_s == pytest.approx(expected)
    whole = make_plan(_recipe("7b"), 256, H100, VOCAB)
    assert whole.traffic["embedding"].bytes_sent == whole.traffic["embedding"].exposed_s == 0


def test_casts_to_fp8_take_their_bytes():
    """Arithmetic that took no time would leave the casts: FP8 must be slower then, not faster."""
    gpu = dataclasses.replace(H100, bf16_tflops=1e9, memory_tb_per_s=0.1)
    bandwidth = 0.8 * 0.1e12
    fp8, bf16 = _recipe("7b"), _recipe("7b", "fp8.recipe=none")
    ticks = [StageClock(config, VOCAB, gpu).tick(0) for config in (fp8, bf16)]
    rows, width, ffn = 2 * 1024, 4096, 6144
    # Read twice, written in two orientations: inputs of four products, gradients of their results.
    inputs, gradients = 3 * width + ffn, (3 + 1 + 1) * width + 2 * ffn
    once = 46 * rows * (2 + 2 + 1 + 1) / bandwidth
    assert ticks[0].forward_s - ticks[1].forward_s == pytest.approx(once * inputs)
    assert ticks[0].backward_s - ticks[1].backward_s == pytest.approx(once * gradients)
    plans = [make_plan(config, 256, gpu, VOCAB) for config in (fp8, bf16)]
    weights = 46 * (4 * width**2 + 3 * width * ffn)  # once a step
    assert plans[0].optimizer_s - plans[1].optimizer_s == pytest.approx(6 * weights / bandwidth)


def test_page_says_how_to_read_its_times():
    """Nobody should buy GPU hours by an upper bound of speed, or by an overlap not modelled."""
    plan = make_plan(_recipe("7b_rmt"), 256, H100, VOCAB)
    text = page(plan, other_recompute(plan))
    assert ESTIMATE.endswith("speeds are upper bounds.")
    assert ESTIMATE in text
    assert "real runs are slower" in " ".join(text.split())
    assert "tp_comm_overlap" not in text
    overlap = make_plan(_recipe("7b_rmt", "parallel.tp_comm_overlap=true"), 256, H100, VOCAB)
    text = page(overlap, other_recompute(overlap))
    assert "parallel.tp_comm_overlap: planned as without it" in text
    assert max(map(len, text.splitlines())) <= 100
