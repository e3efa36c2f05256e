"""Many tasks over folds: linear probes and fine-tuning beside baselines. Finished folds are kept.

<output>/
    about.json                              model and methods' options of the run
    results/<task>/<method>/fold_<i>.json   one fold, written when it is done
    results.json results.md results.png     all of it
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_dna.checkpoint.folders import write_text
from megatron_dna.finetune.datasets import load_dataset
from megatron_dna.finetune.examples import Dataset, Fold
from megatron_dna.finetune.models import ModelFolder, Tokens
from megatron_dna.finetune.probe import (
    Features,
    embeddings,
    fit_linear,
    gc_content,
    kmer_shares,
    sequence_features,
)
from megatron_dna.finetune.splits import make_folds
from megatron_dna.finetune.tasks import Task
from megatron_dna.finetune.train import fine_tune

METHODS = {
    "gc": "GC content",
    "kmer": "k-mers",
    "probe": "frozen, pretrained",
    "probe-random": "frozen, random",
    "finetune": "fine-tuned, pretrained",
    "finetune-random": "fine-tuned, random",
}
"""What each task is done with, and its name in tables."""

RESULTS = "results"


@dataclass
class _Work:
    """A task that is being benchmarked; features that do not depend on the fold are made once."""

    task: Task
    model: ModelFolder
    dataset: Dataset
    folds: list[Fold]
    tokens: list[Tokens]
    about: dict[str, Any]
    _last: tuple[str, list[Features]] = ("", [])

    def features(self, method: str, fold: int) -> list[Features]:
        """What a linear model is fitted to; candidates for the valid part to choose from."""
        if method == "probe-random":
            seed = self.task.seed + fold
            return [embeddings(self.task, self.dataset, self.tokens, self.model, seed)]
        if self._last[0] != method:
            self._last = (method, self._make(method))
        return self._last[1]

    def forget(self) -> None:
        """Free the memory of features."""
        self._last = ("", [])

    def _make(self, method: str) -> list[Features]:
        task, dataset, tokens = self.task, self.dataset, self.tokens
        if method == "gc":
            return [sequence_features(task, dataset, tokens, gc_content)]
        if method == "probe":
            return [embeddings(task, dataset, tokens, self.model)]

        def shares(k: int) -> Callable[[list[str]], Any]:
            return lambda sequences: kmer_shares(sequences, k)

        return [sequence_features(task, dataset, tokens, shares(k)) for k in task.probe.kmers]

    def run(self, method: str, fold: int, scratch: Path) -> dict[str, Any]:
        """Scores of a method on a fold."""
        start = time.perf_counter()
        seed = self.task.seed + fold
        if method.startswith("finetune"):
            shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
            scores = fine_tune(
                self.task, self.dataset, self.tokens, self.folds[fold], self.model, scratch, seed,
                random=method == "finetune-random",
            ).scores  # fmt: skip
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scores = fit_linear(self.task, self.features(method, fold), self.folds[fold])
        return {"scores": scores, "seconds": round(time.perf_counter() - start, 2)}


def run_benchmark(
    tasks: Sequence[Task],
    model: ModelFolder,
    output: Path,
    methods: Sequence[str] = tuple(METHODS),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Do what is not done yet.

    Args:
        tasks: of different names.
        model: what is measured.
        output: folder; of the same model and tasks, if it is there.
        methods: of METHODS.
        progress: told what comes next, and how many folds of all are done.

    Returns:
        Tasks by name: options, and of each method its folds' results.

    Raises:
        ValueError: bad tasks or data (before anything is run), or a folder of another run.
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"--suite has two tasks of one name: {', '.join(sorted(names))}")
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"--methods ({unknown[0]}) must be of {', '.join(METHODS)}")
    prepared = [_prepare(task, model) for task in tasks]
    jobs = [
        (work, method, fold)
        for work in prepared
        for method in methods
        for fold in range(len(work.folds))
    ]
    for job in jobs:
        _read(output, *job)
    for done, (work, method, fold) in enumerate(jobs):
        progress(f"{work.task.name}, {METHODS[method]}, fold {fold}", done, len(jobs))
        if _read(output, work, method, fold) is None:
            path = _path(output, work, method, fold)
            result = {"about": work.about, **work.run(method, fold, output / ".scratch")}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path.with_suffix(".tmp"), json.dumps(result, indent=1) + "\n")
            path.with_suffix(".tmp").replace(path)
        if (method, fold) == (methods[-1], len(work.folds) - 1):
            work.forget()
    progress("done", len(jobs), len(jobs))
    return {work.task.name: _collect(output, work, methods) for work in prepared}


def _prepare(task: Task, model: ModelFolder) -> _Work:
    try:
        dataset = load_dataset(task)
        folds = make_folds(task, dataset)
        tokens = model.tokenize([example.sequence for example in dataset.examples])
    except ValueError as error:
        raise ValueError(f"task {task.name}: {error}") from error
    about = {
        "task": task.to_dict(),
        "data_sha256": dataset.sha256(),
        "model_sha256": model.sha256(),
    }
    return _Work(task, model, dataset, folds, tokens, json.loads(json.dumps(about)))


def _path(output: Path, work: _Work, method: str, fold: int) -> Path:
    return output / RESULTS / work.task.name / method / f"fold_{fold}.json"


def _read(output: Path, work: _Work, method: str, fold: int) -> dict[str, Any] | None:
    """The result of a fold that is done.

    Raises:
        ValueError: it is of another model, other data or other options.
    """
    path = _path(output, work, method, fold)
    if not path.is_file():
        return None
    stored: dict[str, Any] = json.loads(path.read_text())
    if stored["about"] != work.about:
        differing = [key for key in work.about if stored["about"].get(key) != work.about[key]]
        raise ValueError(
            f"{path} is of another {' and '.join(differing)}; choose another --output or remove it"
        )
    return stored


def _collect(output: Path, work: _Work, methods: Sequence[str]) -> dict[str, Any]:
    dataset, folds = work.dataset, work.folds
    results: dict[str, Any] = {}
    for method in methods:
        found = [_read(output, work, method, fold) for fold in range(len(folds))]
        results[method] = [
            {"scores": one["scores"], "seconds": one["seconds"]} for one in found if one is not None
        ]
    return {
        "about": work.about,
        "metric": work.task.main_metric,
        "split_by": work.task.split_by,
        "num_examples": len(dataset.examples),
        "num_train": [len(fold.train) for fold in folds],
        "num_test": [len(fold.test) for fold in folds],
        "names": list(dataset.names),
        "methods": results,
    }
