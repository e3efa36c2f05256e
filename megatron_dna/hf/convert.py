"""Checkpoints of this package as Hugging Face models.

The plain encoder is exactly `transformers.ModernBertForMaskedLM`, so the result loads with no
remote code. Every weight is one row of a table: its Hugging Face name, its key in the checkpoint,
and how the one layout becomes the other.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

from megatron_dna.checkpoint.reader import read_config, read_weights
from megatron_dna.config import Config, ConfigError, ModelConfig
from megatron_dna.hf.card import model_card
from megatron_dna.model.layers import is_local_layer
from megatron_dna.tokenizer.bpe import DnaTokenizer

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class WeightRule:
    """One weight in both worlds."""

    hf_name: str
    """Name in `ModernBertForMaskedLM.state_dict()`."""
    key: str
    """Key in the checkpoint."""
    to_hf: Callable[[Tensor], Tensor]
    """From the checkpoint's layout to Hugging Face's."""


def weight_rules(model: ModelConfig, vocab_size: int) -> Iterator[WeightRule]:
    """The table: every weight of the plain encoder once (the decoder is tied)."""

    def same(weight: Tensor) -> Tensor:
        return weight

    def without_padding_ids(weight: Tensor) -> Tensor:
        return weight[:vocab_size].clone()

    def qkv(weight: Tensor) -> Tensor:
        return qkv_by_kind(weight, model.num_attention_heads)

    def norm(hf_name: str, prefix: str) -> Iterator[WeightRule]:
        for part in ("weight", "bias") if model.norm_bias else ("weight",):
            yield WeightRule(f"{hf_name}.{part}", f"{prefix}{part}", same)

    embedding = "embedding.word_embeddings.weight"
    yield WeightRule("model.embeddings.tok_embeddings.weight", embedding, without_padding_ids)
    yield from norm("model.embeddings.norm", "embedding.norm.")
    for i in range(model.num_layers):
        ours, theirs = f"decoder.layers.{i}", f"model.layers.{i}"
        attention, mlp = f"{ours}.self_attention", f"{ours}.mlp"
        if i > 0:
            yield from norm(f"{theirs}.attn_norm", f"{attention}.linear_qkv.layer_norm_")
        yield WeightRule(f"{theirs}.attn.Wqkv.weight", f"{attention}.linear_qkv.weight", qkv)
        yield WeightRule(f"{theirs}.attn.Wo.weight", f"{attention}.linear_proj.weight", same)
        yield from norm(f"{theirs}.mlp_norm", f"{mlp}.linear_fc1.layer_norm_")
        yield WeightRule(f"{theirs}.mlp.Wi.weight", f"{mlp}.linear_fc1.weight", same)
        yield WeightRule(f"{theirs}.mlp.Wo.weight", f"{mlp}.linear_fc2.weight", same)
    yield from norm("model.final_norm", "decoder.final_layernorm.")
    yield WeightRule("head.dense.weight", "head.dense.weight", same)
    yield from norm("head.norm", "head.norm.")
    yield WeightRule("decoder.bias", "output_layer.bias", without_padding_ids)


def qkv_by_kind(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder rows from Megatron's (q, k, v of head 0, of head 1, ...) to (all q, all k, all v).

    Args:
        weight: [3 * hidden, hidden].
        num_heads: attention heads.
    """
    hidden = weight.shape[1]
    by_head = weight.view(num_heads, 3, hidden // num_heads, hidden)
    return by_head.transpose(0, 1).reshape(3 * hidden, hidden)


def modernbert_config(config: Config, tokenizer: DnaTokenizer) -> ModernBertConfig:
    """The same architecture in transformers' terms."""
    model = config.model
    layer_types = [
        "sliding_attention" if is_local_layer(model, layer) else "full_attention"
        for layer in range(model.num_layers)
    ]
    return ModernBertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        max_position_embeddings=config.seq_length,
        initializer_range=model.init_method_std,
        norm_eps=model.norm_eps,
        norm_bias=model.norm_bias,
        layer_types=layer_types,
        global_attn_every_n_layers=model.global_attn_every_n_layers,  # type: ignore[call-arg]
        local_attention=model.local_attention,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": model.global_rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": model.local_rope_theta},
        },
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_id,
        cls_token_id=tokenizer.cls_id,
        sep_token_id=tokenizer.sep_id,
        bos_token_id=tokenizer.cls_id,
        eos_token_id=tokenizer.sep_id,
    )


def hf_tokenizer(path: str | Path, model_max_length: int) -> PreTrainedTokenizerFast:
    """The run's tokenizer.json for transformers: special tokens named, segments framed."""
    tokenizer = Tokenizer.from_file(str(path))
    frame = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, frame)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=model_max_length,
    )


def to_hugging_face(
    checkpoint: Path, output: Path, dtype: str = "fp32", tokenizer: Path | None = None
) -> None:
    """Write `checkpoint` as a folder that AutoModelForMaskedLM and AutoTokenizer load.

    Written beside `output` and moved into place when complete.

    Args:
        checkpoint: an `iter_...` folder.
        output: folder to make; must not exist yet.
        dtype: `fp32` or `bf16`.
        tokenizer: tokenizer.json, if it is no longer where the run's config says.

    Raises:
        ValueError: the checkpoint, the tokenizer or the output folder cannot be used.
    """
    if output.exists():
        raise ValueError(f"--output ({output}) exists already; choose another folder or remove it")
    config = read_config(checkpoint)
    if config.memory.num_mem_tokens:
        raise ConfigError(
            f"memory.num_mem_tokens ({config.memory.num_mem_tokens}) of {checkpoint} must be 0: "
            "only the plain encoder has a native Hugging Face class"
        )
    tokenizer_path = tokenizer or Path(config.data.tokenizer)
    if not tokenizer_path.is_file():
        raise ValueError(f"tokenizer ({tokenizer_path}) is not a file; name it with --tokenizer")
    dna_tokenizer = DnaTokenizer.from_file(tokenizer_path)
    model = _load_model(checkpoint, config, dna_tokenizer, DTYPES[dtype])
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        model.save_pretrained(partial, max_shard_size="5GB")
        hf_tokenizer(tokenizer_path, config.seq_length).save_pretrained(partial)
        (partial / "README.md").write_text(model_card(checkpoint, config, model), encoding="utf-8")
        partial.chmod(0o755)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    logger.info("wrote %s", output)


def _load_model(
    checkpoint: Path, config: Config, tokenizer: DnaTokenizer, dtype: torch.dtype
) -> ModernBertForMaskedLM:
    with torch.device("meta"):
        model = ModernBertForMaskedLM(modernbert_config(config, tokenizer))
    weights = read_weights(checkpoint)
    state = {
        rule.hf_name: rule.to_hf(weights[rule.key]).to(dtype)
        for rule in weight_rules(config.model, tokenizer.vocab_size)
    }
    state["decoder.weight"] = state["model.embeddings.tok_embeddings.weight"]
    missing = model.state_dict().keys() ^ state.keys()
    assert not missing, f"weights without a rule, or rules without a weight: {sorted(missing)}"
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model
