"""Examples of a task in memory: sequences, labels, and where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Example:
    """A sequence and what is known of it."""

    sequence: str
    """A, C, G, T, N."""
    label: str | tuple[float, ...]
    """Name of the class; numbers (regression, multi-label); or, of tokens, one digit a base."""
    contig: str = ""
    """Where it was cut from, if that is known."""
    start: int = 0
    """First base, 0-based."""
    end: int = 0
    """Base after the last one."""
    part: str = ""
    """`train`, `valid`, `test` or the number of a fold, where the files say so."""


@dataclass(frozen=True)
class Dataset:
    """All examples of a task.

    Attributes:
        examples: in the order of the files, or of the genome.
        kind: of the task.
        names: of the classes, or of the columns of numbers.
    """

    examples: Sequence[Example]
    kind: str
    names: tuple[str, ...]

    def sequences(self, rows: Array) -> list[str]:
        """Of the examples at `rows`."""
        return [self.examples[row].sequence for row in rows]

    def labels(self, rows: Array) -> Array:
        """int64 [rows] of classes, or float64 [rows, columns]. Not for tokens."""
        chosen = [self.examples[row].label for row in rows]
        if self.kind == "classification":
            number = {name: i for i, name in enumerate(self.names)}
            return np.array([number[str(label)] for label in chosen], np.int64)
        return np.array(chosen, np.float64)

    def base_labels(self, row: int) -> Array:
        """int64 [bases] of an example of a token task."""
        label = self.examples[row].label
        assert isinstance(label, str)
        return np.frombuffer(label.encode(), np.uint8).astype(np.int64) - ord("0")

    def sha256(self) -> str:
        """Of all sequences, labels and parts."""
        digest = hashlib.sha256(repr((self.kind, self.names)).encode())
        for example in self.examples:
            digest.update(repr(example).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Fold:
    """Rows of a dataset, int64 each; no example of one part overlaps one of another."""

    train: Array
    valid: Array
    test: Array


def label_names(kind: str, examples: Sequence[Example], columns: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes, in order, or of the columns.

    Raises:
        ValueError: less than two classes.
    """
    if kind in ("regression", "multi_label"):
        return tuple(columns)
    names = {str(example.label) for example in examples}
    if kind == "token":
        highest = max(int(max(label)) for label in names)
        return tuple(str(i) for i in range(highest + 1))
    if len(names) < 2:
        raise ValueError(f"there is only one class ({', '.join(names)}); two or more are needed")
    if all(name.lstrip("-").isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))
