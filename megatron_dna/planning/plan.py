"""What a run needs and how long it takes, computed before it is paid for.

Nothing here is measured on a GPU: memory follows what the code allocates (held to that by tests
on CPU), time follows a roofline and an alpha-beta model with the constants of `gpus`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron_dna.config import Config
from megatron_dna.model.encoder import padded_vocab_size
from megatron_dna.parallel.schedule import SegmentSchedule
from megatron_dna.planning.compute import StageClock, Tick, context_bytes
from megatron_dna.planning.gpus import (
    FP8_CAST_BYTES,
    MEMORY_EFFICIENCY,
    USABLE_MEMORY,
    Gpu,
    check_fp8,
)
from megatron_dna.planning.links import Link
from megatron_dna.planning.memory import StageMemory, stage_memory, weight_bytes
from megatron_dna.planning.parameters import fp8_parameters, stage_parameters, total_parameters
from megatron_dna.training.activations import item_bytes
from megatron_dna.training.flops import segment_flops
from megatron_dna.validation import data_parallel_size, validate


@dataclass(frozen=True)
class Traffic:
    """What one kind of communication costs a rank in a step."""

    bytes_sent: float
    total_s: float
    exposed_s: float
    """What of it no computation hides."""


@dataclass(frozen=True)
class Plan:
    """The estimate of one run at one layout."""

    config: Config
    gpu: Gpu
    num_gpus: int
    dp: int
    vocab_size: int
    tokens: int
    """Content tokens to train on."""
    parameters: int
    stages: list[StageMemory]
    """Bytes a rank, by pipeline stage."""
    num_microbatches: int
    flops_per_token: float
    """Forward and backward pass, recomputation left out."""
    tokens_per_step: int
    traffic: dict[str, Traffic]
    """By kind: `tensor`, `context`, `pipeline`, `gradients`, `embedding`, `parameters`."""
    work_s: float
    """Of the busiest stage in a step, exposed communication of TP and CP included."""
    scheduled_s: float
    """The same and the pipeline's bubble."""
    optimizer_s: float
    step_s: float

    @property
    def memory(self) -> StageMemory:
        """Of the fullest stage."""
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def fits(self) -> bool:
        """Whether every rank stays within the usable share of its GPU's memory."""
        return self.memory.total <= USABLE_MEMORY * self.gpu.memory_gib * 2**30

    @property
    def busy_share(self) -> float:
        """Of the pipeline; the rest is its bubble."""
        return self.work_s / self.scheduled_s

    @property
    def tokens_per_s(self) -> float:
        """Content tokens a second, over all GPUs."""
        return self.tokens_per_step / self.step_s

    @property
    def mfu(self) -> float:
        """Model FLOPs a second over the peak of all GPUs at bf16 (under FP8 too) or fp32."""
        peak = self.num_gpus * self.gpu.peak_flops(self.config.train.precision)
        return self.flops_per_token * self.tokens_per_s / peak

    @property
    def days(self) -> float:
        """Of training on `tokens`; evaluation, checkpoints and faults left out."""
        return self.tokens / self.tokens_per_s / 86400

    @property
    def gpu_hours(self) -> float:
        """What is paid for."""
        return 24 * self.days * self.num_gpus


def tokens_per_step(config: Config) -> int:
    """Content tokens ([CLS], [SEP] and memory left out) of a global batch."""
    content = config.memory.max_n_segments * (config.data.segment_size - 2)
    return config.train.global_batch_size * content


def make_plan(
    config: Config, num_gpus: int, gpu: Gpu, vocab_size: int, tokens: int | None = None
) -> Plan:
    """Estimate the run; windows are of memory.max_n_segments, as after the curriculum.

    Args:
        config: the run's options.
        num_gpus: world size.
        gpu: what it runs on.
        vocab_size: ids of the tokenizer.
        tokens: to train on; None for what train.train_iters steps read.

    Raises:
        ConfigError: the options do not fit each other or the number of GPUs.
    """
    validate(config, num_gpus, files=False)
    check_fp8(config, gpu)
    dp = data_parallel_size(config, num_gpus)
    pp = config.parallel.pipeline_model_parallel_size
    step_tokens = tokens_per_step(config)
    count = config.train.global_batch_size // (config.train.micro_batch_size * dp)
    schedule = SegmentSchedule(config.memory.max_n_segments, config.memory.bptt_depth, count)
    clock = StageClock(config, vocab_size, gpu)
    # Layers are alike but for local and global attention: the busiest stage may be any.
    ticks = [clock.tick(stage) for stage in range(pp)]
    slowest = max(ticks, key=lambda tick: tick.total_s)
    work_s, scheduled_s = schedule_times(schedule, slowest.total_s, pp)
    rank = _RankTraffic(config, vocab_size, gpu, dp, schedule)
    traffic = {
        "tensor": rank.tensor(slowest),
        "context": rank.context(slowest),
        "pipeline": rank.pipeline(slowest),
        "gradients": rank.gradients(slowest),
        "embedding": rank.embedding(),
        "parameters": rank.parameters(slowest),
    }
    inside = ("tensor", "context")
    outside = sum(part.exposed_s for kind, part in traffic.items() if kind not in inside)
    optimizer_s = _optimizer_s(config, vocab_size, gpu, dp)
    flops = 3 * config.train.global_batch_size * config.memory.max_n_segments
    return Plan(
        config=config,
        gpu=gpu,
        num_gpus=num_gpus,
        dp=dp,
        vocab_size=vocab_size,
        tokens=config.train.train_iters * step_tokens if tokens is None else tokens,
        parameters=total_parameters(config, vocab_size),
        stages=[stage_memory(config, vocab_size, stage, dp, schedule) for stage in range(pp)],
        num_microbatches=count,
        flops_per_token=flops * segment_flops(config, vocab_size) / step_tokens,
        tokens_per_step=step_tokens,
        traffic=traffic,
        work_s=work_s,
        scheduled_s=scheduled_s,
        optimizer_s=optimizer_s,
        step_s=scheduled_s + outside + optimizer_s,
    )


def other_recompute(plan: Plan) -> Plan:
    """`plan` with full recomputation where it has none, without where it has."""
    train = plan.config.train
    other = None if train.recompute_granularity == "full" else "full"
    train = dataclasses.replace(train, recompute_granularity=other)
    config = dataclasses.replace(plan.config, train=train)
    return make_plan(config, plan.num_gpus, plan.gpu, plan.vocab_size, plan.tokens)


def schedule_times(
    schedule: SegmentSchedule, tick_s: float, num_stages: int
) -> tuple[float, float]:
    """Seconds that a stage works in a step, and seconds that the schedule takes.

    Args:
        schedule: order of work; over one segment it has as many ticks as Megatron's 1F1B.
        tick_s: forward and backward pass of one segment of one micro-batch.
        num_stages: PP.
    """
    work = scheduled = 0.0
    for group in schedule.groups():
        part = SegmentSchedule(len(group), -1, schedule.num_microbatches)
        busy = tick_s * len(group) * schedule.num_microbatches
        work += busy
        scheduled += busy / part.busy_share(num_stages)
    return work, scheduled


def exposed_transfers_s(
    schedule: SegmentSchedule, tick: Tick, num_stages: int, hidden_s: float, memory_s: float
) -> float:
    """Seconds that transfers between stages add to a step of the segment schedule.

    Sends are posted ahead, so stages wait in two places only, in each direction, whose task takes
    d. A group's first micro-batch crosses P - 1 links before the last stage has work: (P - 1) h.
    And a segment starts when the memory of the one before is back, after P d + T with
    T = (P - 1) h + m; the other micro-batches keep the stage busy for N d, of which P d cover tasks
    and the rest covers T. So a group of W segments adds

        (P - 1) h + (W - 1) max(0, T - max(0, N - P) d)

    Args:
        schedule: order of work, over more than one segment.
        tick: d forward and backward.
        num_stages: P.
        hidden_s: h, of hidden states from a stage to the next.
        memory_s: m, of memory from the last stage to the first.
    """
    loop = (num_stages - 1) * hidden_s + memory_s
    spare = max(0, schedule.num_microbatches - num_stages)
    exposed = 0.0
    for task_s in (tick.forward_s, tick.backward_s):
        wait = max(0.0, loop - spare * task_s)
        for group in schedule.groups():
            exposed += (num_stages - 1) * hidden_s + (len(group) - 1) * wait
    return exposed


class _RankTraffic:
    """What a rank of the fullest stage sends in a step."""

    def __init__(
        self, config: Config, vocab_size: int, gpu: Gpu, dp: int, schedule: SegmentSchedule
    ) -> None:
        parallel = config.parallel
        self.config, self.parallel, self.schedule = config, parallel, schedule
        self.vocab_size = vocab_size
        self.tp = parallel.tensor_model_parallel_size
        self.pp = parallel.pipeline_model_parallel_size
        self.tasks = schedule.num_segments * schedule.num_microbatches
        self.item = item_bytes(config)
        stages = range(self.pp)
        self.stage_parameters = max(stage_parameters(config, vocab_size, one) for one in stages)
        self.stage_weights = max(weight_bytes(config, vocab_size, one) for one in stages)
        # Megatron's order of ranks: TP next to each other, then CP, DP, PP. CP ranks are replicas.
        cp = parallel.context_parallel_size
        self.within = Link(gpu, self.tp, 1)
        self.sequence = Link(gpu, cp, self.tp)
        self.replicas = Link(gpu, cp * dp, self.tp)
        self.stages = Link(gpu, self.pp, self.tp * cp * dp)
        micro_batch = config.train.micro_batch_size * config.model.hidden_size * self.item
        self.hidden = micro_batch * config.context_length
        self.memory = micro_batch * config.memory.num_mem_tokens

    def tensor(self, tick: Tick) -> Traffic:
        """TP's all-gathers, reduce-scatters or all-reduces inside of layers."""
        if self.tp == 1:
            return Traffic(0.0, 0.0, 0.0)
        layers = self.config.model.num_layers // self.pp
        full = self.config.train.recompute_granularity == "full"
        # Each all-reduce is a gather and a scatter; SP gathers the inputs again for the backward.
        count = (10 if self.parallel.sequence_parallel else 8) + (4 if full else 0)
        sent = layers * count * self.within.gather_bytes(self.hidden)
        return Traffic(
            self.tasks * sent, self.tasks * tick.communication_s, self.tasks * tick.exposed_s
        )

    def context(self, tick: Tick) -> Traffic:
        """CP's gathers of keys and values, and the sums of their gradients."""
        layers = self.config.model.num_layers // self.pp
        count = 3 if self.config.train.recompute_granularity else 2
        sent = layers * count * self.sequence.gather_bytes(context_bytes(self.config))
        seconds = self.tasks * tick.context_s
        return Traffic(self.tasks * sent, seconds, seconds)

    def pipeline(self, tick: Tick) -> Traffic:
        """Hidden states and memory between stages, and their gradients.

        The segment engine posts its transfers ahead and most hide; Megatron's 1F1B waits for all.
        """
        if self.pp == 1:
            return Traffic(0.0, 0.0, 0.0)
        sharded = self.tp if self.parallel.sequence_parallel else 1
        one = self.hidden / sharded
        hidden_s = self.stages.send_s(one)
        total = 2 * self.tasks * hidden_s
        if self.schedule.num_segments == 1:
            return Traffic(2 * self.tasks * one, total, total)
        memory_s = self.stages.send_s(self.memory)
        exposed = exposed_transfers_s(self.schedule, tick, self.pp, hidden_s, memory_s)
        return Traffic(2 * self.tasks * (one + self.memory), total, exposed)

    def embedding(self) -> Traffic:
        """The tied embedding's gradient in fp32, added up between first and last stage."""
        if self.pp == 1:
            return Traffic(0.0, 0.0, 0.0)
        model = self.config.model
        rows = padded_vocab_size(self.vocab_size, model.make_vocab_size_divisible_by) / self.tp
        total = 4.0 * rows * model.hidden_size
        # Between two ranks: each sends half of it twice.
        seconds = 2 * self.stages.send_s(total / 2)
        return Traffic(total, seconds, seconds)

    def gradients(self, tick: Tick) -> Traffic:
        """The reduction over DP and CP in fp32; overlapped, behind the last backward task."""
        total = 4.0 * self.stage_parameters
        sent, seconds = self.replicas.gather_bytes(total), self.replicas.gather_s(total)
        if not self.parallel.use_distributed_optimizer:
            sent, seconds = 2 * sent, 2 * seconds
        covered = tick.backward_s if self.parallel.overlap_grad_reduce else 0.0
        return Traffic(sent, seconds, max(0.0, seconds - covered))

    def parameters(self, tick: Tick) -> Traffic:
        """The distributed optimizer's gather; overlapped, behind the first forward task."""
        if not self.parallel.use_distributed_optimizer:
            return Traffic(0.0, 0.0, 0.0)
        total = self.stage_weights
        seconds = self.replicas.gather_s(total)
        covered = tick.forward_s if self.parallel.overlap_param_gather else 0.0
        return Traffic(self.replicas.gather_bytes(total), seconds, max(0.0, seconds - covered))


def _optimizer_s(config: Config, vocab_size: int, gpu: Gpu, dp: int) -> float:
    """Seconds of gradient norm, Adam and FP8 copies: they read and write, and hardly compute."""
    stages = range(config.parallel.pipeline_model_parallel_size)
    held = max(stage_parameters(config, vocab_size, stage) for stage in stages)
    replicas = dp * config.parallel.context_parallel_size
    share = held / (replicas if config.parallel.use_distributed_optimizer else 1)
    # Main weight and two moments read and written; gradient read twice; the weight; its zeroing.
    moved = share * (6 * 4 + 2 * 4 + item_bytes(config)) + 4 * held
    if config.fp8.is_on:
        copied = max(fp8_parameters(config, stage) for stage in stages)
        moved += FP8_CAST_BYTES[config.fp8.recipe] * copied
    return moved / (1e12 * MEMORY_EFFICIENCY * gpu.memory_tb_per_s)
