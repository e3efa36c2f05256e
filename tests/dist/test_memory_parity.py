"""Recurrent memory under every layout against a plain reference on transformers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from transformers import ModernBertConfig, ModernBertForMaskedLM

from megatron_dna.config import Config, load_config
from megatron_dna.data.loader import Batch
from megatron_dna.hf.weights import weight_rules
from megatron_dna.model.encoder import build_model
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.step import run_step
from megatron_dna.parallel.wrap import wrap_model
from tests.dist.gradients import assemble, gather_main_grads, local_pieces
from tests.dist.harness import LAYER_SPEC, run_ranks

VOCAB, SEQ, MEM, MASKED, HEADS = 90, 20, 4, 3, 4
SHAPE = [
    "model.num_layers=4", "model.hidden_size=32", "model.ffn_hidden_size=48",
    f"model.num_attention_heads={HEADS}", "model.init_method_std=0.2",
    "model.global_attn_every_n_layers=2", "model.local_attention=8",
    f"data.segment_size={SEQ}", "train.precision=fp32", "train.micro_batch_size=2",
    f"memory.num_mem_tokens={MEM}", "parallel.platform=cpu",
]  # fmt: skip


def _sample(number: int, num_segments: int) -> tuple[torch.Tensor, ...]:
    """ids, mask, positions, labels, loss mask of a window; the last segment of some is padded."""
    generator = torch.Generator().manual_seed(number)
    shape = (num_segments, MASKED)
    ids = torch.randint(6, VOCAB, (num_segments, SEQ), generator=generator)
    mask = torch.ones(num_segments, SEQ, dtype=torch.bool)
    positions = torch.randint(1, SEQ, shape, generator=generator)
    labels = torch.randint(6, VOCAB, shape, generator=generator)
    loss_mask = torch.ones(shape)
    if number % 3 == 0:
        mask[-1, 11:] = False
        positions[-1] %= 11
        loss_mask[-1, 1:] = 0
    return ids, mask, positions, labels, loss_mask


def batches(config: Config, dp_rank: int, dp_size: int) -> Iterator[Batch]:
    size = config.train.micro_batch_size
    for first in range(dp_rank * size, config.train.global_batch_size, dp_size * size):
        samples = [_sample(first + i, config.memory.max_n_segments) for i in range(size)]
        columns = [torch.stack(column, dim=1) for column in zip(*samples, strict=True)]
        counts = columns[1].sum(-1)
        numbers = torch.arange(first, first + size)
        yield Batch(*columns, num_tokens=counts, num_bases=counts, samples=numbers)


def reference(
    config: Config, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> tuple[float, dict[str, torch.Tensor]]:
    """The computation as the method defines it, one process, one sample at a time."""
    shape, memory = config.model, config.memory
    kinds = ["sliding_attention" if i % 2 else "full_attention" for i in range(shape.num_layers)]
    thetas = {
        "full_attention": shape.global_rope_theta,
        "sliding_attention": shape.local_rope_theta,
    }
    model = ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=VOCAB, hidden_size=shape.hidden_size, num_attention_heads=HEADS,
            intermediate_size=shape.ffn_hidden_size, num_hidden_layers=shape.num_layers,
            layer_types=kinds, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
            local_attention=shape.local_attention, pad_token_id=None,
            rope_parameters={k: {"rope_type": "default", "rope_theta": thetas[k]} for k in thetas},
        )
    ).to(dtype)  # fmt: skip
    for rule in weight_rules(shape, VOCAB):
        model.get_parameter(rule.hf_name).data.copy_(rule.to_hf(weights[rule.key]))
    initial = weights["embedding.initial_memory"].to(dtype, copy=True).requires_grad_()
    group = memory.max_n_segments if memory.bptt_depth == -1 else memory.bptt_depth
    total, masked = torch.zeros((), dtype=dtype), 0.0
    for number in range(config.train.global_batch_size):
        carried = initial[None]
        for s, parts in enumerate(zip(*_sample(number, memory.max_n_segments), strict=True)):
            ids, mask, positions, labels, loss_mask = parts
            if s and s % group == 0:
                carried = carried.detach()
            tokens = model.get_input_embeddings()(ids)[None]
            seen = torch.cat((torch.ones(MEM, dtype=torch.bool), mask))[None]
            joined = torch.cat((carried, tokens), 1)
            hidden = model.model(inputs_embeds=joined, attention_mask=seen).last_hidden_state
            logits = model.decoder(model.head(hidden[0, MEM + positions]))
            total = total + (F.cross_entropy(logits, labels, reduction="none") * loss_mask).sum()
            masked += loss_mask.sum().item()
            carried = hidden[:, :MEM]
            if memory.update == "binary":
                soft = torch.tanh(1.5 * carried)
                carried = soft + (torch.where(carried >= 0, 1.0, -1.0).to(dtype) - soft).detach()
    (total / masked).backward()
    gradients = {rule.hf_name: model.get_parameter(rule.hf_name).grad
                 for rule in weight_rules(shape, VOCAB)}  # fmt: skip
    return (total / masked).item(), gradients | {"initial_memory": initial.grad}


def ours(overrides: list[str], cases: list[list[str]]) -> list[tuple]:
    """On a rank: loss and gradients of each case under one layout."""
    results = []
    config = load_config(None, SHAPE + overrides)
    place = topology.initialize(config, setup_platform("cpu"))
    for case in cases:
        config = load_config(None, SHAPE + overrides + case)
        model = build_model(config, VOCAB, place.groups, LAYER_SPEC, torch.device("cpu"))
        wrapped = wrap_model(model, config.parallel)
        wrapped.zero_grad_buffer()
        step = config.train.micro_batch_size * place.dp_size
        result = run_step(
            wrapped, batches(config, place.dp_rank, place.dp_size), config, place,
            torch.ones(VOCAB, dtype=torch.long), config.train.global_batch_size // step,
        )  # fmt: skip
        gather_main_grads(wrapped, place)
        results.append((result.loss, local_pieces(model, "main_grad"), local_pieces(model, "data")))
    topology.shutdown()
    return results


def as_hf(config: Config, full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {rule.hf_name: rule.to_hf(full[rule.key]) for rule in weight_rules(config.model, VOCAB)}
    return named | {"initial_memory": full["embedding.initial_memory"]}


def case(segments: int, depth: int, batch: int, update: str = "plain", *more: str) -> list[str]:
    return [
        f"memory.max_n_segments={segments}", f"memory.bptt_depth={depth}",
        f"train.global_batch_size={batch}", f"memory.update={update}", *more,
    ]  # fmt: skip


CASES = [
    case(1, -1, 8),
    case(2, -1, 8),
    case(2, 1, 8),
    case(5, -1, 8),
    case(5, 2, 8),
    case(5, -1, 4),  # few micro-batches: fewer than stages where DP or PP is large
    case(5, 1, 4),
    case(2, -1, 8, "plain", "train.recompute_granularity=full"),
    case(5, 2, 8, "plain", "train.recompute_granularity=selective"),
    case(3, -1, 8, "binary"),
]

TP, PP, SP = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.pipeline_model_parallel_size=2",
    "parallel.sequence_parallel=true",
)
CP = "parallel.context_parallel_size=2"
LAYOUTS = {
    "one": (1, []),
    "tp2_sp": (2, [TP, SP]),
    "pp2": (2, [PP]),
    "pp4": (4, ["parallel.pipeline_model_parallel_size=4"]),
    "dp2": (2, []),
    "dp2_overlap": (2, ["parallel.overlap_grad_reduce=true"]),
    "tp2_pp2": (4, [TP, PP]),
    "tp2_pp2_sp": (4, [TP, PP, SP]),
    "pp2_dp2": (4, [PP]),
    "cp2_tp2_sp": (4, [CP, TP, SP]),
    "cp2_pp2": (4, [CP, PP]),
}


@pytest.fixture(scope="module")
def references() -> list[tuple[float, dict[str, torch.Tensor]]]:
    """Loss and gradients of every case, by the definition."""
    return run_ranks(_references, 1)[0]


def _references() -> list[tuple[float, dict[str, torch.Tensor]]]:
    ((_, _, weights),) = ours([], [case(1, -1, 2)])
    full = assemble([weights])
    return [reference(load_config(None, SHAPE + case), full, torch.float32) for case in CASES]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_equals_the_reference(references, layout: str):
    """A difference means that the stack does not train the model that the method defines."""
    world_size, overrides = LAYOUTS[layout]
    ranks = run_ranks(ours, world_size, overrides, CASES)
    for number, (case, (want_loss, want)) in enumerate(zip(CASES, references, strict=True)):
        config = load_config(None, SHAPE + case)
        for rank in ranks:
            assert abs(rank[number][0] - want_loss) / want_loss < 1e-5, case
        got = as_hf(config, assemble([rank[number][1] for rank in ranks]))
        assert got.keys() == want.keys()
        for name, gradient in want.items():
            error = (got[name] - gradient).norm() / gradient.norm()
            assert error <= 1e-4, f"{case} {name}: relative error {error:.2e}"


def _third_step(overrides: list[str], case: list[str]) -> tuple:
    """On a rank: loss and gradients of the third step without an update between."""
    config = load_config(None, SHAPE + overrides + case)
    place = topology.initialize(config, setup_platform("cpu"))
    model = build_model(config, VOCAB, place.groups, LAYER_SPEC, torch.device("cpu"))
    wrapped = wrap_model(model, config.parallel)
    count = config.train.global_batch_size // config.train.micro_batch_size // place.dp_size
    for _ in range(3):
        wrapped.zero_grad_buffer()
        result = run_step(
            wrapped, batches(config, place.dp_rank, place.dp_size), config, place,
            torch.ones(VOCAB, dtype=torch.long), count,
        )  # fmt: skip
    pieces = local_pieces(model, "main_grad")
    topology.shutdown()
    return result.loss, pieces


def test_reduction_overlaps_truncated_backpropagation():
    """From its second step on Megatron waits for the gradient of every parameter in the last
    backward pass; with groups of segments that pass has no start of a window in it."""
    one, wanted = (
        run_ranks(_third_step, 2, [f"parallel.overlap_grad_reduce={overlaps}"], case(5, 2, 8))[0]
        for overlaps in ("true", "false")
    )
    assert one[0] == wanted[0]
    for name, gradient in assemble([wanted[1]]).items():
        assert torch.equal(assemble([one[1]])[name], gradient), name


def test_memory_may_be_longer_than_the_part_of_a_context_parallel_rank():
    """A difference means that slots, or ranks without tokens, are mixed up or left out."""
    many = [f"memory.num_mem_tokens={SEQ + 8}"]  # of 24 positions a rank
    cases = [case(3, -1, 4), case(3, 2, 4, "binary", "train.recompute_granularity=selective")]
    (whole,) = run_ranks(ours, 1, many, cases)
    ranks = run_ranks(ours, 2, [*many, CP], cases)
    for number, (want_loss, want, _) in enumerate(whole):
        want = assemble([want])
        got = assemble([rank[number][1] for rank in ranks])
        assert [rank[number][0] for rank in ranks] == pytest.approx([want_loss] * 2, rel=1e-5)
        for name, gradient in want.items():
            error = (got[name] - gradient).norm() / gradient.norm()
            assert error <= 1e-4, f"{cases[number]} {name}: relative error {error:.2e}"
