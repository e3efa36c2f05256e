"""Seconds of a stage's work on one segment: a roofline."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_dna.config import Config
from megatron_dna.model.encoder import padded_vocab_size
from megatron_dna.model.layers import is_fp8_layer
from megatron_dna.planning.gpus import (
    ATTENTION_EFFICIENCY,
    FP8_CAST_BYTES,
    FP8_SPEEDUP,
    LAUNCH_S,
    MATMUL_EFFICIENCY,
    MEMORY_EFFICIENCY,
    Gpu,
)
from megatron_dna.planning.links import Link
from megatron_dna.training.activations import item_bytes
from megatron_dna.training.flops import computed_keys

LAYER_LAUNCHES = 25
"""Operations that a layer launches in the forward pass; twice as many in the backward pass."""


@dataclass(frozen=True)
class Tick:
    """Seconds of one task of a stage: one segment of one micro-batch."""

    forward_s: float
    backward_s: float
    communication_s: float
    """Of TP in both directions, which is in them; recomputation's too."""
    exposed_s: float
    """What of it no matrix product hides."""
    context_s: float
    """Of CP in both directions, which is in them: nothing hides it."""

    @property
    def total_s(self) -> float:
        """Both directions."""
        return self.forward_s + self.backward_s


def context_bytes(config: Config) -> float:
    """Keys and values of a layer, of all positions: what a CP group gathers for attention."""
    rows = config.train.micro_batch_size * config.seq_length
    tp = config.parallel.tensor_model_parallel_size
    return 2 * rows * config.model.hidden_size * item_bytes(config) / tp


class StageClock:
    """Times the work of a pipeline stage on one segment of one micro-batch."""

    def __init__(self, config: Config, vocab_size: int, gpu: Gpu) -> None:
        self.config = config
        self.item = item_bytes(config)
        self.tp = config.parallel.tensor_model_parallel_size
        self.sharded = self.tp if config.parallel.sequence_parallel else 1
        self.rows = config.train.micro_batch_size * config.context_length
        self.positions = config.train.micro_batch_size * config.num_head_positions
        divisor = config.model.make_vocab_size_divisible_by
        self.vocab = padded_vocab_size(vocab_size, divisor) // self.tp
        self.link = Link(gpu, self.tp, 1)
        self.context = Link(gpu, config.parallel.context_parallel_size, self.tp)
        self.peak = gpu.peak_flops(config.train.precision)
        self.bandwidth = 1e12 * MEMORY_EFFICIENCY * gpu.memory_tb_per_s

    def tick(self, stage: int) -> Tick:
        """Seconds of `stage`."""
        model, parallel = self.config.model, self.config.parallel
        count = model.num_layers // parallel.pipeline_model_parallel_size
        first = stage * count
        forward = backward = communication = exposed = context = 0.0
        for layer in range(first, first + count):
            ahead, back = self._layer(layer)
            forward += ahead.forward_s
            backward += back.backward_s
            communication += ahead.communication_s + back.communication_s
            exposed += ahead.exposed_s + back.exposed_s
            context += ahead.context_s + back.context_s
        ends = self._ends(stage)
        return Tick(
            forward + ends.forward_s, backward + ends.backward_s,
            communication + ends.communication_s, exposed + ends.exposed_s, context,
        )  # fmt: skip

    def _layer(self, layer: int) -> tuple[Tick, Tick]:
        """Forward and backward pass of a layer; recomputation is part of the latter."""
        width, ffn = self.config.model.hidden_size, self.config.model.ffn_hidden_size
        tp = self.tp
        faster = FP8_SPEEDUP[self.config.fp8.recipe] if is_fp8_layer(self.config, layer) else 1.0
        # The products whose inputs, and those whose outputs, the ranks of TP share.
        column = self._matmul(self.rows, width, 3 * width / tp, faster)
        column += self._matmul(self.rows, width, 2 * ffn / tp, faster)
        row = self._matmul(self.rows, width / tp, width, faster)
        row += self._matmul(self.rows, ffn / tp, width, faster)
        attention = 4 * self.rows * computed_keys(self.config, layer) * width / tp
        attention /= ATTENTION_EFFICIENCY * self.peak
        # Reads and writes: two norms and two sums; rotation; GeGLU.
        passes = 10 * width / self.sharded + 16 * width / tp + 5 * ffn / tp
        elementwise = passes * self.rows * self.item / self.bandwidth
        cast, cast_back = self._cast(layer)
        busy = max(column + row + attention + elementwise + cast, LAYER_LAUNCHES * LAUNCH_S)
        busy_back = max(
            2 * (column + row + elementwise) + 2.5 * attention + cast_back,
            2 * LAYER_LAUNCHES * LAUNCH_S,
        )
        shared = self.rows * width * self.item
        if self.sharded > 1:
            one = self.link.gather_s(shared)
            in_forward, in_backward, hidden = 4 * one, 6 * one, 4 * one
            cover = 2 * column  # gather behind the input's gradient, scatter behind the weight's
        else:
            in_forward = in_backward = hidden = 2 * self.link.all_reduce_s(shared)
            cover = column
        exposed = in_backward - min(hidden, cover)
        # Keys and values are gathered; their gradients are added up and scattered.
        one = self.context.gather_s(context_bytes(self.config))
        ahead = Tick(busy + in_forward + one, 0.0, in_forward, in_forward, one)
        back = Tick(0.0, busy_back + exposed + one, in_backward, exposed, one)
        recompute = self.config.train.recompute_granularity
        if recompute == "full":
            back = Tick(
                0.0, back.backward_s + ahead.forward_s,
                in_backward + in_forward, exposed + in_forward, 2 * one,
            )  # fmt: skip
        elif recompute == "selective":
            again = back.backward_s + attention + one
            back = replace(back, backward_s=again, context_s=2 * one)
        return ahead, back

    def _cast(self, layer: int) -> tuple[float, float]:
        """Forward and backward pass: inputs and output gradients of four products, to FP8."""
        if not is_fp8_layer(self.config, layer):
            return 0.0, 0.0
        width, ffn = self.config.model.hidden_size, self.config.model.ffn_hidden_size
        inputs = 2 * width / self.sharded + (width + ffn) / self.tp
        gradients = 2 * width / self.sharded + (3 * width + 2 * ffn) / self.tp
        one = FP8_CAST_BYTES[self.config.fp8.recipe] * self.rows / self.bandwidth
        return one * inputs, one * gradients

    def _ends(self, stage: int) -> Tick:
        """The embedding of the first stage and the head of the last."""
        width = self.config.model.hidden_size
        hidden = self.rows * width * self.item
        busy = communication = 0.0
        if stage == 0:
            busy += 6 * hidden / self.bandwidth
            communication += self.link.all_reduce_s(hidden)
        if stage == self.config.parallel.pipeline_model_parallel_size - 1:
            busy += self._matmul(self.positions, width, width)
            busy += self._matmul(self.positions, width, self.vocab)
            busy += 6 * 4 * self.positions * self.vocab / self.bandwidth  # cross-entropy in fp32
            if self.sharded > 1:
                communication += self.link.gather_s(hidden)
        return Tick(busy + communication, 2 * busy, communication, communication, 0.0)

    def _matmul(self, rows: float, inner: float, outer: float, faster: float = 1.0) -> float:
        """Seconds of [rows, inner] x [inner, outer]: arithmetic or memory, what takes longer."""
        arithmetic = 2 * rows * inner * outer / (faster * MATMUL_EFFICIENCY * self.peak)
        moved = self.item * (rows * inner + inner * outer + rows * outer)
        return max(arithmetic, moved / self.bandwidth)
