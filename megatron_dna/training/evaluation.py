"""How well the model fills masks in held-out sequence."""

from __future__ import annotations

import math

import torch

from megatron_dna.data.loader import build_loader
from megatron_dna.data.split import take_windows
from megatron_dna.parallel.step import StepResult, run_step
from megatron_dna.parallel.wrap import whole_parameters
from megatron_dna.training.session import Session


def evaluate(session: Session, num_segments: int | None = None) -> dict[str, float]:
    """Score `train.eval_iters` global batches of `data.valid`: the same ones at each call.

    Args:
        session: the model at its place.
        num_segments: segments of a window; None is `memory.max_n_segments`.

    Returns, on every process:
        `valid/loss` in nats a masked token, `valid/accuracy`, and `valid/bits_per_base`: the loss
        of all masked tokens in bits over the number of bases they spell.
    """
    config, place, model = session.config, session.place, session.model
    batches = build_loader(config, "valid", 0, place.dp_rank, place.dp_size, log=False)
    windows = take_windows(
        batches,
        session.num_microbatches * config.train.eval_iters,
        num_segments or config.memory.max_n_segments,
        config.memory.constant_tokens,
    )
    model.eval()
    try:
        with torch.no_grad(), whole_parameters(model):
            result = run_step(
                model,
                iter(windows),
                config,
                place,
                session.token_lengths,
                len(windows),
                forward_only=True,
            )
    finally:
        model.train()
    return summarize(result)


def summarize(result: StepResult) -> dict[str, float]:
    """The metrics of an evaluation from its sums."""
    return {
        "valid/loss": result.loss,
        "valid/accuracy": result.num_correct / max(1, result.num_masked),
        "valid/bits_per_base": result.loss_sum / math.log(2) / max(1, result.num_masked_bases),
    }
