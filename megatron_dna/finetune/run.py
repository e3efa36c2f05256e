"""One fine-tuning, from a task and a model folder to a folder that holds all that came of it.

<output>/
    model/              the fine-tuned model, for transformers; LoRA is added to its weights
    adapter/            with LoRA: the adapters and the head alone, for peft
    about.json          what the run is of
    metrics.json        scores of the valid and test part, options, sizes
    predictions.tsv     of the test part
    training.png        loss and metric by epoch
    checkpoints/        of an unfinished run: the same command goes on from the last epoch
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from megatron_dna.checkpoint.folders import write_text
from megatron_dna.finetune.datasets import load_dataset
from megatron_dna.finetune.examples import Dataset, Fold
from megatron_dna.finetune.models import ModelFolder, token_labels
from megatron_dna.finetune.report import plot_training
from megatron_dna.finetune.splits import make_folds
from megatron_dna.finetune.tasks import Task
from megatron_dna.finetune.train import Tuned, fine_tune, merged
from megatron_dna.genome.folders import claim_folder, output_folder

logger = logging.getLogger(__name__)

CHECKPOINTS, METRICS = "checkpoints", "metrics.json"


def run_finetune(task: Task, model: ModelFolder, output: Path, fold: int = 0) -> dict[str, Any]:
    """Fine-tune and write everything; an unfinished run of the same is gone on with.

    Args:
        task: what to learn.
        model: where to start from.
        output: folder.
        fold: which of the folds is tested.

    Returns:
        What metrics.json says.

    Raises:
        ValueError: bad data, or a folder of a finished or another run.
    """
    if (output / METRICS).exists() or (output / "model").exists():
        raise ValueError(f"--output ({output}) holds a finished run; choose another folder")
    dataset = load_dataset(task)
    folds = make_folds(task, dataset)
    if not 0 <= fold < len(folds):
        raise ValueError(f"--fold ({fold}) must be between 0 and {len(folds) - 1}")
    tokens = model.tokenize([example.sequence for example in dataset.examples])
    about = {
        "task": task.to_dict(), "fold": fold, "model_sha256": model.sha256(),
        "data_sha256": dataset.sha256(),
    }  # fmt: skip
    with output_folder(output):
        claim_folder(output, about)
        parts = folds[fold]
        logger.info(
            "%s: %d examples to train on, %d to choose by, %d to test",
            task.name, len(parts.train), len(parts.valid), len(parts.test),
        )  # fmt: skip
        tuned = fine_tune(
            task, dataset, tokens, parts, model, output / CHECKPOINTS, task.seed + fold,
            resume=True,
        )  # fmt: skip
        return _write(task, model, output, dataset, parts, tuned, about, tokens)


def _write(
    task: Task,
    model: ModelFolder,
    output: Path,
    dataset: Dataset,
    fold: Fold,
    tuned: Tuned,
    about: dict[str, Any],
    tokens: Any,
) -> dict[str, Any]:
    trained: Any = tuned.model
    parameters = [p.numel() for p in trained.parameters() if p.requires_grad]
    summary = {
        **about,
        "metric": task.main_metric,
        "scores": tuned.scores,
        "num_examples": {part: len(getattr(fold, part)) for part in ("train", "valid", "test")},
        "trained_parameters": sum(parameters),
        "history": tuned.history,
    }
    _write_predictions(output / "predictions.tsv", task, dataset, fold, tuned, tokens)
    plot_training(task, tuned.history, output / "training.png")
    if task.training.lora_rank:
        trained.save_pretrained(output / "adapter")
    partial = output / ".tmp_model"
    shutil.rmtree(partial, ignore_errors=True)
    model.save(merged(trained), partial)
    partial.rename(output / "model")
    write_text(output / f".tmp_{METRICS}", json.dumps(summary, indent=1) + "\n")
    (output / f".tmp_{METRICS}").replace(output / METRICS)
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return summary


def _write_predictions(
    path: Path, task: Task, dataset: Dataset, fold: Fold, tuned: Tuned, tokens: Any
) -> None:
    """A row an example, or a row a token with its bases (0-based) in the example."""
    lines = ["\t".join(["example", "contig", "start", "end", "label", *dataset.names])]
    place = 0
    for row in fold.test:
        example = dataset.examples[row]
        where = [str(row), example.contig]
        if task.kind != "token":
            label = example.label
            text = label if isinstance(label, str) else ",".join(f"{x:g}" for x in label)
            rows = [[*where, str(example.start), str(example.end), text]]
        else:
            classes = token_labels(tokens[row], dataset.base_labels(row))
            spans = tokens[row].spans
            rows = [[*where, str(a), str(b), str(c)]
                    for (a, b), c in zip(spans, classes, strict=True)]  # fmt: skip
        for fields in rows:
            numbers = np.atleast_1d(tuned.predictions[place])
            lines.append("\t".join([*fields, *(f"{x:.5g}" for x in numbers)]))
            place += 1
    write_text(path, "\n".join(lines) + "\n")
