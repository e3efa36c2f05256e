"""The segment schedule against a clock: stages are as busy as the formula says."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from megatron_dna.config import Config, load_config
from megatron_dna.data.loader import Batch
from megatron_dna.model.encoder import build_model
from megatron_dna.parallel import engine, topology
from megatron_dna.parallel.engine import SegmentEngine, StageResult
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.schedule import SegmentSchedule
from megatron_dna.parallel.step import run_step
from megatron_dna.parallel.wrap import wrap_model
from tests.dist.harness import run_ranks

TOLERANCE = 0.9  # of the formula's share
ATTEMPTS = 8  # a busy machine may spoil some, a wrong schedule spoils all
TICK = 0.05  # seconds


def _good(shares: list[float], wanted: float) -> bool:
    """Whether the last attempt was good on every stage."""
    worst = torch.tensor(shares[-1] if shares else 0.0)
    torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MIN)
    return worst.item() >= wanted


class _Sleep(torch.autograd.Function):
    """Compute of known length, forward and backward."""

    @staticmethod
    def forward(ctx, hidden):
        time.sleep(TICK)
        return hidden.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(TICK)
        return gradient.clone()


def _sleeping_stages(num_segments: int, depth: int, num_microbatches: int) -> list[float]:
    """Busy shares of this stage, by attempt; the last is good if one is."""
    config = load_config(None, ["parallel.pipeline_model_parallel_size=4", "model.num_layers=4"])
    ring = topology.initialize(config, setup_platform("cpu")).ring
    schedule = SegmentSchedule(num_segments, depth, num_microbatches)
    shape = (4, 2, 8)

    def forward(task, hidden, memory):
        if ring.rank == 0:
            hidden = torch.ones(shape, requires_grad=True)
            hidden = hidden if memory is None else hidden + memory
        output = _Sleep.apply(hidden)
        if ring.rank < ring.size - 1:
            return StageResult(output, None, None)
        return StageResult(None, output.sum(), output * 0.5)

    shares: list[float] = []
    while len(shares) < ATTEMPTS and not _good(shares, TOLERANCE * schedule.busy_share(4)):
        torch.distributed.barrier()
        start = time.monotonic()
        SegmentEngine(
            schedule, ring, forward, lambda _: shape, shape, torch.float32, torch.device("cpu")
        ).run(forward_only=False)
        torch.distributed.barrier()
        busy = 2 * TICK * num_segments * num_microbatches
        shares.append(busy / (time.monotonic() - start))
    topology.shutdown()
    return shares


@pytest.mark.parametrize(
    ("segments", "depth", "num_microbatches"), [(3, -1, 4), (3, -1, 8), (3, -1, 2), (4, 2, 6)]
)
def test_sleeping_stages_are_as_busy_as_the_formula(segments, depth, num_microbatches):
    """More waiting than fill and drain means that a send or a memory holds a stage up."""
    share = SegmentSchedule(segments, depth, num_microbatches).busy_share(4)
    for measured in run_ranks(_sleeping_stages, 4, segments, depth, num_microbatches):
        assert measured[-1] >= TOLERANCE * share, measured


SEGMENTS, MICRO_BATCHES, VOCAB, SEQ = 5, 2, 90, 248
SHAPE = [
    "model.num_layers=4", "model.hidden_size=256", "model.ffn_hidden_size=512",
    "model.num_attention_heads=4", f"data.segment_size={SEQ}", "train.precision=fp32",
    "train.micro_batch_size=4", f"train.global_batch_size={4 * MICRO_BATCHES}",
    "memory.num_mem_tokens=8", f"memory.max_n_segments={SEGMENTS}", "parallel.platform=cpu",
    "parallel.pipeline_model_parallel_size=2",
]  # fmt: skip


def _windows(config: Config) -> Iterator[Batch]:
    shape = (SEGMENTS, config.train.micro_batch_size)
    generator = torch.Generator().manual_seed(1)
    while True:
        yield Batch(
            input_ids=torch.randint(6, VOCAB, (*shape, SEQ), generator=generator),
            attention_mask=None,
            masked_positions=torch.arange(1, 4).expand(*shape, 3),
            labels=torch.full((*shape, 3), 7),
            loss_mask=torch.ones(*shape, 3),
            num_tokens=torch.ones(shape),
            num_bases=torch.ones(shape),
            samples=torch.arange(shape[1]),
        )


def _computing_stages() -> list[float]:
    """Busy shares of this stage of a real model, by attempt: seconds in compute, of all."""
    config = load_config(None, SHAPE)
    place = topology.initialize(config, setup_platform("cpu"))
    model = wrap_model(
        build_model(config, VOCAB, place.groups, "local", torch.device("cpu")), config.parallel
    )
    computing = 0.0

    def timed(function):
        def call(*args, **kwargs):
            nonlocal computing
            start = time.monotonic()
            result = function(*args, **kwargs)
            computing += time.monotonic() - start
            return result

        return call

    # The stage's three entries into torch; what an engine waits for lies outside.
    model.forward = timed(model.forward)
    engine.custom_backward = timed(engine.custom_backward)
    torch.autograd.backward = timed(torch.autograd.backward)
    run_step(model, _windows(config), config, place, torch.ones(VOCAB).long(), MICRO_BATCHES)
    schedule = SegmentSchedule(SEGMENTS, -1, MICRO_BATCHES)
    shares: list[float] = []
    while len(shares) < ATTEMPTS and not _good(shares, TOLERANCE * schedule.busy_share(2)):
        model.zero_grad_buffer()
        torch.distributed.barrier()
        computing, start = 0.0, time.monotonic()
        run_step(model, _windows(config), config, place, torch.ones(VOCAB).long(), MICRO_BATCHES)
        shares.append(computing / (time.monotonic() - start))
    topology.shutdown()
    return shares


def test_computing_stages_are_as_busy_as_the_formula():
    """Transfers and waits of a real model must hide behind its compute."""
    share = SegmentSchedule(SEGMENTS, -1, MICRO_BATCHES).busy_share(2)
    for measured in run_ranks(_computing_stages, 2):
        assert measured[-1] >= TOLERANCE * share, measured
