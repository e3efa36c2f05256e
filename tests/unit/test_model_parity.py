"""The encoder against transformers' ModernBERT on the same weights."""

from __future__ import annotations

import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from megatron_dna.config import Config, load_config
from megatron_dna.model.encoder import DnaBert, build_model
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform

VOCAB = 90


@pytest.fixture(scope="module")
def one_process():
    """A world of one, as without torchrun."""
    config = load_config(None, ["parallel.platform=cpu"])
    place = topology.initialize(config, setup_platform("cpu"))
    yield place
    topology.shutdown()


SHAPES = {
    "global": [],
    "local_global": ["model.global_attn_every_n_layers=3", "model.local_attention=8"],
    "norm_bias": ["model.norm_bias=true", "model.global_attn_every_n_layers=2"],
}


def _config(overrides: list[str]) -> Config:
    shape = [
        "model.num_layers=4",
        "model.hidden_size=32",
        "model.ffn_hidden_size=48",
        "model.num_attention_heads=4",
        "model.init_method_std=0.2",
        "train.precision=fp32",
        "data.segment_size=40",
    ]
    return load_config(None, shape + overrides)


def _oracle(config: Config) -> ModernBertForMaskedLM:
    model = config.model
    kinds = [
        "full_attention" if i % model.global_attn_every_n_layers == 0 else "sliding_attention"
        for i in range(model.num_layers)
    ]
    hf = ModernBertConfig(
        vocab_size=VOCAB,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        norm_eps=model.norm_eps,
        norm_bias=model.norm_bias,
        layer_types=kinds,
        local_attention=model.local_attention,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": model.global_rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": model.local_rope_theta},
        },
        pad_token_id=3,
        attn_implementation="sdpa",
    )
    return ModernBertForMaskedLM(hf).eval()


def _copy_weights(ours: DnaBert, oracle: ModernBertForMaskedLM) -> None:
    """Written against the architecture page, not against hf/convert.py: a second opinion."""
    heads, hidden = ours.shape.num_attention_heads, ours.shape.hidden_size
    mine = {name: p.detach() for name, p in ours.named_parameters()}

    def put(target: torch.nn.Module, name: str) -> None:
        target.weight.data.copy_(mine[f"{name}.weight"][: target.weight.shape[0]])
        if target.bias is not None:
            target.bias.data.copy_(mine[f"{name}.bias"][: target.bias.shape[0]])

    oracle.model.embeddings.tok_embeddings.weight.data.copy_(
        mine["embedding.word_embeddings.weight"][:VOCAB]
    )
    put(oracle.model.embeddings.norm, "embedding.norm")
    for i, layer in enumerate(oracle.model.layers):
        name = f"decoder.layers.{i}"
        qkv = mine[f"{name}.self_attention.linear_qkv.weight"].view(heads, 3, -1, hidden)
        layer.attn.Wqkv.weight.data.copy_(qkv.transpose(0, 1).reshape(-1, hidden))
        put(layer.attn.Wo, f"{name}.self_attention.linear_proj")
        if i > 0:
            put(layer.attn_norm, f"{name}.input_layernorm")
        put(layer.mlp_norm, f"{name}.pre_mlp_layernorm")
        put(layer.mlp.Wi, f"{name}.mlp.linear_fc1")
        put(layer.mlp.Wo, f"{name}.mlp.linear_fc2")
    put(oracle.model.final_norm, "decoder.final_layernorm")
    put(oracle.head.dense, "head.dense")
    put(oracle.head.norm, "head.norm")
    oracle.decoder.bias.data.copy_(mine["output_layer.bias"][:VOCAB])


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_modernbert(one_process, shape: str, padded: bool):
    """A difference here means the architecture is not ModernBERT's, so no export can be right."""
    config = _config(SHAPES[shape])
    ours = build_model(config, VOCAB, one_process.groups, "local", torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in ours.parameters():  # zeros and ones would hide a norm or bias left out
        if parameter.dim() == 1:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    oracle = _oracle(config)
    _copy_weights(ours, oracle)
    input_ids = torch.randint(0, VOCAB, (3, 40), generator=generator)
    attention_mask = torch.ones(3, 40, dtype=torch.bool)
    if padded:
        attention_mask[0, 11:] = False
        attention_mask[2, 33:] = False
    positions = torch.arange(40).expand(3, -1)
    with torch.no_grad():
        got = ours(input_ids, attention_mask if padded else None, positions).logits
        want = oracle(input_ids=input_ids, attention_mask=attention_mask.long()).logits
    difference = (got - want)[attention_mask].abs().max().item()
    assert want.abs().max() > 1, "the comparison needs logits of some size"
    assert difference < 1e-4
