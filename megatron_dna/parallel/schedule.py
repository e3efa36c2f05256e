"""Forward and backward over the micro-batches of a step, and the step's sums over all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_dna.config import Config
from megatron_dna.data.loader import Batch
from megatron_dna.parallel.topology import Topology, sum_over_world


@dataclass(frozen=True)
class StepResult:
    """Sums over the global batch, the same on every rank."""

    loss_sum: float
    """Cross-entropy of all masked tokens, in nats."""
    num_masked: int
    """Masked tokens."""
    num_correct: int
    """Masked tokens whose likeliest id is the right one; counted in evaluation only."""
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


def run_step(
    model: DistributedDataParallel,
    batches: Iterator[Batch],
    config: Config,
    topology: Topology,
    token_lengths: Tensor,
    num_microbatches: int,
    forward_only: bool = False,
) -> StepResult:
    """Compute `num_microbatches` micro-batches and leave the gradients of the mean loss in place.

    The loss of a step is the sum over all masked tokens of the global batch divided by their
    number. Megatron-Core's schedules do the work: no pipelining, or 1F1B over the stages.

    Args:
        model: this process's wrapped stage.
        batches: this data-parallel rank's micro-batches; the same on all its TP and PP ranks.
        config: the run's options.
        topology: this process's place.
        token_lengths: [vocab], bases in each token.
        num_microbatches: micro-batches to take.
        forward_only: evaluate instead of train.
    """
    sums = torch.zeros(6, dtype=torch.float64, device=token_lengths.device)
    get_forward_backward_func()(
        forward_step_func=partial(_forward_step, sums=sums, token_lengths=token_lengths),
        data_iterator=batches,
        model=[model],
        num_microbatches=num_microbatches,
        seq_length=config.seq_length,
        micro_batch_size=config.train.micro_batch_size,
        forward_only=forward_only,
    )
    if not topology.counts_loss:
        sums.zero_()
    loss_sum, *counts = sum_over_world(sums).tolist()
    return StepResult(loss_sum, *(round(count) for count in counts))


def _forward_step(
    batches: Iterator[Batch], model: torch.nn.Module, *, sums: Tensor, token_lengths: Tensor
) -> tuple[Tensor, Any]:
    """Megatron's forward step: the stage's output, and how the last stage turns it into a loss."""
    batch = next(batches)
    device = token_lengths.device
    # The plain encoder reads windows of one segment.
    mask = None if batch.attention_mask is None else batch.attention_mask[0].to(device)
    labels = batch.labels[0].to(device)
    loss_mask = batch.loss_mask[0].to(device)
    output = model(
        batch.input_ids[0].to(device),
        mask,
        batch.masked_positions[0].to(device),
        labels if model.training else None,
    )

    def loss(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        losses, correct = output, torch.zeros_like(loss_mask)
        if not model.training:
            losses = F.cross_entropy(
                output.float().flatten(0, 1), labels.flatten(), reduction="none"
            ).view_as(loss_mask)
            correct = (output.argmax(-1) == labels) * loss_mask
        loss_sum = (losses * loss_mask).sum()
        num_masked = loss_mask.sum()
        masked_bases = (token_lengths[labels] * loss_mask).sum()
        counted = torch.stack((loss_sum.detach(), num_masked, correct.sum(), masked_bases))
        sums[:4] += counted.double()
        sums[4:] += torch.tensor([batch.num_tokens, batch.num_bases], device=device)
        return loss_sum, num_masked.int(), {}

    return output, loss
