"""How good predictions are. Classes that do not occur have no share in a mean over classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import metrics

Array = npt.NDArray[Any]


def score(kind: str, labels: Array, predictions: Array) -> dict[str, float]:
    """The metrics of a kind, all of them the higher the better.

    Args:
        kind: of the task.
        labels: classes [rows], or numbers [rows, columns]; of a token task those of all tokens.
        predictions: probabilities [rows, classes] (of `multi_label` [rows, labels]), or numbers
            [rows, columns].
    """
    if kind == "regression":
        return _regression(labels, predictions)
    if kind == "multi_label":
        return {
            "auroc": _over_classes(metrics.roc_auc_score, labels, predictions),
            "auprc": _over_classes(metrics.average_precision_score, labels, predictions),
            "f1": float(
                metrics.f1_score(labels, predictions > 0.5, average="macro", zero_division=0)
            ),
        }
    chosen = predictions.argmax(1)
    one_hot = np.eye(predictions.shape[1])[labels]
    if predictions.shape[1] == 2:
        one_hot, predictions = one_hot[:, 1:], predictions[:, 1:]
    return {
        "mcc": float(metrics.matthews_corrcoef(labels, chosen)),
        "accuracy": float((labels == chosen).mean()),
        "f1": float(metrics.f1_score(labels, chosen, average="macro", zero_division=0)),
        "auroc": _over_classes(metrics.roc_auc_score, one_hot, predictions),
        "auprc": _over_classes(metrics.average_precision_score, one_hot, predictions),
    }


def _over_classes(measure: Any, labels: Array, predictions: Array) -> float:
    """Mean over columns that have both a 0 and a 1; NaN if none has."""
    values = [
        measure(labels[:, i], predictions[:, i])
        for i in range(labels.shape[1])
        if 0 < labels[:, i].mean() < 1
    ]
    return float(np.mean(values)) if values else float("nan")


def _regression(labels: Array, predictions: Array) -> dict[str, float]:
    """Means over columns; a constant prediction has no correlation: 0."""

    def correlation(a: Array, b: Array) -> float:
        return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0

    columns = range(labels.shape[1])
    ranks = [[_ranks(values[:, i]) for i in columns] for values in (labels, predictions)]
    return {
        "pearson": float(np.mean([correlation(labels[:, i], predictions[:, i]) for i in columns])),
        "spearman": float(np.mean([correlation(a, b) for a, b in zip(*ranks, strict=True)])),
        "r2": float(metrics.r2_score(labels, predictions)),
    }


def _ranks(values: Array) -> Array:
    """Ranks from 0, of equal values their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    highest = np.cumsum(counts)
    return np.asarray((highest - (counts + 1) / 2)[inverse])
