"""Linear models: on frozen embeddings, and as baselines on GC content and k-mers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from megatron_dna.finetune.examples import Dataset, Fold
from megatron_dna.finetune.metrics import score
from megatron_dna.finetune.models import ModelFolder, Tokens, read_states, token_labels
from megatron_dna.finetune.tasks import Task

Array = npt.NDArray[Any]

_CODES = np.full(256, -1, np.int64)
_CODES[list(b"ACGT")] = range(4)
_MAX_ITER = 500


@dataclass(frozen=True)
class Features:
    """What linear models see of a dataset: of each example one row, or one a chosen token.

    Attributes:
        values: [rows, features].
        labels: [rows] or [rows, columns].
        owners: [rows], the example that each row belongs to, ascending.
    """

    values: Array
    labels: Array
    owners: Array

    def part(self, examples: Array) -> tuple[Array, Array]:
        """Values and labels of the rows of some examples."""
        chosen = np.isin(self.owners, examples)
        return self.values[chosen], self.labels[chosen]


def gc_content(sequences: Sequence[str]) -> Array:
    """Share of G and C, float64 [sequences, 1]."""
    return np.array([[(s.count("G") + s.count("C")) / max(1, len(s))] for s in sequences])


def kmer_shares(sequences: Sequence[str], k: int) -> Array:
    """Share of each of the 4^k k-mers, float32 [sequences, 4^k]; k-mers with N are left out."""
    shares = np.zeros((len(sequences), 4**k), np.float32)
    for row, sequence in enumerate(sequences):
        codes = _CODES[np.frombuffer(sequence.encode(), np.uint8)]
        if len(codes) >= k:
            windows = np.lib.stride_tricks.sliding_window_view(codes, k)
            numbers = windows[(windows >= 0).all(1)] @ (4 ** np.arange(k))
            shares[row] = np.bincount(numbers, minlength=4**k) / max(1, len(numbers))
    return shares


def sequence_features(
    task: Task, dataset: Dataset, tokens: Sequence[Tokens], describe: Callable[[list[str]], Array]
) -> Features:
    """Features of sequences themselves; of a token task, of the bases around each token."""
    rows = np.arange(len(dataset.examples))
    if task.kind != "token":
        return Features(describe(dataset.sequences(rows)), dataset.labels(rows), rows)
    reach, around = task.probe.context, []
    chosen = choose_tokens(task, tokens)
    for row, places in enumerate(chosen):
        sequence = dataset.examples[row].sequence
        around += [sequence[max(0, a - reach) : b + reach] for a, b in tokens[row].spans[places]]
    return Features(describe(around), *_of_tokens(dataset, tokens, chosen))


def choose_tokens(task: Task, tokens: Sequence[Tokens]) -> list[Array]:
    """Places of the tokens of each example that linear models are fitted to and scored on."""
    counts = np.array([len(one.spans) for one in tokens])
    ends = np.cumsum(counts)
    draw = np.random.default_rng(task.seed)
    size = min(int(ends[-1]), task.probe.max_tokens)
    kept = np.sort(draw.choice(ends[-1], size, replace=False))
    parts = np.split(kept, np.searchsorted(kept, ends[:-1]))
    return [part - start for part, start in zip(parts, ends - counts, strict=True)]


def embeddings(
    task: Task,
    dataset: Dataset,
    tokens: Sequence[Tokens],
    model: ModelFolder,
    random_seed: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Features:
    """Final states of the frozen encoder: their mean over a sequence, or those of each token.

    Args:
        task: says which tokens are taken of a token task.
        dataset: examples.
        tokens: of all examples.
        model: the encoder's folder.
        random_seed: take random weights of its shape.
        progress: told how many sequences were read.
    """
    encoder = model.encoder(random_seed)
    found: list[Array] = [np.empty(0)] * len(tokens)
    rows = np.arange(len(tokens))
    if task.kind == "token":
        chosen = choose_tokens(task, tokens)
        for row, states in read_states(encoder, model, tokens, progress):
            found[row] = states[chosen[row]]
        return Features(np.concatenate(found), *_of_tokens(dataset, tokens, chosen))
    for row, states in read_states(encoder, model, tokens, progress):
        found[row] = states.mean(0)
    return Features(np.stack(found), dataset.labels(rows), rows)


def _of_tokens(
    dataset: Dataset, tokens: Sequence[Tokens], chosen: Sequence[Array]
) -> tuple[Array, Array]:
    """Labels of the chosen tokens, and the example that each belongs to."""
    labels = [
        token_labels(tokens[row], dataset.base_labels(row))[places]
        for row, places in enumerate(chosen)
    ]
    counts = [len(places) for places in chosen]
    return np.concatenate(labels), np.repeat(np.arange(len(tokens)), counts)


def fit_linear(
    task: Task, candidates: Sequence[Features], fold: Fold
) -> dict[str, dict[str, float]]:
    """Fit a model for every candidate and strength; score the best one (on valid) on the test part.

    Returns:
        Metrics of the parts `valid` and `test`.
    """
    best: dict[str, dict[str, float]] = {}
    num_classes = int(candidates[0].labels.max()) + 1
    for features in candidates:
        values, labels = features.part(fold.train)
        for strength in task.probe.strengths:
            predict = _fit(task.kind, values, labels, strength, num_classes)
            valid = _score(task.kind, predict, features, fold.valid)
            metric = task.main_metric
            if not best or valid[metric] > best["valid"][metric]:
                best = {"valid": valid, "test": _score(task.kind, predict, features, fold.test)}
    return best


def _fit(
    kind: str, values: Array, labels: Array, strength: float, num_classes: int
) -> Callable[[Array], Array]:
    """A fitted model: values to predictions, as `score` takes them."""
    if kind == "regression":
        ridge = make_pipeline(StandardScaler(), Ridge(alpha=1 / strength)).fit(values, labels)
        return lambda x: np.asarray(ridge.predict(x)).reshape(len(x), -1)
    columns = [labels] if kind != "multi_label" else list(labels.T)
    with warnings.catch_warnings():  # a fit that is stopped early is as good a model as any
        warnings.simplefilter("ignore", ConvergenceWarning)
        models = [
            make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=_MAX_ITER)).fit(
                values, column
            )
            for column in columns
        ]
    if kind == "multi_label":
        return lambda x: np.stack([model.predict_proba(x)[:, 1] for model in models], 1)
    return lambda x: _spread(models[0].predict_proba(x), models[0].classes_, num_classes)


def _spread(probabilities: Array, classes: Array, num_classes: int) -> Array:
    """With columns for classes that were not drawn: probability 0."""
    spread = np.zeros((len(probabilities), num_classes))
    spread[:, classes] = probabilities
    return spread


def _score(
    kind: str, predict: Callable[[Array], Array], features: Features, rows: Array
) -> dict[str, float]:
    values, labels = features.part(rows)
    return score(kind, labels, predict(values))
