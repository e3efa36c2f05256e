"""The layers of the encoder: two specs of Megatron-Core's TransformerLayer for one architecture.

The `local` spec is plain torch and runs anywhere; `transformer_engine` is NVIDIA's fused modules.
Both have ModernBERT's shape: pre-LayerNorm, no norm before the first attention, GeGLU, RoPE with
one base for global and one for local layers. Their checkpoints have the same keys.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megatron_dna.config import Config, ConfigError, ModelConfig
from megatron_dna.model.attention_kernels import (
    Attention,
    mask_type_of_full_windows,
    nothing_hidden,
)
from megatron_dna.model.context import gather_parts


def is_local_layer(model: ModelConfig, layer: int) -> bool:
    """Whether layer `layer` (counted from 0) attends within a window only."""
    return layer % model.global_attn_every_n_layers != 0


def is_fp8_layer(config: Config, layer: int) -> bool:
    """Whether layer `layer` (counted from 0) computes in FP8, as Megatron-Core decides it."""
    fp8 = config.fp8
    if not fp8.is_on or not fp8.first_last_layers_bf16:
        return fp8.is_on
    last = config.model.num_layers - fp8.num_layers_at_end_in_bf16
    return fp8.num_layers_at_start_in_bf16 <= layer < last


def choose_layer_spec(requested: str, on_cuda: bool) -> str:
    """Resolve `auto`, and refuse a spec that cannot run here.

    Raises:
        ConfigError: Transformer Engine is asked for and is not installed, or there is no CUDA.
    """
    has_te = importlib.util.find_spec("transformer_engine") is not None
    if requested == "auto":
        return "transformer_engine" if on_cuda and has_te else "local"
    if requested == "transformer_engine" and not (on_cuda and has_te):
        missing = "Transformer Engine (pip install megatron_dna[gpu])" if on_cuda else "CUDA"
        raise ConfigError(f"model.layer_spec ({requested}) needs {missing}; use local or auto")
    return requested


class LayerNorm(MegatronModule):
    """LayerNorm with or without bias that knows sequence parallelism.

    Under sequence parallelism each TP rank sees a part of the sequence, so the gradients of the
    weights are partial: the mark makes Megatron-Core sum them over the TP group.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float,
        bias: bool,
        sharded: bool = True,
    ) -> None:
        """`sharded`: whether the input is split along the sequence under sequence parallelism."""
        super().__init__(config)
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.bias = None
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel and sharded

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension of `hidden` [..., hidden]."""
        return F.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)


def rotary_angles(model: ModelConfig, seq_length: int, device: torch.device) -> Tensor:
    """RoPE angles of global (row 0) and local (row 1) layers: [2, seq, 1, 1, head_dim], fp32."""
    dim = model.hidden_size // model.num_attention_heads
    steps = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    thetas = torch.tensor([[model.global_rope_theta], [model.local_rope_theta]])
    inverse_frequencies = 1.0 / thetas**steps  # [2, head_dim / 2]
    positions = torch.arange(seq_length, dtype=torch.float32)
    angles = positions[None, :, None] * inverse_frequencies[:, None, :]
    return torch.cat((angles, angles), dim=-1)[:, :, None, None, :].to(device)


class EncoderSelfAttention(SelfAttention):
    """Megatron-Core's self-attention: a RoPE base per layer type, and no mask where none is due."""

    def __init__(self, *args: Any, half_width: int | None, **kwargs: Any) -> None:
        """`half_width`: tokens seen to each side, None for all."""
        super().__init__(*args, **kwargs)
        self.half_width = half_width

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        *,
        rotary_pos_emb: Tensor,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attend. Source: Megatron-Core `Attention.forward`; differs as the class says.

        Args:
            hidden_states: [seq, micro_batch, hidden], the sequence split over TP under SP.
            attention_mask: [micro_batch, 1, 1, seq], True where a key is padding; None if nowhere.
            rotary_pos_emb: `rotary_angles`.
            **kwargs: passed on.

        Returns:
            Output [seq, micro_batch, hidden] and the (absent) bias, to be added by the caller.
        """
        self.attn_mask_type = AttnMaskType.padding
        if attention_mask is None:  # as everywhere but in short documents
            self.attn_mask_type, attention_mask = self.mask_of_full_windows(hidden_states)
        output: tuple[Tensor, Tensor] = super().forward(
            hidden_states,
            attention_mask,
            rotary_pos_emb=rotary_pos_emb[int(self.half_width is not None)],
            **kwargs,
        )
        return output

    def mask_of_full_windows(self, hidden_states: Tensor) -> tuple[AttnMaskType, Tensor | None]:
        """Type and, where the fast kernel wants one, mask."""
        if isinstance(self.core_attention, LocalCoreAttention):
            return AttnMaskType.no_mask, None
        seq_length, micro_batch, _ = hidden_states.shape
        if self.config.sequence_parallel:
            seq_length *= self.config.tensor_model_parallel_size
        attention = Attention(
            hidden_states.dtype,
            micro_batch,
            self.num_attention_heads_per_partition,
            self.hidden_size_per_attention_head,
            seq_length,
            self.half_width,
            self.training,
        )
        mask_type = mask_type_of_full_windows(attention)
        if mask_type is AttnMaskType.no_mask:
            return mask_type, None
        return mask_type, nothing_hidden(micro_batch, seq_length, hidden_states.device)


@lru_cache(maxsize=8)
def _inside_window(queries: range, keys: range, half_width: int, device: torch.device) -> Tensor:
    """[queries, keys], True where two positions are at most `half_width` apart."""
    rows = torch.arange(queries.start, queries.stop, device=device)
    columns = torch.arange(keys.start, keys.stop, device=device)
    return (rows[:, None] - columns[None, :]).abs() <= half_width


class LocalCoreAttention(torch.nn.Module):
    """Bidirectional attention on torch's scaled_dot_product_attention, global or in a window.

    Megatron-Core's own local attention materialises the scores and drops the padding mask under a
    window (`fusions/fused_softmax.py`).

    Under context parallelism it gathers the keys and values of the whole sequence, whichever the
    spec: Transformer Engine's own attention has no padding masks there.
    """

    def __init__(
        self, half_width: int | None, pg_collection: ProcessGroupCollection, **_: Any
    ) -> None:
        """`half_width`: tokens seen to each side, None for all."""
        super().__init__()
        self.half_width = half_width
        self.cp_group = pg_collection.cp

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> Tensor:
        """Attend.

        Args:
            query: [seq / cp, micro_batch, heads / tp, head_dim]; `key` and `value` alike.
            key: as `query`.
            value: as `query`.
            attention_mask: [micro_batch, 1, 1, seq], True where a key is padding; None if nowhere.
            **_: mask type and other options of Megatron-Core that the mask already tells.

        Returns:
            [seq / cp, micro_batch, hidden / tp].
        """
        num_queries, micro_batch = query.shape[:2]
        first = self.cp_group.rank() * num_queries
        queries = range(first, first + num_queries)
        keys, window = range(num_queries * self.cp_group.size()), None
        if self.half_width is not None and self.half_width < len(keys) - 1:
            reach = (queries.start - self.half_width, queries.stop + self.half_width)
            keys = range(max(0, reach[0]), min(len(keys), reach[1]))
            window = _inside_window(queries, keys, self.half_width, query.device)
        if self.cp_group.size() > 1:
            key, value = self._gather(key, value, keys)
        allowed = None
        if attention_mask is not None:
            allowed = ~attention_mask[..., keys.start : keys.stop]
        if window is not None:
            if allowed is None:
                allowed = window
            else:
                # Padding that sees no token sees itself: CUDA's kernels make NaN of an empty row.
                allowed = (allowed & window) | _inside_window(queries, keys, 0, query.device)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return output.permute(2, 0, 1, 3).reshape(num_queries, micro_batch, -1)

    def _gather(self, key: Tensor, value: Tensor, wanted: range) -> tuple[Tensor, Tensor]:
        """Keys and values of the whole sequence, and of them those `wanted`."""
        both = gather_parts(torch.cat((key, value), -1), self.cp_group, alike_after=False)
        if len(wanted) < len(both):
            both = both[wanted.start : wanted.stop].clone()  # the backward pass keeps no more
        key, value = both.chunk(2, dim=-1)
        return key, value


def _half_width(model: ModelConfig, layer: int) -> int | None:
    return model.local_attention // 2 if is_local_layer(model, layer) else None


def local_layer(model: ModelConfig, layer: int) -> ModuleSpec:
    """Layer `layer` (counted from 0) in plain torch."""
    norm = ModuleSpec(module=LayerNorm, params={"bias": model.norm_bias})
    keys = {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}
    if layer > 0:
        keys["input_layernorm."] = "self_attention.linear_qkv.layer_norm_"
    return _layer(
        model,
        layer,
        SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=partial(LocalCoreAttention, half_width=_half_width(model, layer)),
            linear_proj=RowParallelLinear,
        ),
        MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
        input_layernorm=norm if layer > 0 else IdentityOp,
        pre_mlp_layernorm=norm,
        sharded_state_dict_keys_map=keys,
    )


def transformer_engine_layer(model: ModelConfig, layer: int) -> ModuleSpec:
    """Layer `layer` (counted from 0) in Transformer Engine's modules, norms fused into linears."""
    from megatron.core.extensions.transformer_engine import (
        TEColumnParallelLinear,
        TEDotProductAttention,
        TELayerNormColumnParallelLinear,
        TERowParallelLinear,
    )

    def core_attention(config: TransformerConfig, **kwargs: Any) -> torch.nn.Module:
        if config.context_parallel_size > 1:
            return LocalCoreAttention(_half_width(model, layer), **kwargs)
        attention: torch.nn.Module = TEDotProductAttention(config=config, **kwargs)
        return attention

    return _layer(
        model,
        layer,
        SelfAttentionSubmodules(
            linear_qkv=TELayerNormColumnParallelLinear if layer > 0 else TEColumnParallelLinear,
            core_attention=core_attention,
            linear_proj=TERowParallelLinear,
        ),
        MLPSubmodules(linear_fc1=TELayerNormColumnParallelLinear, linear_fc2=TERowParallelLinear),
    )


def _layer(
    model: ModelConfig,
    layer: int,
    attention: SelfAttentionSubmodules,
    mlp: MLPSubmodules,
    **rest: Any,
) -> ModuleSpec:
    return ModuleSpec(
        module=EncoderLayer,
        params={"norm_bias": model.norm_bias},
        submodules=TransformerLayerSubmodules(
            self_attention=ModuleSpec(
                module=EncoderSelfAttention,
                params={"half_width": _half_width(model, layer)},
                submodules=attention,
            ),
            self_attn_bda=get_bias_dropout_add,
            mlp=ModuleSpec(module=MLP, submodules=mlp),
            mlp_bda=get_bias_dropout_add,
            **rest,
        ),
    )


class EncoderLayer(TransformerLayer):
    """Megatron-Core's layer; keeps Transformer Engine's norm biases at zero where there are none.

    Transformer Engine's LayerNorm always has a bias. Without `model.norm_bias` it stays zero,
    takes no gradient and is left out of checkpoints.
    """

    def __init__(self, *args: Any, norm_bias: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm_bias = norm_bias
        for bias in self._unwanted_biases().values():
            torch.nn.init.zeros_(bias)
            bias.requires_grad_(False)

    def _unwanted_biases(self) -> dict[str, torch.nn.Parameter]:
        if self.norm_bias:
            return {}
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if name.endswith("layer_norm_bias")
        }

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> ShardedStateDict:
        """As Megatron-Core's, without the biases that do not exist in the architecture."""
        state: ShardedStateDict = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for name in self._unwanted_biases():
            state.pop(prefix + name, None)
        return state


def head_config(config: TransformerConfig) -> TransformerConfig:
    """`config` for modules whose input is whole on every TP rank, as the head's is."""
    return dataclasses.replace(config, sequence_parallel=False)
