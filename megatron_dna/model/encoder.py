"""The DNA BERT: a ModernBERT-compatible encoder on Megatron-Core's TransformerBlock.

Source: Warner et al. 2024 (ModernBERT); its plain form is `transformers.ModernBertForMaskedLM`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_dna.config import Config, Fp8Config, MemoryConfig, ModelConfig
from megatron_dna.model.context import (
    deal_states,
    gather_parts,
    join_shares,
    own_positions,
    own_share,
)
from megatron_dna.model.head import (
    PredictionHead,
    likeliest_ids,
    masked_cross_entropy,
    without_padding_ids,
)
from megatron_dna.model.initialize import initialize_weights, mark_split_weights
from megatron_dna.model.layers import (
    LayerNorm,
    head_config,
    is_local_layer,
    local_layer,
    rotary_angles,
    transformer_engine_layer,
)
from megatron_dna.model.memory import MEMORY_UPDATES


def padded_vocab_size(vocab_size: int, make_vocab_size_divisible_by: int) -> int:
    """Rows of the embedding. Does not depend on TP, so that checkpoints do not either."""
    return -(-vocab_size // make_vocab_size_divisible_by) * make_vocab_size_divisible_by


def transformer_config(config: Config, layer_spec: str = "local") -> TransformerConfig:
    """Megatron-Core's view of the options.

    Args:
        config: the run's options.
        layer_spec: `transformer_engine` rotates queries and keys in its one kernel, not in ten.
    """
    model, parallel, train = config.model, config.parallel, config.train
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    local = [int(is_local_layer(model, layer)) for layer in range(model.num_layers)]
    half_width = model.local_attention // 2
    full = train.recompute_granularity == "full"
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        layernorm_epsilon=model.norm_eps,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.gelu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        window_size=(half_width, half_width) if any(local) else None,
        window_attn_skip_freq=local if any(local) else None,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        bf16=train.precision == "bf16",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # torch waits for batched transfers itself (pytorch/pytorch#82450): the host need not.
        batch_p2p_sync=False,
        recompute_granularity=train.recompute_granularity,
        recompute_method="uniform" if full else None,
        recompute_num_layers=1 if full else None,
        calculate_per_token_loss=True,
        hetereogenous_dist_checkpoint=True,  # layers are not alike: the first has no norm
        tp_comm_overlap=parallel.tp_comm_overlap,
        # Weights are drawn on the CPU; those that are kept in FP8 can only be made on the GPU.
        use_cpu_initialization=not config.fp8.param_gather,
        perform_initialization=False,  # see model/initialize.py
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=layer_spec == "transformer_engine",
        # Transformer Engine overwrites the sum of gradients with those of the micro-batch that it
        # saw first, whose backward pass comes last through segments.
        gradient_accumulation_fusion=False,
        **_fp8_options(config.fp8),
    )


def _fp8_options(fp8: Fp8Config) -> dict[str, Any]:
    """Megatron-Core's options of FP8; none where it is off.

    Its TransformerBlock enters Transformer Engine's autocast for each layer by the layer's number
    in the whole model, and for `delayed` once around all layers of a segment. Embedding, head and
    attention's products stay in BF16.
    """
    if not fp8.is_on:
        return {}
    return {
        "fp8": fp8.format,
        "fp8_recipe": fp8.recipe,
        "fp8_param": fp8.param_gather,
        "fp8_amax_history_len": fp8.amax_history_len,
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": fp8.first_last_layers_bf16,
        "num_layers_at_start_in_bf16": fp8.num_layers_at_start_in_bf16,
        "num_layers_at_end_in_bf16": fp8.num_layers_at_end_in_bf16,
    }


class Embedding(MegatronModule):
    """Memory and token embeddings (these split over the vocabulary), and the embedding norm."""

    def __init__(
        self,
        config: TransformerConfig,
        padded_vocab: int,
        num_mem_tokens: int,
        norm_bias: bool,
        groups: ProcessGroupCollection,
    ) -> None:
        super().__init__(config)
        self.num_mem_tokens = num_mem_tokens
        if num_mem_tokens:
            self.initial_memory = torch.nn.Parameter(
                torch.empty(num_mem_tokens, config.hidden_size, dtype=config.params_dtype)
            )
        self.tp_group, self.cp_group = groups.tp, groups.cp
        self.word_embeddings = VocabParallelEmbedding(
            padded_vocab,
            config.hidden_size,
            init_method=config.init_method,
            config=config,
            tp_group=groups.tp,
        )
        self.norm = LayerNorm(config, config.hidden_size, config.layernorm_epsilon, norm_bias)

    def forward(self, input_ids: Tensor, memory: Tensor | None) -> Tensor:
        """Join memory and tokens, as far as they are at this rank's positions.

        Args:
            input_ids: [micro_batch, C].
            memory: [M, micro_batch, hidden] of the segment before; None starts a window.

        Returns:
            [(M + C) / cp (/ tp under SP), micro_batch, hidden].
        """
        own = own_positions(self.num_mem_tokens + input_ids.shape[1], self.cp_group)
        first, last = (max(0, end - self.num_mem_tokens) for end in (own.start, own.stop))
        hidden = self.word_embeddings(input_ids[:, first:last]).transpose(0, 1).contiguous()
        if hasattr(self, "initial_memory"):
            initial = self.initial_memory[:, None, :].expand(-1, hidden.shape[1], -1)
            # Megatron's overlapped reduction waits for the gradient of every parameter in the last
            # backward pass, in which there may be no start of a window: it then gets one of zero.
            memory = initial if memory is None else memory + 0 * initial
            hidden = torch.cat((memory[own], hidden))
        if self.config.sequence_parallel:
            # A copy: the norm keeps its input, and a view would keep the parts of all ranks.
            hidden = tensor_parallel.scatter_to_sequence_parallel_region(
                hidden, group=self.tp_group
            ).clone()
        output: Tensor = self.norm(hidden)
        return output


class StageOutput(NamedTuple):
    """What a stage makes of one segment."""

    hidden: Tensor | None = None
    """Before the last stage: [(M + C) / cp (/ tp under SP), micro_batch, hidden]."""
    losses: Tensor | None = None
    """Last stage, with labels: cross-entropy in nats, fp32 [micro_batch, k]."""
    logits: Tensor | None = None
    """Last stage, without labels: [micro_batch, k, vocab], gathered over TP."""
    predictions: Tensor | None = None
    """Last stage, with labels and where asked for: likeliest ids, [micro_batch, k]."""
    new_memory: Tensor | None = None
    """Last stage, where M > 0: memory for the next segment, [M, micro_batch, hidden]."""


class DnaBert(LanguageModule):
    """One pipeline stage of the encoder (all of it where PP is 1)."""

    def __init__(
        self,
        model: ModelConfig,
        config: TransformerConfig,
        layer_specs: list[ModuleSpec],
        vocab_size: int,
        groups: ProcessGroupCollection,
        memory: MemoryConfig,
        pre_process: bool,
        post_process: bool,
    ) -> None:
        """Build the stage.

        Args:
            model: shape of the whole model.
            config: Megatron-Core's options.
            layer_specs: this stage's layers.
            vocab_size: ids that exist (padding excluded).
            groups: Megatron's process groups.
            memory: recurrent memory.
            pre_process: whether the stage holds the embedding.
            post_process: whether the stage holds the head.
        """
        super().__init__(config, groups)
        self.model_type = ModelType.encoder_or_decoder
        self.shape = model
        self.vocab_size = vocab_size
        self.pre_process = pre_process
        self.post_process = post_process
        self.cp_group = groups.cp
        self.num_mem_tokens = memory.num_mem_tokens
        self.update_memory = MEMORY_UPDATES[memory.update]
        self.share_embeddings_and_output_weights = True
        padded_vocab = padded_vocab_size(vocab_size, model.make_vocab_size_divisible_by)
        norm = ModuleSpec(module=LayerNorm, params={"bias": model.norm_bias})
        if pre_process:
            self.embedding = Embedding(
                config, padded_vocab, memory.num_mem_tokens, model.norm_bias, groups
            )
        self.decoder = TransformerBlock(
            config,
            TransformerBlockSubmodules(layer_specs=layer_specs, layer_norm=norm),
            pre_process=pre_process,
            post_process=post_process,
            pg_collection=groups,
        )
        if post_process:
            self.head = PredictionHead(config, model.norm_bias)
            self.output_layer = ColumnParallelLinear(
                config.hidden_size,
                padded_vocab,
                config=head_config(config),
                init_method=config.init_method,
                bias=True,
                gather_output=False,
                skip_weight_param_allocation=pre_process,
                tp_group=groups.tp,
            )
            self.vocab_start = groups.tp.rank() * (padded_vocab // groups.tp.size())
        self.setup_embeddings_and_output_layer()

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor]) -> None:
        """Take the hidden states that the previous pipeline stage sent (Megatron's schedules)."""
        if isinstance(input_tensor, list):
            (input_tensor,) = input_tensor
        self.decoder.set_input_tensor(input_tensor)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        masked_positions: Tensor,
        labels: Tensor | None = None,
        memory: Tensor | None = None,
        noise: Tensor | None = None,
        predict: bool = False,
    ) -> StageOutput:
        """Run the stage on one segment of each sample.

        Args:
            input_ids: [micro_batch, C], with masks in place.
            attention_mask: [micro_batch, C], True at real tokens; None if all are.
            masked_positions: [micro_batch, k] positions in the segment, where the head runs.
            labels: [micro_batch, k], original ids.
            memory: [M, micro_batch, hidden] that the segment before left; None at a window's start.
            noise: [M, micro_batch, hidden] added to the new memory before its update.
            predict: with labels, also return `predictions`.

        Returns:
            Before the last stage `hidden` only. On the last, `new_memory` (where M > 0) and
            `losses` (and `predictions`), or without `labels` the `logits`.
        """
        length = self.num_mem_tokens + input_ids.shape[1]
        angles = _angles(self.shape, length, input_ids.device)
        padding = None
        if attention_mask is not None:
            seen = F.pad(attention_mask, (self.num_mem_tokens, 0), value=True)
            padding = ~seen[:, None, None, :]
        hidden = self.decoder(
            hidden_states=self.embedding(input_ids, memory) if self.pre_process else None,
            attention_mask=padding,
            rotary_pos_emb=angles[:, own_positions(length, self.cp_group)],
        )
        if not self.post_process:
            return StageOutput(hidden=hidden)
        if self.config.sequence_parallel:
            # What follows is the same on every TP rank, so each takes back only its own part of
            # the gradient instead of a sum over ranks.
            hidden = tensor_parallel.gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=False, group=self.tp_group
            )
        new_memory = None
        if self.num_mem_tokens:
            new_memory = self.update_memory(self._memory_states(hidden), noise)
        logits = self._logits(hidden, masked_positions + self.num_mem_tokens)
        count = masked_positions.shape[1]
        if labels is not None:
            ids = None
            if predict:  # before the loss, which works on the logits in place
                ids = likeliest_ids(logits, self.vocab_start, self.tp_group)
                ids = join_shares(ids, count, self.cp_group).t()
            losses = masked_cross_entropy(logits, own_share(labels, self.cp_group).t())
            losses = join_shares(losses, count, self.cp_group).t()
            return StageOutput(losses=losses, predictions=ids, new_memory=new_memory)
        gathered = tensor_parallel.gather_from_tensor_model_parallel_region(
            logits, group=self.tp_group
        )
        gathered = join_shares(gathered, count, self.cp_group)
        logits = gathered.transpose(0, 1)[..., : self.vocab_size]
        return StageOutput(logits=logits, new_memory=new_memory)

    def _memory_states(self, hidden: Tensor) -> Tensor:
        """Final states at the memory's slots, [M, micro_batch, hidden], the same on all CP ranks.

        Each CP rank reads the memory at its own positions of the next segment: their gradients are
        added up.
        """
        count = self.num_mem_tokens
        if self.cp_group.size() == 1:
            return hidden[:count].clone()  # a view would keep the states of all positions
        slots = torch.arange(count, device=hidden.device).expand(hidden.shape[1], -1)
        share = deal_states(hidden, slots, self.cp_group)
        return gather_parts(share, self.cp_group, alike_after=False)[:count]

    def _logits(self, hidden: Tensor, masked_positions: Tensor) -> Tensor:
        """[k / cp, micro_batch, padded_vocab / tp] at this CP rank's share of the positions."""
        hidden = self.head(deal_states(hidden, masked_positions, self.cp_group))
        tied = self.shared_embedding_or_output_weight() if self.pre_process else None
        logits, _ = self.output_layer(hidden, weight=tied)
        return without_padding_ids(logits, self.vocab_size, self.vocab_start)


@lru_cache(maxsize=4)
def _angles(model: ModelConfig, seq_length: int, device: torch.device) -> Tensor:
    return rotary_angles(model, seq_length, device)


def build_model(
    config: Config,
    vocab_size: int,
    groups: ProcessGroupCollection,
    layer_spec: str,
    device: torch.device,
) -> DnaBert:
    """This process's stage with its initial weights, on `device`.

    Args:
        config: the run's options.
        vocab_size: ids of the tokenizer.
        groups: Megatron's process groups.
        layer_spec: `local` or `transformer_engine`.
        device: where the weights go.
    """
    stage, num_stages = groups.pp.rank(), groups.pp.size()
    layers_per_stage = config.model.num_layers // num_stages
    make_layer = local_layer if layer_spec == "local" else transformer_engine_layer
    first = stage * layers_per_stage
    model = DnaBert(
        config.model,
        transformer_config(config, layer_spec),
        [make_layer(config.model, first + i) for i in range(layers_per_stage)],
        vocab_size,
        groups,
        config.memory,
        pre_process=stage == 0,
        post_process=stage == num_stages - 1,
    )
    state = model.sharded_state_dict()
    initialize_weights(
        state,
        config.train.seed,
        config.model.init_method_std,
        config.model.num_layers,
    )
    mark_split_weights(state)
    # Weights are drawn on the CPU. (torch cannot move a dry run's fake tensors, not even nowhere.)
    return model if device.type == "cpu" else model.to(device)
