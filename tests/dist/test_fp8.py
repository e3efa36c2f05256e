"""Which layers Megatron-Core computes in FP8, and when copies of weights are made anew.

Without a GPU there is no FP8: what is tested is when Megatron-Core asks for it (`get_fp8_context`,
which without Transformer Engine returns a context that does nothing) and when the layers are told
that their weights have changed.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.transformer import transformer_block

from megatron_dna.config import Config
from megatron_dna.data.loader import Batch
from megatron_dna.parallel.step import run_step
from tests.dist.harness import run_ranks
from tests.dist.small_run import VOCAB, SmallRun, batches

SHAPE = [
    "model.num_layers=4", "train.precision=bf16", "memory.num_mem_tokens=4", "optimizer.lr=0.001",
    "memory.max_n_segments=3", "fp8.num_layers_at_end_in_bf16=1",
]  # fmt: skip
PP = "parallel.pipeline_model_parallel_size=2"
SEGMENTS, MICROBATCHES = 3, 4


def _windows(config: Config) -> list[Batch]:
    """Micro-batches of `SEGMENTS` segments."""
    source = batches(config, 0, 0, 1)
    windows = []
    for _ in range(MICROBATCHES):
        parts = [next(source) for _ in range(SEGMENTS)]
        fields = ("input_ids", "masked_positions", "labels", "loss_mask", "num_tokens", "num_bases")
        whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in fields}
        windows.append(Batch(attention_mask=None, samples=parts[0].samples, **whole))
    return windows


class _Watched:
    """Counts contexts by layer (-1: all of a segment), and notes which weights are new."""

    def __init__(self) -> None:
        self.built: list[int] = []
        self.entered: list[int] = []
        self.told: list[bool] = []

    @contextlib.contextmanager
    def context(self, config: Any, layer_no: int = -1, is_init: bool = False) -> Any:
        from megatron.core.fp8_utils import is_first_last_bf16_layer

        if not is_first_last_bf16_layer(config, layer_no):
            (self.built if is_init else self.entered).append(layer_no)
        yield

    def note(self, layer: Any, *_: Any) -> None:
        """As Transformer Engine's linears in Megatron-Core: the mark is gone once it is used."""
        self.told.append(layer.is_first_microbatch)
        layer.is_first_microbatch = False


def _checkpoint(function: Any, distribute: bool, _: Any, __: Any, *inputs: Any) -> Any:
    """In Transformer Engine's place, which recomputes under FP8."""
    return tensor_parallel.checkpoint(function, distribute, *inputs)


def _run(overrides: list[str]) -> tuple[list[int], list[int], list[int], list[bool]]:
    """Layers built and entered in FP8 in a step and in an evaluation, and when weights are new."""
    watched = _Watched()
    transformer_block.get_fp8_context = watched.context
    transformer_block.te_checkpoint = _checkpoint
    with contextlib.suppress(ImportError):  # where Megatron-Core 0.19 has it
        from megatron.core import recompute

        recompute.te_checkpoint = _checkpoint
    run = SmallRun.start([*SHAPE, *overrides])
    layer = run.model.module.decoder.layers[0]
    layer.is_first_microbatch = True
    layer.register_forward_pre_hook(watched.note)
    windows = _windows(run.config)
    counts = []
    for forward_only in (False, True):
        before = len(watched.entered)
        run.model.train(not forward_only)
        run_step(
            run.model, iter(windows), run.config, run.place, torch.arange(VOCAB), len(windows),
            forward_only=forward_only,
        )  # fmt: skip
        counts.append(watched.entered[before:])
    return watched.built, *counts, watched.told


LAYERS = {
    "tensorwise": (1, ["fp8.recipe=tensorwise"], [[0, 1, 2, 3]]),
    "bf16 layers": (
        1, ["fp8.recipe=tensorwise", "fp8.first_last_layers_bf16=true",
            "fp8.num_layers_at_start_in_bf16=2"], [[2]]),
    "bf16 layers on stages": (
        2, ["fp8.recipe=tensorwise", "fp8.first_last_layers_bf16=true", PP], [[1], [2]]),
    "one context a segment": (1, ["fp8.recipe=delayed"], [[-1]]),
    "off": (1, [], [[]]),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_layers_are_in_fp8_by_their_number_in_the_whole_model(case: str):
    """In training over segments and in evaluation; wrong layers would lose precision unnoticed."""
    world_size, overrides, want = LAYERS[case]
    for layers, result in zip(want, run_ranks(_run, world_size, overrides), strict=True):
        built, trained, evaluated, _ = result
        assert built == [layer for layer in layers if layer >= 0] or layers == [-1]
        for entered in (trained, evaluated):
            assert entered == layers * (SEGMENTS * MICROBATCHES)


@pytest.mark.parametrize("recompute", ["null", "full"])
def test_weights_are_new_at_the_first_segment_of_a_step(recompute: str):
    """Otherwise FP8 copies of the weights would stay as they were in the first step: no error, and
    a model that stops learning."""
    options = ["fp8.recipe=tensorwise", f"train.recompute_granularity={recompute}"]
    told = run_ranks(_run, 1, options)[0][3]
    forward = SEGMENTS * MICROBATCHES
    assert told[0]
    trained = len(told) - forward
    assert told[trained], "evaluation follows an update"
    assert sum(told) == 2
    assert trained == (2 if recompute == "full" else 1) * forward
