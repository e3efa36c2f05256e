"""Forward and backward over the micro-batches of a step, and the step's sums over all ranks."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_dna.config import Config
from megatron_dna.data.loader import Batch
from megatron_dna.parallel.engine import SegmentEngine, StageResult
from megatron_dna.parallel.schedule import SegmentSchedule, Task
from megatron_dna.parallel.topology import Topology, sum_over_world


@dataclass(frozen=True)
class StepResult:
    """Sums over the global batch, the same on every rank."""

    loss_sum: float
    """Cross-entropy of all masked tokens, in nats."""
    num_masked: int
    """Masked tokens."""
    num_correct: int
    """Masked tokens whose likeliest id is the right one; in training only counted where asked."""
    num_masked_bases: int
    """Bases that the masked tokens spell."""
    num_tokens: int
    """Content tokens read."""
    num_bases: int
    """Bases that the content tokens spell."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy of a masked token, in nats."""
        return self.loss_sum / max(1, self.num_masked)


class StageOutput(Protocol):
    """What the model's forward returns; see `model.encoder.StageOutput`."""

    hidden: Tensor | None
    losses: Tensor | None
    logits: Tensor | None
    predictions: Tensor | None
    new_memory: Tensor | None


def run_step(
    model: DistributedDataParallel,
    batches: Iterator[Batch],
    config: Config,
    topology: Topology,
    token_lengths: Tensor,
    num_microbatches: int,
    forward_only: bool = False,
    noise: MemoryNoise | None = None,
    count_correct: bool = False,
) -> StepResult:
    """Compute `num_microbatches` micro-batches and leave the gradients of the mean loss in place.

    The loss of a step is the sum over all masked tokens of the global batch divided by their
    number. Windows of one segment go through Megatron-Core's schedules (no pipelining, or 1F1B),
    longer ones through the segment schedule.

    Args:
        model: this process's wrapped stage.
        batches: this data-parallel rank's micro-batches; the same on all its other ranks.
        config: the run's options.
        topology: this process's place.
        token_lengths: [vocab], bases in each token.
        num_microbatches: micro-batches to take.
        forward_only: evaluate instead of train.
        noise: added to new memory before its update.
        count_correct: count correct predictions in training too.
    """
    # Memory is made by the last stage.
    noise = noise if topology.is_last_stage else None
    step = _Step(model, token_lengths, forward_only, noise, count_correct, topology.cp_rank == 0)
    device = token_lengths.device
    windows = [_on_device(batch, device) for batch in itertools.islice(batches, num_microbatches)]
    num_segments = windows[0].input_ids.shape[0]
    if num_segments == 1:
        get_forward_backward_func()(
            forward_step_func=step.megatron_forward_step,
            data_iterator=iter(windows),
            model=[model],
            num_microbatches=num_microbatches,
            seq_length=config.seq_length,
            micro_batch_size=windows[0].input_ids.shape[1],
            forward_only=forward_only,
        )
    else:
        _run_segments(step, windows, config, topology)
    totals = step.totals()
    sums = totals if topology.counts_loss else torch.zeros_like(totals)
    loss_sum, *counts = sum_over_world(sums).tolist()
    return StepResult(loss_sum, *(round(count) for count in counts))


def _on_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` with what the model reads on the device; counts and sample numbers stay."""
    mask = batch.attention_mask
    return replace(
        batch,
        input_ids=_send(batch.input_ids, device),
        attention_mask=None if mask is None else _send(mask, device),
        masked_positions=_send(batch.masked_positions, device),
        labels=_send(batch.labels, device),
        loss_mask=_send(batch.loss_mask, device),
    )


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on the device, through page-locked memory: nobody waits for what is queued there."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


MemoryNoise = Callable[[Batch, int], Tensor]
"""(window, segment) -> noise [M, micro_batch, hidden]."""


class _Step:
    """One segment of one micro-batch through this stage, and what is counted on the way."""

    def __init__(
        self,
        model: DistributedDataParallel,
        token_lengths: Tensor,
        forward_only: bool,
        noise: MemoryNoise | None,
        count_correct: bool,
        counts_masked: bool,
    ) -> None:
        """`counts_masked`: whether this is the one rank of its CP group that Megatron counts."""
        self.model = model
        self.token_lengths = token_lengths
        self.forward_only = forward_only
        self.noise = noise
        self.count_correct = count_correct
        self.counts_masked = counts_masked
        self.sums = torch.zeros(4, dtype=torch.float64, device=token_lengths.device)
        self.num_tokens = self.num_bases = 0

    def totals(self) -> Tensor:
        """What was counted, in the order of StepResult."""
        read = torch.tensor([self.num_tokens, self.num_bases], dtype=torch.float64)
        return torch.cat((self.sums, read.to(self.sums.device)))

    def forward(self, batch: Batch, segment: int, memory: Tensor | None) -> StageOutput:
        """The stage's output for `segment` of `batch`."""
        mask = batch.attention_mask
        noise = None
        # What the last segment leaves is not used.
        if self.noise is not None and segment < len(batch.input_ids) - 1:
            noise = _send(self.noise(batch, segment), self.sums.device)
        return self.model(
            batch.input_ids[segment],
            None if mask is None else mask[segment],
            batch.masked_positions[segment],
            None if self.forward_only else batch.labels[segment],
            memory=memory,
            noise=noise,
            predict=self.count_correct,
        )

    def loss_sum(self, output: StageOutput, batch: Batch, segment: int) -> tuple[Tensor, Tensor]:
        """Sum of the segment's losses and number of its masked tokens; adds to the counts.

        Every CP rank has all losses. Megatron adds up the numbers of masked tokens over DP and CP.
        """
        labels, loss_mask = batch.labels[segment], batch.loss_mask[segment]
        losses, predictions = output.losses, output.predictions
        if output.logits is not None:
            losses = F.cross_entropy(
                output.logits.float().flatten(0, 1), labels.flatten(), reduction="none"
            ).view_as(loss_mask)
            predictions = output.logits.argmax(-1)
        correct = torch.zeros_like(loss_mask)
        if predictions is not None:
            correct = (predictions == labels) * loss_mask
        assert losses is not None
        loss_sum = (losses * loss_mask).sum()
        num_masked = loss_mask.sum()
        masked_bases = (self.token_lengths[labels] * loss_mask).sum()
        counted = torch.stack((loss_sum.detach(), num_masked, correct.sum(), masked_bases))
        self.sums += counted.double()
        self.num_tokens += int(batch.num_tokens[segment].sum())
        self.num_bases += int(batch.num_bases[segment].sum())
        return loss_sum, (num_masked * self.counts_masked).int()

    def megatron_forward_step(
        self, batches: Iterator[Batch], model: torch.nn.Module
    ) -> tuple[Tensor | None, Any]:
        """Megatron's forward step: the stage's output, and how the last stage makes it a loss."""
        batch = next(batches)
        output = self.forward(batch, 0, None)

        def loss(_: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            return *self.loss_sum(output, batch, 0), {}

        return output.hidden, loss


def _run_segments(step: _Step, windows: list[Batch], config: Config, topology: Topology) -> None:
    """The segment schedule over all windows, then Megatron's finalisation of the gradients."""
    num_segments, micro_batch, _ = windows[0].input_ids.shape
    num_masked = torch.zeros((), dtype=torch.int, device=step.token_lengths.device)

    def forward(task: Task, hidden: Tensor | None, memory: Tensor | None) -> StageResult:
        batch = windows[task.micro_batch]
        if hidden is not None:
            step.model.module.set_input_tensor(hidden)
        output = step.forward(batch, task.segment, memory)
        loss_sum = None
        if topology.is_last_stage:
            loss_sum, masked = step.loss_sum(output, batch, task.segment)
            num_masked.add_(masked)
        return StageResult(output.hidden, loss_sum, output.new_memory)

    mem, width = config.memory.num_mem_tokens, config.model.hidden_size
    engine = SegmentEngine(
        SegmentSchedule(num_segments, config.memory.bptt_depth, len(windows)),
        topology.ring,
        forward,
        hidden_shape=lambda _: (config.residual_length, micro_batch, width),
        memory_shape=(mem, micro_batch, width),
        dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
        device=step.token_lengths.device,
    )
    megatron = step.model.config
    # Transformer Engine keeps FP8 copies of the weights from here on until the next update. On
    # windows of one segment Megatron's schedules say so.
    step.model.set_is_first_microbatch()
    if step.forward_only:
        with torch.no_grad():
            engine.run(forward_only=True)
        return
    # Gradients are reduced with the last backward task; until then they only add up.
    no_sync = contextlib.ExitStack()
    if megatron.no_sync_func is not None:
        no_sync.enter_context(megatron.no_sync_func())
    engine.run(forward_only=False, before_last=no_sync.close)
    megatron.finalize_model_grads_func([step.model], num_masked)
