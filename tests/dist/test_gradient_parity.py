"""Loss and gradients of every layout against torch autograd in one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megatron_dna.config import Config, load_config
from megatron_dna.data.loader import Batch
from megatron_dna.model.encoder import build_model
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.step import StepResult, run_step
from megatron_dna.parallel.wrap import wrap_model
from tests.dist.gradients import Piece, assemble, gather_main_grads, local_pieces
from tests.dist.harness import LAYER_SPEC, run_ranks

VOCAB, SEQ, MASKED = 90, 24, 5
SHAPE = [
    "model.num_layers=4",
    "model.hidden_size=32",
    "model.ffn_hidden_size=48",
    "model.num_attention_heads=4",
    "model.init_method_std=0.2",
    "model.global_attn_every_n_layers=2",
    "model.local_attention=8",
    "model.norm_bias=true",
    f"data.segment_size={SEQ}",
    "train.precision=fp32",
    "train.micro_batch_size=2",
    "train.global_batch_size=8",
    "parallel.platform=cpu",
]


def _sample(number: int) -> tuple[torch.Tensor, ...]:
    """Sample `number`: ids, mask, masked positions, labels, loss mask. Every third is padded."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(6, VOCAB, (SEQ,), generator=generator)
    mask = torch.ones(SEQ, dtype=torch.bool)
    loss_mask = torch.ones(MASKED)
    is_padded = number % 3 == 0
    order = torch.randperm(10 if is_padded else SEQ, generator=generator)
    positions = order[:MASKED].sort().values
    if is_padded:
        mask[12:] = False
        loss_mask[3:] = 0
    labels = torch.randint(6, VOCAB, (MASKED,), generator=generator)
    return ids, mask, positions, labels, loss_mask


def _batches(config: Config, dp_rank: int, dp_size: int) -> Iterator[Batch]:
    size = config.train.micro_batch_size
    for first in range(dp_rank * size, config.train.global_batch_size, dp_size * size):
        samples = [_sample(first + i) for i in range(size)]
        ids, mask, positions, labels, loss_mask = (
            torch.stack(column)[None] for column in zip(*samples, strict=True)
        )
        yield Batch(
            input_ids=ids,
            attention_mask=None if mask.all() else mask,
            masked_positions=positions,
            labels=labels,
            loss_mask=loss_mask,
            num_tokens=mask.sum(-1),
            num_bases=mask.sum(-1) * 3,
            samples=torch.arange(first, first + size),
        )


def _parameter_gradients(overrides: list[str]) -> tuple[StepResult, dict[str, list[Piece]]]:
    """On a rank: the result of one step and this rank's pieces of the gradients."""
    config = load_config(None, SHAPE + overrides)
    place = topology.initialize(config, setup_platform("cpu"))
    model = build_model(config, VOCAB, place.groups, LAYER_SPEC, torch.device("cpu"))
    wrapped = wrap_model(model, config.parallel)
    lengths = torch.arange(VOCAB)
    num_microbatches = config.train.global_batch_size // (
        config.train.micro_batch_size * place.dp_size
    )
    batches = _batches(config, place.dp_rank, place.dp_size)
    wrapped.zero_grad_buffer()
    result = run_step(wrapped, batches, config, place, lengths, num_microbatches)
    gather_main_grads(wrapped, place)
    gradients = local_pieces(model, "main_grad")
    topology.shutdown()
    return result, gradients


@pytest.fixture(scope="module")
def reference() -> tuple[float, dict[str, torch.Tensor]]:
    """Plain autograd in one process: no DDP buffers, no schedule, the loss as it is defined."""
    return run_ranks(_reference, 1)[0]


def _reference() -> tuple[float, dict[str, torch.Tensor]]:
    config = load_config(None, SHAPE)
    place = topology.initialize(config, setup_platform("cpu"))
    model = build_model(config, VOCAB, place.groups, "local", torch.device("cpu"))
    losses, masked = torch.zeros(()), 0.0
    for number in range(config.train.global_batch_size):
        ids, mask, positions, labels, loss_mask = (t[None] for t in _sample(number))
        logits = model(ids, mask, positions).logits
        loss = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="none")
        losses = losses + (loss * loss_mask[0]).sum()
        masked += loss_mask.sum().item()
    (losses / masked).backward()
    gradients = assemble([local_pieces(model, "grad")])
    topology.shutdown()
    return (losses / masked).item(), gradients


TP = "parallel.tensor_model_parallel_size=2"
PP = "parallel.pipeline_model_parallel_size=2"
CP = "parallel.context_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PLAIN = "parallel.use_distributed_optimizer=false"
FULL, SELECTIVE = (f"train.recompute_granularity={kind}" for kind in ("full", "selective"))
LAYOUTS = {
    "one": (1, []),
    "tp2": (2, [TP]),
    "tp2_sp": (2, [TP, SP]),
    "tp2_sp_full_recompute": (2, [TP, SP, FULL]),
    "pp2": (2, [PP]),
    "pp2_selective_recompute": (2, [PP, SELECTIVE]),
    "dp2": (2, []),
    "dp2_plain_optimizer": (2, [PLAIN]),
    "dp2_overlap": (2, ["parallel.overlap_grad_reduce=true"]),
    "tp2_pp2_sp": (4, [TP, PP, SP]),
    "tp2_pp2_plain_optimizer_full_recompute": (4, [TP, PP, PLAIN, FULL]),
    "pp2_dp2": (4, [PP]),
    "tp2_dp2_sp": (4, [TP, SP]),
    "tp2_dp2_plain_optimizer": (4, [TP, PLAIN]),
    "cp2": (2, [CP]),
    "cp4_full_recompute": (4, ["parallel.context_parallel_size=4", FULL]),
    "cp2_tp2_sp": (4, [CP, TP, SP]),
    "cp2_pp2": (4, [CP, PP, "parallel.overlap_grad_reduce=true"]),
    "cp2_dp2_plain_optimizer_selective_recompute": (4, [CP, PLAIN, SELECTIVE]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_equal_one_process(reference, layout: str):
    """A difference means that splitting the model changes what it learns."""
    want_loss, want = reference
    world_size, overrides = LAYOUTS[layout]
    ranks = run_ranks(_parameter_gradients, world_size, overrides)
    got = assemble([gradients for _, gradients in ranks])
    for result, _ in ranks:
        assert abs(result.loss - want_loss) / want_loss < 1e-6
        assert result.num_masked == 3 * 3 + 5 * MASKED
    assert got.keys() == want.keys()
    for key, gradient in want.items():
        error = (got[key] - gradient).norm() / gradient.norm()
        assert error <= 1e-5, f"{key}: relative error {error:.2e}"


def _initial_weights(overrides: list[str]) -> dict[str, list[Piece]]:
    config = load_config(None, SHAPE + overrides)
    place = topology.initialize(config, setup_platform("cpu"))
    model = build_model(config, VOCAB, place.groups, "local", torch.device("cpu"))
    weights = local_pieces(model, "data")
    topology.shutdown()
    return weights


@pytest.mark.parametrize("layout", ["tp2_sp", "pp2", "tp2_pp2_sp"])
def test_initial_weights_do_not_depend_on_the_layout(layout: str):
    """Layouts can be compared from the first step only if they start from the same weights."""
    world_size, overrides = LAYOUTS[layout]
    want = assemble(run_ranks(_initial_weights, 1, []))
    got = assemble(run_ranks(_initial_weights, world_size, overrides))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)
    other_seed = assemble(run_ranks(_initial_weights, 1, ["train.seed=5"]))
    matrices = [key for key, tensor in want.items() if tensor.dim() == 2]
    assert not any(torch.equal(other_seed[key], want[key]) for key in matrices)
    first, second = (f"decoder.layers.{i}.self_attention.linear_qkv.weight" for i in (0, 1))
    assert not torch.equal(want[first], want[second])
