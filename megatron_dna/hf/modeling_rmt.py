"""ModernBERT with recurrent memory (RMT), for transformers alone.

A sequence of any length is read in segments of `segment_size` tokens. In front of each segment
stand M memory embeddings; the encoder's final states there are the memory of the next segment:

    m_0 = learned [M, hidden]
    H_s = ModernBertModel([m_s ; E(x_s)])
    m_(s+1) = update(H_s[:M])            `plain`: as they are, `binary`: their signs

Give the models what the tokenizer makes, [CLS] tokens [SEP] and padding on the right. Up to
`segment_size` tokens are one segment, as they are. A longer row is cut: each segment is [CLS], the
next `segment_size` - 2 tokens and [SEP], the last one what is left. Outputs have the input's shape
again; at [CLS] (and [SEP]) stands the state of the row's *last* segment, which has read all of it.

To stream what does not fit into memory, call the model segment by segment and hand `memory` on:

    memory = None
    for input_ids in segments:           # each [batch, <= segment_size]
        output = model(input_ids=input_ids, memory=memory)
        memory = output.memory           # [batch, M, hidden]

Source: Bulatov et al. 2022 (Recurrent Memory Transformer), the encoder form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertModel
from transformers import initialization as init
from transformers.models.modernbert.modeling_modernbert import (
    ModernBertPredictionHead,
    ModernBertPreTrainedModel,
)
from transformers.utils.generic import ModelOutput

STRAIGHT_THROUGH_SLOPE = 1.5
"""`binary` passes back the gradient of tanh(1.5 h)."""


class RmtConfig(ModernBertConfig):
    """ModernBERT's options and the memory's."""

    model_type = "modernbert_rmt"
    keys_to_ignore_at_inference = ["memory"]  # noqa: RUF012 (transformers' own form)

    num_mem_tokens: int = 8
    """M, memory embeddings in front of every segment."""
    segment_size: int = 512
    """Tokens of a segment, [CLS] and [SEP] included."""
    memory_update: str = "plain"
    """New memory from final states: `plain`, or `binary` (their signs)."""
    max_n_segments: int = 1
    """Segments of the windows that the model was trained on; longer input is allowed."""
    bptt_depth: int = -1
    """Segments that gradients flow through, -1 for all: bounds the memory of fine-tuning."""


@dataclass
class RmtOutput(ModelOutput):
    """What the models return; what does not apply is None."""

    loss: Tensor | None = None
    """Scalar, with labels."""
    logits: Tensor | None = None
    """[batch, length, vocab], [batch, num_labels] or [batch, length, num_labels]."""
    last_hidden_state: Tensor | None = None
    """[batch, length, hidden]; of `RmtModel` only."""
    memory: Tensor | None = None
    """[batch, M, hidden], after the row's last token."""
    hidden_states: tuple[Tensor, ...] | None = None
    """With `output_hidden_states`: [batch, length, hidden] of the embedding and of each layer."""


class RmtPreTrainedModel(ModernBertPreTrainedModel):
    """What the models share."""

    config_class = RmtConfig
    _no_split_modules = ["ModernBertEmbeddings", "ModernBertEncoderLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RmtModel):
            init.normal_(module.initial_memory, std=self.config.initializer_range)


class RmtModel(RmtPreTrainedModel):
    """The encoder: tokens and memory in, hidden states and memory out."""

    def __init__(self, config: RmtConfig) -> None:
        super().__init__(config)
        self.encoder = ModernBertModel(config)
        self.initial_memory = nn.Parameter(torch.empty(config.num_mem_tokens, config.hidden_size))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.encoder.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        memory: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> RmtOutput | tuple[Any, ...]:
        """Read a batch segment by segment.

        Args:
            input_ids: [batch, length].
            attention_mask: [batch, length], 1 at tokens, 0 at padding; None if there is none.
            memory: [batch, M, hidden] that an earlier call returned; None starts afresh.
            output_hidden_states: also return the states of every layer.
            return_dict: false returns a tuple of what is not None.
            **kwargs: for the encoder (`output_attentions` is not supported).

        Raises:
            ValueError: a row is longer than a segment and not [CLS] tokens [SEP] padding.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        sources, present = cut_segments(attention_mask, self.config.segment_size)
        if memory is None:
            memory = self.initial_memory.expand(len(input_ids), -1, -1)
        states: list[list[Tensor]] = []
        for s, (source, seen) in enumerate(zip(sources, present, strict=True)):
            if s and self.config.bptt_depth > 0 and s % self.config.bptt_depth == 0:
                memory = memory.detach()
            segment, new_memory = self._read(
                input_ids.gather(1, source), seen, memory, output_hidden_states, kwargs
            )
            states.append(segment)
            if s:  # a row that has ended keeps its memory
                new_memory = torch.where(seen.any(1)[:, None, None], new_memory, memory)
            memory = new_memory
        last, *layers = [
            join_segments([segment[i] for segment in states], sources, present, input_ids.shape[1])
            for i in range(len(states[0]))
        ]
        output = RmtOutput(
            last_hidden_state=last,
            memory=memory,
            hidden_states=tuple(layers) if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()

    def _read(
        self, input_ids: Tensor, seen: Tensor, memory: Tensor, all_layers: bool, options: Any
    ) -> tuple[list[Tensor], Tensor]:
        """One segment: states at its tokens (final ones, then each layer's) and new memory."""
        tokens = self.get_input_embeddings()(input_ids)
        num_mem_tokens = memory.shape[1]
        output = self.encoder(
            inputs_embeds=torch.cat((memory.to(tokens.dtype), tokens), 1),
            attention_mask=F.pad(seen, (num_mem_tokens, 0), value=True),
            output_hidden_states=all_layers,
            **options,
        )
        states = [output.last_hidden_state, *(output.hidden_states or ())]
        new_memory = states[0][:, :num_mem_tokens]
        if self.config.memory_update == "binary":
            new_memory = sign(new_memory)
        return [state[:, num_mem_tokens:] for state in states], new_memory


def sign(hidden: Tensor) -> Tensor:
    """-1 or 1 (at 0: 1), with the gradient of tanh(1.5 h)."""
    signs = torch.where(hidden >= 0, 1.0, -1.0).to(hidden.dtype)
    soft = torch.tanh(STRAIGHT_THROUGH_SLOPE * hidden)
    return signs + (soft - soft.detach())


def cut_segments(attention_mask: Tensor, segment_size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Where each token of each segment stands in its row.

    Args:
        attention_mask: [batch, length], 1 at tokens, 0 at padding.
        segment_size: C.

    Returns:
        For each segment, positions in the row and whether there is a token, both [batch, C] (one
        segment: [batch, length]).

    Raises:
        ValueError: there is more than one segment, and padding that is not on the right.
    """
    batch, length = attention_mask.shape
    present = attention_mask.bool()
    positions = torch.arange(length, device=present.device).expand(batch, -1)
    if length <= segment_size:
        return [positions], [present]
    ends = present.sum(1, keepdim=True) - 1  # [batch, 1], the position of [SEP]
    if not torch.equal(present, positions <= ends) or int(ends.min()) < 1:
        raise ValueError(
            f"input of more than config.segment_size ({segment_size}) tokens must be [CLS], "
            "tokens, [SEP] and padding on the right; set tokenizer.padding_side='right'"
        )
    step = segment_size - 2
    slots = torch.arange(segment_size, device=present.device)[None]  # 0 is [CLS]
    sources, seen = [], []
    for start in range(0, max(1, int(ends.max()) - 1), step):
        left = (ends - 1 - start).clamp(max=step)  # [batch, 1], tokens of this segment
        is_end = slots == left + 1
        source = torch.where(slots == 0, 0, torch.where(is_end, ends, slots + start))
        is_there = (slots <= left + 1) & ((left > 0) | (start == 0))
        sources.append(source.clamp(max=length - 1))
        seen.append(is_there)
    return sources, seen


def join_segments(
    states: list[Tensor], sources: list[Tensor], present: list[Tensor], length: int
) -> Tensor:
    """The inverse of the cut: [batch, length, hidden] from each segment's [batch, C, hidden].

    Where segments share a token ([CLS], [SEP]), the row's last segment gives its state. Padding of
    rows that were cut is zero.
    """
    if len(states) == 1 and states[0].shape[1] == length:
        return states[0]
    batch, _, hidden = states[0].shape
    places = []
    for s, (source, seen) in enumerate(zip(sources, present, strict=True)):
        place = torch.where(seen, source, length)
        if s + 1 < len(present):
            goes_on = present[s + 1].any(1)
            place[goes_on, 0] = place[goes_on, -1] = length
        places.append(place)
    index = torch.cat(places, 1)[..., None].expand(-1, -1, hidden)
    joined = states[0].new_zeros(batch, length + 1, hidden)  # one more place, for what is left out
    return joined.scatter(1, index, torch.cat(states, 1))[:, :length]


class RmtForMaskedLM(RmtPreTrainedModel):
    """ModernBERT's masked-language-model head, tied to the token embedding."""

    _tied_weights_keys = {  # noqa: RUF012
        "decoder.weight": "model.encoder.embeddings.tok_embeddings.weight"
    }

    def __init__(self, config: RmtConfig) -> None:
        super().__init__(config)
        self.model = RmtModel(config)
        self.head = ModernBertPredictionHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The decoder."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder."""
        self.decoder = new_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        memory: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> RmtOutput | tuple[Any, ...]:
        """As `RmtModel`; `labels`: [batch, length], -100 where there is no loss."""
        num_items = kwargs.pop("num_items_in_batch", None)
        body = self.model(input_ids, attention_mask, memory, **kwargs)
        logits = self.decoder(self.head(body.last_hidden_state))
        loss = None if labels is None else token_loss(logits, labels, num_items)
        return _output(body, logits, loss, return_dict)


class RmtClassifier(RmtPreTrainedModel):
    """The parts that both classifiers have."""

    def __init__(self, config: RmtConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = RmtModel(config)
        self.head = ModernBertPredictionHead(config)
        self.drop = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class RmtForSequenceClassification(RmtClassifier):
    """A label for a whole row.

    From its [CLS] after the last segment, or, with `classifier_pooling` `mean`, from the mean of
    its tokens. One label is regression; float labels of several classes are independent.
    """

    accepts_loss_kwargs = False  # the loss is a mean over rows

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        memory: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> RmtOutput | tuple[Any, ...]:
        """As `RmtModel`; `labels`: [batch] or [batch, num_labels]."""
        kwargs.pop("num_items_in_batch", None)
        body = self.model(input_ids, attention_mask, memory, **kwargs)
        hidden = body.last_hidden_state
        if self.config.classifier_pooling == "mean":
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            weights = mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        else:
            pooled = hidden[:, 0]
        logits = self.classifier(self.drop(self.head(pooled)))
        loss = None if labels is None else self._loss(logits, labels)
        return _output(body, logits, loss, return_dict)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type is None:
            self.config.problem_type = (
                "regression" if self.num_labels == 1
                else "multi_label_classification" if labels.is_floating_point()
                else "single_label_classification"
            )  # fmt: skip
        if self.config.problem_type == "regression":
            return F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels.reshape(-1))


class RmtForTokenClassification(RmtClassifier):
    """A label for every token."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        memory: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> RmtOutput | tuple[Any, ...]:
        """As `RmtModel`; `labels`: [batch, length], -100 where there is no loss."""
        num_items = kwargs.pop("num_items_in_batch", None)
        body = self.model(input_ids, attention_mask, memory, **kwargs)
        logits = self.classifier(self.drop(self.head(body.last_hidden_state)))
        loss = None if labels is None else token_loss(logits, labels, num_items)
        return _output(body, logits, loss, return_dict)


def token_loss(logits: Tensor, labels: Tensor, num_items: Any = None) -> Tensor:
    """Cross-entropy over labels that are not -100: their mean, or their sum over `num_items`.

    Args:
        logits: [batch, length, classes].
        labels: [batch, length].
        num_items: labels of the whole batch, where `Trainer` accumulates gradients.
    """
    reduction = "mean" if num_items is None else "sum"
    loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction=reduction)
    return loss if num_items is None else loss / num_items


def _output(
    body: RmtOutput, logits: Tensor, loss: Tensor | None, return_dict: bool
) -> RmtOutput | tuple[Any, ...]:
    output = RmtOutput(
        loss=loss, logits=logits, memory=body.memory, hidden_states=body.hidden_states
    )
    return output if return_dict else output.to_tuple()
