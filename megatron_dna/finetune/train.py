"""Fine-tuning with `transformers.Trainer`: all weights, or low-rank adapters (LoRA) by peft."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from megatron_dna.finetune.examples import Dataset, Fold
from megatron_dna.finetune.metrics import score
from megatron_dna.finetune.models import ModelFolder, Tokens, collate, token_labels
from megatron_dna.finetune.tasks import Task

Array = npt.NDArray[Any]

_HEAD = ("head", "classifier")
"""Modules that are new in a predictor; with LoRA they are trained whole."""
IGNORED = -100
"""Label of what has none: [CLS], [SEP], padding."""


@dataclass(frozen=True)
class Targets:
    """Numbers that a regression learns: labels with mean 0 and deviation 1 in the training part."""

    mean: Array
    std: Array

    @classmethod
    def of(cls, labels: Array) -> Targets:
        """From the training part's labels, [rows, columns]."""
        std = labels.std(0)
        return cls(labels.mean(0), np.where(std > 0, std, 1.0))

    def scale(self, labels: Array) -> Array:
        """Labels to targets."""
        return np.asarray((labels - self.mean) / self.std)

    def unscale(self, predictions: Array) -> Array:
        """Predicted targets to labels."""
        return np.asarray(predictions * self.std + self.mean)


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning gives."""

    model: nn.Module
    """The best epoch's; a PeftModel with LoRA."""
    scores: dict[str, dict[str, float]]
    """Metrics of the parts `valid` and `test`."""
    history: list[dict[str, float]]
    """Trainer's log: epoch, loss, eval_loss, eval_<metric>."""
    predictions: Array
    """Of the test part, as `score` takes them."""


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of a part: tokens and labels."""

    def __init__(self, tokens: Sequence[Tokens], labels: Sequence[Array]) -> None:
        self.tokens, self.labels = tokens, labels

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"tokens": self.tokens[index], "labels": self.labels[index]}


def fine_tune(
    task: Task,
    dataset: Dataset,
    tokens: Sequence[Tokens],
    fold: Fold,
    model: ModelFolder,
    work: Path,
    seed: int,
    random: bool = False,
    resume: bool = False,
) -> Tuned:
    """Train on a fold's training part and score the best epoch (on valid) on the test part.

    Args:
        task: options.
        dataset: examples.
        tokens: of all examples.
        fold: which of them are for what.
        model: the start.
        work: folder of Trainer's checkpoints.
        seed: of the head, of random weights, and of the order of the examples.
        random: start from random weights of the model's shape.
        resume: go on from the newest checkpoint in `work`, and keep what is needed to do so.
    """
    targets = None
    if task.kind == "regression":
        targets = Targets.of(dataset.labels(fold.train))
    parts = {
        part: _rows(dataset, tokens, getattr(fold, part), targets)
        for part in ("train", "valid", "test")
    }
    predictor: Any = model.predictor(task, dataset.names, seed, random)
    if task.training.lora_rank:
        predictor = add_adapters(predictor, task)

    def metrics_of(prediction: EvalPrediction) -> dict[str, float]:
        labels, outputs = _flat(task.kind, prediction)
        if targets is not None:
            labels, outputs = targets.unscale(labels), targets.unscale(outputs)
        return score(task.kind, labels, outputs)

    trainer = Trainer(
        predictor,
        _arguments(task, model, len(fold.train), work, seed, resume),
        train_dataset=parts["train"],
        eval_dataset=parts["valid"],
        data_collator=_Collator(model.tokenizer.pad_token_id, task.kind),
        compute_metrics=metrics_of,
    )
    trainer.remove_callback(PrinterCallback)
    newest = get_last_checkpoint(str(work)) if resume and work.is_dir() else None
    trainer.train(resume_from_checkpoint=newest)
    scores = {}
    for part in ("valid", "test"):
        found = trainer.predict(parts[part])
        assert found.label_ids is not None
        pair = EvalPrediction(found.predictions, found.label_ids)
        scores[part] = metrics_of(pair)
    outputs = _flat(task.kind, pair)[1]
    if targets is not None:
        outputs = targets.unscale(outputs)
        _fold_scale_into_head(predictor, targets)
    return Tuned(predictor, scores, trainer.state.log_history, outputs)


def _rows(
    dataset: Dataset, tokens: Sequence[Tokens], rows: Array, targets: Targets | None
) -> _Rows:
    chosen = [tokens[row] for row in rows]
    if dataset.kind == "token":
        labels = []
        for row, one in zip(rows, chosen, strict=True):
            inner = token_labels(one, dataset.base_labels(row))
            labels.append(np.concatenate(([IGNORED], inner, [IGNORED])))
        return _Rows(chosen, labels)
    values = dataset.labels(rows)
    return _Rows(chosen, list(values if targets is None else targets.scale(values)))


@dataclass(frozen=True)
class _Collator:
    """A batch of rows for the model."""

    pad_id: int
    kind: str

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = collate([row["tokens"] for row in rows], self.pad_id)
        if self.kind == "token":
            labels = torch.full_like(batch["input_ids"], IGNORED)
            for i, row in enumerate(rows):
                labels[i, : len(row["labels"])] = torch.from_numpy(row["labels"])
        else:
            labels = torch.from_numpy(np.stack([row["labels"] for row in rows]))
            if self.kind != "classification":
                labels = labels.float()
        return batch | {"labels": labels}


def _flat(kind: str, prediction: EvalPrediction) -> tuple[Array, Array]:
    """Labels and predictions as `score` takes them."""
    logits = np.asarray(prediction.predictions, np.float64)
    labels = np.asarray(prediction.label_ids)
    if kind == "regression":
        return labels.reshape(len(labels), -1), logits.reshape(len(labels), -1)
    if kind == "multi_label":
        return labels, 1 / (1 + np.exp(-logits))
    if kind == "token":
        there = labels != IGNORED
        labels, logits = labels[there], logits[there]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return labels, powers / powers.sum(1, keepdims=True)


def _arguments(
    task: Task, model: ModelFolder, num_rows: int, work: Path, seed: int, resume: bool
) -> TrainingArguments:
    training = task.training
    steps = math.ceil(num_rows / training.batch_size) * training.epochs
    on_cuda = model.device.type == "cuda"
    return TrainingArguments(
        str(work),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=math.floor(steps * training.warmup_fraction),
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        save_only_model=not resume,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{task.main_metric}",
        greater_is_better=True,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        seed=seed,
        use_cpu=not on_cuda,
        bf16=on_cuda,
        dataloader_pin_memory=on_cuda,
        disable_tqdm=not resume,
    )


def add_adapters(model: PreTrainedModel, task: Task) -> nn.Module:
    """Freeze all but low-rank adapters at every matrix of the encoder, and the head.

    Source: Hu et al. 2021 (LoRA), by peft.
    """
    import peft

    matrices = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] not in _HEAD
    ]
    heads = [name for name, _ in model.named_children() if name in _HEAD]
    options = peft.LoraConfig(
        r=task.training.lora_rank, lora_alpha=task.training.lora_alpha, target_modules=matrices,
        modules_to_save=heads,
    )  # fmt: skip
    return peft.get_peft_model(model, options)


def merged(model: Any) -> PreTrainedModel:
    """A fine-tuned model without adapters: they are added to the weights."""
    whole = model if isinstance(model, PreTrainedModel) else model.merge_and_unload()
    assert isinstance(whole, PreTrainedModel)
    return whole


@torch.no_grad()
def _fold_scale_into_head(model: Any, targets: Targets) -> None:
    """Let the last layer give labels, not targets."""
    base: Any = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    linear = base.classifier
    if not isinstance(linear, nn.Linear):  # with LoRA, a wrapper around the head that was trained
        linear = linear.modules_to_save.default
    std = torch.as_tensor(targets.std).to(linear.weight)
    linear.weight *= std[:, None]
    linear.bias *= std
    linear.bias += torch.as_tensor(targets.mean).to(linear.bias)
