"""Rules of the section `model`."""

from __future__ import annotations

from megatron_dna.config import ModelConfig
from megatron_dna.validation.rules import (
    next_multiple,
    require,
    require_one_of,
    require_positive,
)


def validate_model(model: ModelConfig) -> None:
    """The shape of the encoder.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    require_positive(
        "model", model, "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads",
        "norm_eps", "global_attn_every_n_layers", "global_rope_theta", "local_rope_theta",
        "init_method_std", "make_vocab_size_divisible_by",
    )  # fmt: skip
    heads, width = model.num_attention_heads, model.hidden_size
    require(
        width % (2 * heads) == 0, "model.num_attention_heads", heads,
        f"must divide model.hidden_size ({width}) into heads of even width",
        f"the next model.hidden_size that fits is {next_multiple(width, 2 * heads)}",
    )  # fmt: skip
    window = model.local_attention
    require(
        window >= 2 and window % 2 == 0, "model.local_attention", window,
        "must be even and at least 2: half the window lies to each side",
        f"the next that fits is {next_multiple(window, 2)}",
    )  # fmt: skip
    require_one_of("model", model, "layer_spec", ("auto", "local", "transformer_engine"))
