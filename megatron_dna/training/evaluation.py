"""How well the model fills masks in held-out sequence."""

from __future__ import annotations

import math

import torch

from megatron_dna.data.loader import build_loader
from megatron_dna.parallel.step import StepResult, run_step
from megatron_dna.parallel.wrap import whole_parameters
from megatron_dna.training.session import Session


def evaluate(session: Session) -> dict[str, float]:
    """Score `train.eval_iters` global batches of `data.valid`: the same ones at each call.

    Returns, on every process:
        `valid/loss` in nats a masked token, `valid/accuracy`, and `valid/bits_per_base`: the loss
        of all masked tokens in bits over the number of bases they spell.
    """
    config, place, model = session.config, session.place, session.model
    batches = build_loader(config, "valid", 0, place.dp_rank, place.dp_size, log=False)
    model.eval()
    try:
        with torch.no_grad(), whole_parameters(model):
            result = run_step(
                model,
                batches,
                config,
                place,
                session.token_lengths,
                session.num_microbatches * config.train.eval_iters,
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
