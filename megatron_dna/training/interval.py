"""The sums between two lines of training metrics, and the lines themselves."""

from __future__ import annotations

import logging
import math
import statistics

import torch
import torch.distributed as dist

from megatron_dna.checkpoint.state import TrainState
from megatron_dna.parallel.step import StepResult
from megatron_dna.training.metrics import throughput
from megatron_dna.training.session import Session

logger = logging.getLogger(__name__)


def count_step(
    state: TrainState, result: StepResult, num_samples: int, counts_correct: bool, is_skipped: bool
) -> None:
    """Add a step to the run's counts; the loss of a skipped one is in no mean."""
    interval = state.interval
    state.iteration += 1
    state.consumed_samples += num_samples
    state.consumed_tokens += result.num_tokens
    state.consumed_bases += result.num_bases
    interval.num_tokens += result.num_tokens
    interval.num_bases += result.num_bases
    if is_skipped:
        return
    interval.loss_sum += result.loss_sum
    interval.num_masked += result.num_masked
    if counts_correct:
        interval.num_correct += result.num_correct
        interval.num_predicted += result.num_masked


def interval_metrics(
    session: Session, state: TrainState, grad_norm: float, rate: float
) -> dict[str, float]:
    """Metrics of the interval that ends here, and its line in the log.

    Args:
        session: of the run.
        state: its counts.
        grad_norm: of the last step.
        rate: the last step's learning rate.
    """
    interval = state.interval
    rates = throughput(
        session.config,
        session.tokenizer.vocab_size,
        session.platform.description,
        session.place.world_size,
        num_segments=interval.num_segments,
        num_tokens=interval.num_tokens,
        num_bases=interval.num_bases,
        seconds=interval.seconds,
    )
    loss = interval.loss_sum / interval.num_masked if interval.num_masked else math.nan
    means = {"train/loss": loss, "train/grad_norm": grad_norm}  # NaN where all steps were skipped
    record = {
        **{name: value for name, value in means.items() if math.isfinite(value)},
        "train/lr": rate,
        "train/consumed_samples": state.consumed_samples,
        "train/consumed_tokens": state.consumed_tokens,
        **rates,
    }
    if interval.num_predicted:
        record["train/accuracy"] = interval.num_correct / interval.num_predicted
    if state.guard.skipped:
        record["train/skipped_steps"] = state.guard.skipped
    logger.info(
        "iteration %d/%d | loss %.4f | grad norm %.3f | lr %.3e | %.0f tokens/s | "
        "%.0f bases/s | %.3f TFLOP/s a device",
        state.iteration, session.config.train.train_iters, loss, grad_norm, rate,
        rates["train/tokens_per_second"], rates["train/bases_per_second"],
        rates["train/tflops_per_device"],
    )  # fmt: skip
    return record


def report_stragglers(session: Session, own_seconds: float) -> None:
    """Say in the log which rank is the slowest. Every rank calls this.

    Args:
        session: of the run.
        own_seconds: how long this rank's part of the last step took, until its gradients were
            ready; waiting for others within its pipeline or tensor-parallel group counts.
    """
    place = session.place
    if place.world_size == 1:
        return
    seconds = torch.zeros(place.world_size, dtype=torch.float64, device=session.platform.device)
    seconds[place.rank] = own_seconds
    dist.all_reduce(seconds)
    by_rank: list[float] = seconds.tolist()
    slowest = max(range(len(by_rank)), key=by_rank.__getitem__)
    logger.info(
        "slowest rank %d: %.3f s to the gradients of its last step; median %.3f s",
        slowest, by_rank[slowest], statistics.median(by_rank),
    )  # fmt: skip
