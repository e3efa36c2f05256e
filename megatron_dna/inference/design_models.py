"""The two models of a design: what predicts masked tokens, and what scores whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ModernBertForSequenceClassification

from megatron_dna.hf.folder import load_model, open_folder
from megatron_dna.hf.modeling_rmt import RmtConfig, RmtForSequenceClassification
from megatron_dna.inference.design import Floats, Ids
from megatron_dna.inference.stream import StreamModel, pad_rows
from megatron_dna.tokenizer.bpe import DnaTokenizer


class MaskedLm:
    """Predicts masked tokens of whole sequences."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, batch_size: int
    ) -> None:
        """Load a model folder, plain or RMT.

        Raises:
            ValueError: not the folder of a masked language model.
        """
        self._model = StreamModel(folder, device, dtype, masked_lm=True)
        self.tokenizer = self._model.tokenizer
        self._batch_size = batch_size

    @torch.inference_mode()
    def __call__(self, rows: list[Ids], places: Sequence[int]) -> Floats:
        """See `design.Predict`.

        Raises:
            ValueError: a row is longer than a model without memory reads.
        """
        found = []
        for at in range(0, len(rows), self._batch_size):
            some = rows[at : at + self._batch_size]
            ids = _frame(some, self.tokenizer).to(self._model.device)
            if not self._model.has_memory:
                _check_length(ids, self._model.segment_size, "--model")
            here = torch.arange(len(some), device=ids.device)
            place = torch.tensor(places[at : at + len(some)], device=ids.device) + 1
            ids[here, place] = self.tokenizer.mask_id
            states, _ = self._model.encode(ids, [None] * len(some))
            logits = self._model.logits(states[here, place]).double()
            found.append(logits.log_softmax(1).cpu().numpy())
        return np.concatenate(found)

    def log_likelihood(self, sequence: str) -> float:
        """Of each token, masked alone, from all others: their sum in nats (pseudo-likelihood)."""
        ids = self.tokenizer.encode(sequence).astype(np.int64)
        total = 0.0
        for at in range(0, len(ids), self._batch_size):
            places = range(at, min(len(ids), at + self._batch_size))
            log_p = self([ids] * len(places), places)
            total += float(log_p[np.arange(len(places)), ids[places.start : places.stop]].sum())
        return total


class Predictor:
    """Scores sequences with a fine-tuned classifier or regressor.

    The score is the output of a regression, else ln of the label's probability.
    """

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, batch_size: int,
        label: str | None = None,
    ) -> None:  # fmt: skip
        """Load a folder that `save_pretrained` made, plain or RMT.

        Args:
            folder: of the model.
            device: to compute on.
            dtype: to compute in.
            batch_size: sequences at once.
            label: name or number; can be left out for regression, and for two labels, of which
                the second is taken.

        Raises:
            ValueError: not such a folder, or not a label of it.
        """
        config, self._tokenizer = open_folder(folder, "--predictor")
        self._longest = None if isinstance(config, RmtConfig) else config.max_position_embeddings
        kind: Any = (
            ModernBertForSequenceClassification if self._longest else RmtForSequenceClassification
        )
        need = "a fine-tuned sequence classifier or regressor"
        model = load_model(kind, folder, dtype, need, "--predictor")
        self._model = model.to(device).eval()
        self._device, self._batch_size = device, batch_size
        self._label = _find_label(folder, model.config, label)

    @torch.inference_mode()
    def __call__(self, sequences: list[str]) -> Floats:
        """See `design.Score`."""
        found = []
        for at in range(0, len(sequences), self._batch_size):
            rows = [
                self._tokenizer.encode(sequence).astype(np.int64)
                for sequence in sequences[at : at + self._batch_size]
            ]
            ids = _frame(rows, self._tokenizer).to(self._device)
            if self._longest:
                _check_length(ids, self._longest, "--predictor")
            mask = (ids != self._tokenizer.pad_id).long()
            logits = self._model(input_ids=ids, attention_mask=mask).logits.double()
            if self._label is None:
                scores = logits[:, 0]
            elif self._model.config.problem_type == "multi_label_classification":
                scores = torch.nn.functional.logsigmoid(logits[:, self._label])
            else:
                scores = logits.log_softmax(1)[:, self._label]
            found.append(scores.cpu().numpy())
        return np.concatenate(found)


def _find_label(folder: Path, config: Any, label: str | None) -> int | None:
    """Number of the label; None for regression."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if config.num_labels == 1:
        if label is not None:
            raise ValueError(f"--label ({label}): --predictor ({folder}) has one output only")
        return None
    if config.problem_type == "regression":
        raise ValueError(f"--predictor ({folder}) has {len(names)} outputs; one is needed")
    if label is None and len(names) == 2:
        return 1
    if label in names:
        return names.index(label)
    if label is not None and label.isdecimal() and int(label) < len(names):
        return int(label)
    raise ValueError(
        f"--label ({label}) must be one of {', '.join(names)} (or 0 to {len(names) - 1})"
    )


def _frame(rows: list[Ids], tokenizer: DnaTokenizer) -> Tensor:
    """[CLS], the ids, [SEP] and padding, [rows, longest]."""
    framed = [np.concatenate(([tokenizer.cls_id], ids, [tokenizer.sep_id])) for ids in rows]
    return pad_rows(framed, tokenizer.pad_id)


def _check_length(ids: Tensor, longest: int, option: str) -> None:
    if ids.shape[1] > longest:
        raise ValueError(
            f"--length: a sequence has {ids.shape[1] - 2} tokens, but {option} reads at most "
            f"{longest - 2} at once; ask for fewer bases or take a model with memory"
        )
