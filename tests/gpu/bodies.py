"""What the tests of the GPU do, on whichever platform: tests/dist/test_gpu_bodies.py does the same
on the CPU, so that on the one GPU there is only the GPU is new.

Weights are drawn by name, so the model of one layer spec starts from the weights of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_dna.config import Config, load_config
from megatron_dna.data.loader import Batch
from megatron_dna.model.encoder import DnaBert, build_model
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import Platform, setup_platform
from megatron_dna.parallel.step import run_step
from megatron_dna.parallel.topology import Topology
from megatron_dna.parallel.wrap import wrap_model
from megatron_dna.validation import validate
from tests.dist.gradients import assemble, local_pieces

VOCAB = 90
PAD, MASK, FIRST = 3, 4, 6
"""Ids."""
SHAPE = [
    "model.num_layers=4",
    "model.hidden_size=256",
    "model.ffn_hidden_size=384",
    "model.num_attention_heads=4",
    "model.global_attn_every_n_layers=2",
    "model.local_attention=16",
    "model.init_method_std=0.06",  # at 0.02 query and key gradients drown in rounding
    "data.segment_size=128",
    "train.micro_batch_size=2",
    "train.global_batch_size=4",
]
"""What all FP8 recipes take: widths, and rows of a micro-batch, are multiples of 128."""
MEMORY = [
    "memory.num_mem_tokens=16",
    "memory.max_n_segments=3",
    "data.segment_size=112",
    "train.global_batch_size=2",
]
RECOMPUTE = "train.recompute_granularity=full"
BF16_TOLERANCE = 0.05
"""Relative error of logits and of every gradient. The local spec in bf16 on the CPU stays below
0.022; a window of one token more or less is off by 0.2 somewhere."""
ATTENTION_TOLERANCE = 0.01
"""Of core attention by itself in bf16; on the CPU below 0.004."""


@dataclass(frozen=True)
class World:
    """This process, alone."""

    platform: Platform
    place: Topology


def open_world(platform: str) -> World:
    """Join a world of one process; `topology.shutdown` leaves it."""
    chosen = setup_platform(platform)
    return World(chosen, topology.initialize(load_config(None, SHAPE), chosen))


def make_config(spec: str, precision: str, *overrides: str, world_size: int = 1) -> Config:
    """The options of a small model, valid ones."""
    config = load_config(None, [
        *SHAPE, f"train.precision={precision}", f"model.layer_spec={spec}",
        "parallel.platform=auto", *overrides,
    ])  # fmt: skip
    validate(config, world_size, files=False)
    return config


def make_model(world: World, config: Config) -> DnaBert:
    """The model with its initial weights, rounded to bf16 in every precision."""
    spec, device = config.model.layer_spec, world.platform.device
    model = build_model(config, VOCAB, world.place.groups, spec, device)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:
                parameter.copy_(parameter.bfloat16())
    return model


def windows(config: Config, is_padded: bool = False) -> list[Batch]:
    """The micro-batches of a step; `is_padded`: every segment ends in padding, of some length."""
    count = config.train.global_batch_size // config.train.micro_batch_size
    return [_window(config, number, is_padded) for number in range(count)]


def _window(config: Config, number: int, is_padded: bool) -> Batch:
    generator = torch.Generator().manual_seed(number)
    shape = (config.memory.max_n_segments, config.train.micro_batch_size)
    length, k = config.data.segment_size, config.num_masked_tokens
    ids = torch.randint(FIRST, VOCAB, (*shape, length), generator=generator)
    real = torch.full(shape, length)
    if is_padded:
        real -= torch.randint(1, length // 2, shape, generator=generator)
    seen = torch.arange(length) < real[..., None]
    ids[~seen] = PAD
    order = torch.rand((*shape, length // 2), generator=generator).argsort(-1)
    positions = order[..., :k].sort(-1).values
    labels = ids.gather(-1, positions)
    return Batch(
        input_ids=ids.scatter(-1, positions, MASK),
        attention_mask=seen if is_padded else None,
        masked_positions=positions,
        labels=labels,
        loss_mask=torch.ones(labels.shape),
        num_tokens=real,
        num_bases=3 * real,
        samples=torch.arange(number * shape[1], (number + 1) * shape[1]),
    )


@dataclass(frozen=True)
class Pass:
    """What a model makes of a step, in fp32 on the CPU."""

    loss: float
    logits: Tensor
    """Of the first micro-batch's first segment, [micro_batch, k, vocab]."""
    gradients: dict[str, Tensor]
    """Whole, by checkpoint key."""

    @property
    def all_gradients(self) -> Tensor:
        """As one vector."""
        return torch.cat([self.gradients[key].flatten() for key in sorted(self.gradients)])


def one_step(
    world: World,
    spec: str,
    precision: str,
    *overrides: str,
    is_padded: bool = False,
    passes: int = 1,
) -> Pass:
    """Forward and backward over the global batch, `passes` times with the same weights."""
    config = make_config(spec, precision, *overrides)
    model, device = make_model(world, config), world.platform.device
    wrapped = wrap_model(model, config.parallel)
    batches = windows(config, is_padded)
    lengths = torch.arange(VOCAB, device=device)
    for _ in range(passes):
        wrapped.zero_grad_buffer()
        result = run_step(wrapped, iter(batches), config, world.place, lengths, len(batches))
    pieces = assemble([local_pieces(model, "main_grad")])
    return Pass(
        result.loss,
        logits_of(model, batches[0], device),
        {key: value.float().cpu() for key, value in pieces.items()},
    )


@torch.no_grad()
def logits_of(model: DnaBert, batch: Batch, device: torch.device) -> Tensor:
    """Of the first segment, fp32 on the CPU [micro_batch, k, vocab]."""
    mask = batch.attention_mask
    model.eval()
    output = model(
        batch.input_ids[0].to(device),
        None if mask is None else mask[0].to(device),
        batch.masked_positions[0].to(device),
    )
    model.train()
    assert output.logits is not None
    return output.logits.float().cpu()


def relative_error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want|."""
    assert bool(got.isfinite().all()), "not finite"
    return float((got.double() - want.double()).norm() / want.double().norm())


def errors(got: Pass, want: Pass) -> dict[str, float]:
    """Relative errors of loss, logits and every gradient."""
    assert got.gradients.keys() == want.gradients.keys()
    return {
        "loss": abs(got.loss - want.loss) / want.loss,
        "logits": relative_error(got.logits, want.logits),
        **{key: relative_error(value, want.gradients[key]) for key, value in got.gradients.items()},
    }


def attend(
    world: World, spec: str, precision: str, layer: int, is_padded: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """The core attention of layer `layer` (0 global, 1 in a window) on random input.

    Returns:
        Of the output and of the gradients of query, key and value: what the module gives, and what
        softmax over explicitly masked scores gives in fp64. Padded queries are left out.
    """
    config = make_config(spec, precision)
    attention = make_model(world, config).decoder.layers[layer].self_attention
    model, device = config.model, world.platform.device
    length, size = config.seq_length, config.train.micro_batch_size
    heads = model.num_attention_heads
    generator = torch.Generator().manual_seed(layer)
    shape = (length, size, heads, model.hidden_size // heads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    inputs = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]
    upstream = torch.randn((length, size, model.hidden_size), generator=generator).to(dtype)
    seen = torch.ones(size, length, dtype=torch.bool)
    if is_padded:
        seen[0, length // 3 :] = False
        seen[1, length - 1 :] = False
    upstream *= seen.t()[..., None]
    own = [tensor.to(device, copy=True).requires_grad_() for tensor in inputs]
    mask_type, mask = attention.mask_of_full_windows(upstream.to(device))
    if is_padded:
        mask_type, mask = AttnMaskType.padding, (~seen[:, None, None, :]).to(device)
    output = attention.core_attention(*own, mask, attn_mask_type=mask_type)
    output.backward(upstream.to(device))
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    half_width = model.local_attention // 2 if layer % 2 else length
    want = dense_attention(*exact, seen, half_width)
    want.backward(upstream.double())
    names = ("query", "key", "value")
    kept = seen.t()[..., None]
    pairs = {"output": (output.detach().cpu().where(kept, 0.0), want.detach().where(kept, 0.0))}
    for name, tensor, other in zip(names, own, exact, strict=True):
        assert tensor.grad is not None
        assert other.grad is not None
        pairs[name] = tensor.grad.cpu(), other.grad
    return pairs


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, half_width: int
) -> Tensor:
    """Attention by its definition.

    Args:
        query: [seq, micro_batch, heads, head_dim]; `key` and `value` alike.
        key: as `query`.
        value: as `query`.
        seen: [micro_batch, seq], True at keys that are not padding.
        half_width: tokens seen to each side.

    Returns:
        [seq, micro_batch, heads * head_dim].
    """
    scores = torch.einsum("ibhd,jbhd->bhij", query, key) / query.shape[-1] ** 0.5
    positions = torch.arange(len(query))
    near = (positions[:, None] - positions[None, :]).abs() <= half_width
    allowed = near & seen[:, None, None, :]
    # A padded query far from every key sees nothing; its output is not used.
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num()
    return torch.einsum("bhij,jbhd->ibhd", weights, value).flatten(2)
