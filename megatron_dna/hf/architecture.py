"""One architecture in two vocabularies: the run's options and transformers' configurations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import ModernBertConfig

from megatron_dna.config import Config, ModelConfig
from megatron_dna.hf.modeling_rmt import RmtConfig
from megatron_dna.model.layers import is_local_layer
from megatron_dna.tokenizer.bpe import DnaTokenizer

AUTO_MAP = {
    "AutoConfig": "modeling_rmt.RmtConfig",
    "AutoModel": "modeling_rmt.RmtModel",
    "AutoModelForMaskedLM": "modeling_rmt.RmtForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_rmt.RmtForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_rmt.RmtForTokenClassification",
}
"""What transformers loads from the folder's own modeling_rmt.py."""

_FIXED: dict[str, Any] = {
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "decoder_bias": True,
    "tie_word_embeddings": True,
}
"""Options of ModernBertConfig that this package has no option for."""


def hf_config(config: Config, tokenizer: DnaTokenizer, vocab_size: int) -> ModernBertConfig:
    """The same architecture in transformers' terms: an `RmtConfig` where there is memory."""
    model, memory = config.model, config.memory
    layer_types = [
        "sliding_attention" if is_local_layer(model, layer) else "full_attention"
        for layer in range(model.num_layers)
    ]
    options: dict[str, Any] = {
        "architectures": ["ModernBertForMaskedLM"],
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "max_position_embeddings": config.seq_length,
        "initializer_range": model.init_method_std,
        "norm_eps": model.norm_eps,
        "norm_bias": model.norm_bias,
        "layer_types": layer_types,
        "global_attn_every_n_layers": model.global_attn_every_n_layers,
        "local_attention": model.local_attention,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": model.global_rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": model.local_rope_theta},
        },
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_id,
        "cls_token_id": tokenizer.cls_id,
        "sep_token_id": tokenizer.sep_id,
        "bos_token_id": tokenizer.cls_id,
        "eos_token_id": tokenizer.sep_id,
    }
    if not memory.num_mem_tokens:
        return ModernBertConfig(**options)
    return RmtConfig(
        **options | {"architectures": ["RmtForMaskedLM"], "auto_map": AUTO_MAP},
        num_mem_tokens=memory.num_mem_tokens,
        segment_size=config.data.segment_size,
        memory_update=memory.update,
        max_n_segments=memory.max_n_segments,
        bptt_depth=memory.bptt_depth,
    )


def read_hf_config(folder: Path, option: str = "--model") -> ModernBertConfig:
    """The configuration in a model's folder, read without any code from there.

    Args:
        folder: of the model.
        option: of the command line that named it, for errors.

    Raises:
        ValueError: no model folder, or an architecture that this package does not train; says why.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{option} ({folder}) is not a Hugging Face model folder: no config.json")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        kind = stored.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{option} ({folder}): config.json is not a JSON object ({error})") from (
            error
        )
    kinds = {"modernbert": ModernBertConfig, "modernbert_rmt": RmtConfig}
    if kind not in kinds:
        reason = (
            "as GENA-LM's older models are, it learns absolute positions and has biases and an "
            "MLP without gate"
            if kind in ("bert", "bigbird", "big_bird")
            else "its weights have no place in this encoder"
        )
        raise ValueError(
            f"{option} ({folder}) is of model_type {kind!r}: {reason}. Only ModernBERT "
            "(ModernGENA's architecture) and folders made by to-hf can be converted"
        )
    config = kinds[kind].from_pretrained(folder)
    assert isinstance(config, ModernBertConfig)
    for name, wanted in _FIXED.items():
        value = getattr(config, name)
        if value != wanted:
            raise ValueError(
                f"{option} ({folder}): {name} ({value}) must be {wanted}; other ModernBERTs cannot "
                "be trained here"
            )
    return config


def training_config(folder: Path, hf: ModernBertConfig, base: Config) -> Config:
    """`base` with the model's shape, its memory, and segments of the length that it knows.

    Raises:
        ValueError: the layers' kinds or their positions are of another pattern.
    """
    assert hf.layer_types is not None
    assert hf.rope_parameters is not None
    types = list(hf.layer_types)
    ropes: dict[str, dict[str, Any]] = {k: v for k, v in hf.rope_parameters.items()}  # noqa: C416
    every = next((i for i, kind in enumerate(types) if i and kind == "full_attention"), len(types))
    pattern = ["sliding_attention" if i % every else "full_attention" for i in range(len(types))]
    if types != pattern:
        raise ValueError(
            f"--model ({folder}): layer_types must be full_attention at every n-th layer from the "
            f"first on and sliding_attention between, not {', '.join(types)}"
        )
    for kind in set(types):
        if ropes[kind].get("rope_type") != "default":
            raise ValueError(
                f"--model ({folder}): rope_type of {kind} ({ropes[kind].get('rope_type')}) must be "
                "default: scaled positions cannot be trained here"
            )
    model = ModelConfig(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        ffn_hidden_size=hf.intermediate_size,
        num_attention_heads=hf.num_attention_heads,
        norm_eps=hf.norm_eps,
        norm_bias=hf.norm_bias,
        global_attn_every_n_layers=every,
        local_attention=hf.local_attention,
        global_rope_theta=float(ropes["full_attention"]["rope_theta"]),
        local_rope_theta=float(ropes["sliding_attention"]["rope_theta"]),
        init_method_std=hf.initializer_range,
    )
    memory, segment_size = base.memory, hf.max_position_embeddings
    if isinstance(hf, RmtConfig):
        segment_size = hf.segment_size
        memory = replace(
            memory,
            num_mem_tokens=hf.num_mem_tokens,
            update=hf.memory_update,
            max_n_segments=hf.max_n_segments,
            bptt_depth=hf.bptt_depth,
        )
    return replace(
        base, model=model, memory=memory, data=replace(base.data, segment_size=segment_size)
    )
