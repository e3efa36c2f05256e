"""Recurrent memory: what a segment leaves for the next one.

A segment's input is M memory embeddings, then its tokens. The encoder's final-norm states at the M
slots, passed through an update, are the memory of the next segment. The schedule that runs the
segments is not here: this is one step, with memory in and memory out.

Source: Bulatov et al. 2022 (Recurrent Memory Transformer), the encoder form: one block of memory is
read and written, positions restart with each segment. Differs: `binary` update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

STRAIGHT_THROUGH_SLOPE = 1.5
"""`binary` passes back the gradient of tanh(1.5 h)."""

_NOISE_PURPOSE = 5
"""Second word of the Philox key; see csrc/philox.hpp."""


class _Sign(torch.autograd.Function):
    """Forward sign(h) with sign(0) = 1, backward the gradient of tanh(1.5 h)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        """[M, micro_batch, hidden] -> the same shape, every entry -1 or 1."""
        ctx.save_for_backward(hidden)
        return torch.where(hidden >= 0, 1.0, -1.0).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The straight-through gradient."""
        (hidden,) = ctx.saved_tensors
        slope = STRAIGHT_THROUGH_SLOPE
        soft = torch.tanh(slope * hidden.to(torch.promote_types(hidden.dtype, torch.float32)))
        return (gradient * (slope * (1 - soft * soft))).to(gradient.dtype)


def plain_update(hidden: Tensor, noise: Tensor | None) -> Tensor:
    """The published RMT: final-norm states as they are (and noise, if any)."""
    return hidden if noise is None else hidden + noise.to(hidden.dtype)


def binary_update(hidden: Tensor, noise: Tensor | None) -> Tensor:
    """A latch: signs, so that nothing can drift; noise before the sign makes it redundant."""
    signs: Tensor = _Sign.apply(plain_update(hidden, noise))
    return signs


MemoryUpdate = Callable[[Tensor, Tensor | None], Tensor]

MEMORY_UPDATES: dict[str, MemoryUpdate] = {"plain": plain_update, "binary": binary_update}
"""`memory.update` by name: (states [M, micro_batch, hidden], noise or None) -> new memory."""


def memory_noise(
    std: float,
    seed: int,
    iteration: int,
    samples: Tensor,
    segment: int,
    num_mem_tokens: int,
    hidden_size: int,
) -> Tensor:
    """Gaussian noise, fp32 [M, micro_batch, hidden].

    Philox keyed by (seed, purpose) and counted by (iteration, sample, segment): the same at every
    layout, machine and after every resume.

    Args:
        std: standard deviation.
        seed: of the run.
        iteration: number of the step.
        samples: [micro_batch], numbers of the samples.
        segment: number of the segment in the sample's whole window.
        num_mem_tokens: M.
        hidden_size: width.
    """
    key = np.array([seed % 2**64, _NOISE_PURPOSE], np.uint64)
    shape = (num_mem_tokens, hidden_size)
    columns = []
    for sample in samples.tolist():
        counter = np.array([0, iteration, sample, segment], np.uint64)
        generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
        columns.append(torch.from_numpy(generator.standard_normal(shape, np.float32)))
    return std * torch.stack(columns, dim=1)
