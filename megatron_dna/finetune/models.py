"""Model folders for tasks: the encoder, or the encoder with a head; tokens of sequences.

No code of the folder is run: models with memory are of this package's own classes, whose file goes
with what is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import (
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from megatron_dna.finetune.tasks import Task
from megatron_dna.hf import modeling_rmt
from megatron_dna.hf.architecture import read_hf_config
from megatron_dna.hf.folder import folder_sha256, load_model, open_folder
from megatron_dna.hf.modeling_rmt import (
    RmtConfig,
    RmtForSequenceClassification,
    RmtForTokenClassification,
    RmtModel,
)

_TOKENS_A_BATCH = 16384
_PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "regression": "regression",
    "multi_label": "multi_label_classification",
}


@dataclass(frozen=True)
class Tokens:
    """A sequence as a model reads it."""

    ids: npt.NDArray[np.int64]
    """[CLS], tokens, [SEP]."""
    spans: npt.NDArray[np.int64]
    """[tokens, 2] each token's first base and the base after its last; not of [CLS] and [SEP]."""


class ModelFolder:
    """A model folder, plain or with memory.

    Attributes:
        config: the architecture.
        has_memory: whether inputs of any length can be read.
        tokenizer: of the folder.
        device: what models are put on.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Read the configuration and the tokenizer.

        Raises:
            ValueError: not a model folder of this package or of ModernBERT's architecture.
        """
        self.folder, self.device = folder, device
        self.config, _ = open_folder(folder)
        self.has_memory = isinstance(self.config, RmtConfig)
        if not (folder / "tokenizer_config.json").is_file():
            raise ValueError(f"--model ({folder}) has no tokenizer_config.json")
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    def sha256(self) -> str:
        """Of the configuration, the tokenizer and the weights, to tell models apart."""
        return folder_sha256(self.folder)

    def tokenize(self, sequences: Sequence[str]) -> list[Tokens]:
        """Tokens of each sequence.

        Raises:
            ValueError: a sequence is longer than a model without memory was trained for.
        """
        most = None if self.has_memory else self.config.max_position_embeddings
        encoded = self.tokenizer(
            list(sequences), add_special_tokens=False, return_offsets_mapping=True,
            return_attention_mask=False,
        )  # fmt: skip
        found = []
        ends = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        for sequence, (ids, spans) in zip(sequences, pairs, strict=True):
            if most is not None and len(ids) + 2 > most:
                raise ValueError(
                    f"a sequence of {len(sequence)} bases is {len(ids) + 2} tokens, but the model "
                    f"in {self.folder} reads {most}; cut them (data.crop_bases, or data.window of "
                    "a genomic task), or take a model with memory"
                )
            found.append(
                Tokens(
                    np.array([*ends[0], *ids, *ends[1]], np.int64),
                    np.array(spans, np.int64).reshape(-1, 2),
                )
            )
        return found

    def encoder(self, random_seed: int | None = None) -> PreTrainedModel:
        """The encoder, or one of its shape with random weights, in inference mode."""
        kind: Any = RmtModel if self.has_memory else ModernBertModel
        encoder = self._load(kind, self.config, random_seed)
        encoder.eval()
        return encoder

    def predictor(
        self, task: Task, names: Sequence[str], seed: int, random: bool = False
    ) -> PreTrainedModel:
        """The encoder with a new head for `names` (classes or columns).

        Args:
            task: says the kind, and how sequences are pooled.
            names: of the outputs.
            seed: of the head's weights, and of all weights if `random`.
            random: the model's shape, but not its weights.
        """
        config: Any = read_hf_config(self.folder)
        config.num_labels = len(names)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        kinds: tuple[Any, Any] = (ModernBertForSequenceClassification, RmtForSequenceClassification)
        if task.kind == "token":
            kinds = ModernBertForTokenClassification, RmtForTokenClassification
        else:
            config.classifier_pooling = task.training.pooling
            config.problem_type = _PROBLEM_TYPES[task.kind]
        torch.manual_seed(seed)
        return self._load(kinds[self.has_memory], config, seed if random else None)

    def _load(
        self, kind: Any, config: ModernBertConfig, random_seed: int | None
    ) -> PreTrainedModel:
        if random_seed is None:
            model = load_model(
                kind, self.folder, torch.float32, "a pretrained encoder",
                new=("head", "classifier"), config=config,
            )  # fmt: skip
        else:
            torch.manual_seed(random_seed)
            model = kind(config)
        model.to(self.device)
        assert isinstance(model, PreTrainedModel)
        return model

    def save(self, model: PreTrainedModel, output: Path) -> None:
        """Write a fine-tuned model as a folder of its own."""
        model.save_pretrained(output)
        self.tokenizer.save_pretrained(output)
        if self.has_memory:
            shutil.copyfile(modeling_rmt.__file__, output / "modeling_rmt.py")


def collate(rows: Sequence[Tokens], pad_id: int) -> dict[str, Tensor]:
    """input_ids and attention_mask, int64 [rows, longest], padding on the right."""
    longest = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), longest), pad_id)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
    lengths = torch.tensor([len(row.ids) for row in rows])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": torch.from_numpy(ids), "attention_mask": mask}


@torch.inference_mode()
def read_states(
    model: nn.Module, folder: ModelFolder, rows: Sequence[Tokens], progress: Callable[[int], None]
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Final states of each row's tokens, [CLS] and [SEP] left out.

    Rows come in order of length, so that batches have little padding.

    Args:
        model: the encoder.
        folder: that it is of.
        rows: what to read.
        progress: told how many rows were read.

    Yields:
        the row's number and float32 [tokens, hidden].
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    start = 0
    while start < len(order):
        size = max(1, _TOKENS_A_BATCH // len(rows[order[start]].ids))
        chosen = order[start : start + size]
        batch = collate([rows[i] for i in chosen], folder.tokenizer.pad_token_id)
        states = model(**{key: value.to(folder.device) for key, value in batch.items()})
        hidden = states.last_hidden_state.float().cpu().numpy()
        for place, i in enumerate(chosen):
            yield i, hidden[place, 1 : len(rows[i].ids) - 1]
        progress(len(chosen))
        start += len(chosen)


def token_labels(tokens: Tokens, base_labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64 [tokens]: the highest label of each token's bases, so that rare ones are not lost."""
    return np.array([base_labels[start:end].max() for start, end in tokens.spans], np.int64)
