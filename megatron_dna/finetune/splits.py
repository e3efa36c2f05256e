"""Examples into train, valid and test, so that no part of a test sequence was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from megatron_dna.finetune.examples import Dataset, Example, Fold
from megatron_dna.finetune.tasks import Task
from megatron_dna.genome.sequence import reverse_complement

Rows = npt.NDArray[np.int64]

_VALID_SHARE = 10
"""One example in ten of the training part is for validation where the files have none."""


def make_folds(task: Task, dataset: Dataset) -> list[Fold]:
    """`split.num_folds` folds; those of the files under `given`.

    Raises:
        ValueError: there are too few examples, or a class of the test part is not in training.
    """
    split, examples = task.split, dataset.examples
    if task.split_by == "given":
        folds = _given(task, examples)
    else:
        blocks = (
            _blocks_by_position(examples, split.num_folds)
            if task.split_by == "position"
            else _blocks_by_overlap(task, examples, split.num_folds)
        )
        folds = list(_rotate(blocks))
        if task.split_by == "position":
            folds = [_drop_overlaps(fold, examples, split.gap_bases) for fold in folds]
    for number, fold in enumerate(folds):
        _check(dataset, fold, number)
    return folds


def _rotate(blocks: Sequence[Rows]) -> Iterator[Fold]:
    for i in range(len(blocks)):
        valid = (i + 1) % len(blocks)
        train = [block for j, block in enumerate(blocks) if j not in (i, valid)]
        yield Fold(np.sort(np.concatenate(train)), blocks[valid], blocks[i])


def _blocks_by_position(examples: Sequence[Example], count: int) -> list[Rows]:
    order = sorted(range(len(examples)), key=lambda row: (examples[row].contig,
                                                          examples[row].start))  # fmt: skip
    return [np.array(block, np.int64) for block in np.array_split(np.array(order), count)]


def _drop_overlaps(fold: Fold, examples: Sequence[Example], gap_bases: int) -> Fold:
    """Without examples of valid that touch test, and of train that touch either."""
    valid = _apart(fold.valid, [fold.test], examples, gap_bases)
    train = _apart(fold.train, [fold.test, valid], examples, gap_bases)
    return Fold(train, valid, fold.test)


def _apart(rows: Rows, others: list[Rows], examples: Sequence[Example], gap: int) -> Rows:
    """Those of `rows` at least `gap` bases from every example of `others`."""
    near: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for row in np.concatenate(others):
        example = examples[row]
        spans.setdefault(example.contig, []).append((example.start, example.end))
    for contig, pairs in spans.items():
        pairs.sort()
        starts = np.array([start for start, _ in pairs])
        near[contig] = starts, np.maximum.accumulate([end for _, end in pairs])

    def is_apart(example: Example) -> bool:
        if example.contig not in near:
            return True
        starts, reach = near[example.contig]
        before = int(np.searchsorted(starts, example.end + gap))  # those that start before its end
        return before == 0 or int(reach[before - 1]) + gap <= example.start

    return np.array([row for row in rows if is_apart(examples[row])], np.int64)


def overlap_groups(sequences: Sequence[str], min_overlap: int) -> list[list[int]]:
    """Sequences that share an end of at least `min_overlap` bases with another, on either strand.

    The end of one must be the start of the other, or one must hold the other: repeats in the middle
    of both do not count. Found by each sequence's first bases.

    Returns:
        Rows of each group, together all of them.
    """
    reverse = [reverse_complement(sequence.encode()).decode() for sequence in sequences]
    heads: dict[str, list[tuple[int, str]]] = {}
    for row, strands in enumerate(zip(sequences, reverse, strict=True)):
        for strand in strands:
            heads.setdefault(strand[:min_overlap], []).append((row, strand))
    parent = list(range(len(sequences)))

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for row, strands in enumerate(zip(sequences, reverse, strict=True)):
        for strand in strands:
            for at in range(max(1, len(strand) - min_overlap + 1)):
                for other, theirs in heads.get(strand[at : at + min_overlap], ()):
                    if other == row:
                        continue
                    tail = strand[at:]
                    if tail.startswith(theirs) or theirs.startswith(tail):
                        parent[find(row)] = find(other)
    groups: dict[int, list[int]] = {}
    for row in range(len(sequences)):
        groups.setdefault(find(row), []).append(row)
    return list(groups.values())


def _blocks_by_overlap(task: Task, examples: Sequence[Example], count: int) -> list[Rows]:
    """Groups in random order, the largest first, each to the block that has least."""
    groups = overlap_groups([example.sequence for example in examples], task.split.min_overlap)
    draw = np.random.default_rng(task.seed)
    order = sorted(draw.permutation(len(groups)), key=lambda i: -len(groups[i]))
    blocks: list[list[int]] = [[] for _ in range(count)]
    for i in order:
        min(blocks, key=len).extend(groups[i])
    return [np.array(sorted(block), np.int64) for block in blocks]


def _given(task: Task, examples: Sequence[Example]) -> list[Fold]:
    parts: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        parts.setdefault(example.part, []).append(row)
    rows = {part: np.array(found, np.int64) for part, found in parts.items()}
    if "train" not in rows:  # fold_1.csv and so on, in GENA-LM's order of folds
        names = sorted(rows, key=int)
        blocks = [rows[name] for name in names]
        if len(blocks) < 3:
            raise ValueError(f"{task.data.path} has {len(blocks)} folds; three or more are needed")
        n = len(blocks)
        return [
            Fold(
                np.concatenate([blocks[(i + j) % n] for j in range(n - 2)]),
                blocks[(i + n - 2) % n],
                blocks[(i + n - 1) % n],
            )
            for i in range(n)
        ]
    if "valid" not in rows:
        train = rows["train"]
        blocks = _blocks_by_overlap(task, [examples[row] for row in train], _VALID_SHARE)
        rows["valid"] = train[blocks[0]]
        rows["train"] = train[np.sort(np.concatenate(blocks[1:]))]
    return [Fold(rows["train"], rows["valid"], rows["test"])] * task.split.num_folds


def _check(dataset: Dataset, fold: Fold, number: int) -> None:
    """Every part has examples; what is chosen by or tested has two classes that were trained on."""
    advice = "give more examples or use fewer folds (split.num_folds)"
    for part in ("train", "valid", "test"):
        if not len(getattr(fold, part)):
            raise ValueError(f"fold {number} has no example in its {part} part; {advice}")
    if dataset.kind == "regression":
        return
    if dataset.kind == "multi_label":
        for part in ("train", "test"):
            labels = dataset.labels(getattr(fold, part))
            for name, share in zip(dataset.names, labels.mean(0), strict=True):
                if share in (0.0, 1.0):
                    raise ValueError(
                        f"fold {number}: label {name} is always {share:.0f} in the {part} part; "
                        f"leave it out, or {advice}"
                    )
        return
    classes = {
        part: {
            letter
            for row in getattr(fold, part)
            for letter in (
                [dataset.examples[row].label] if dataset.kind == "classification"
                else set(dataset.examples[row].label)
            )
        }
        for part in ("train", "valid", "test")
    }  # fmt: skip
    for part in ("valid", "test"):
        if absent := sorted(classes[part] - classes["train"]):
            raise ValueError(
                f"fold {number}: label {absent[0]!r} of the {part} part does not occur in the "
                f"train part; {advice}"
            )
        if len(classes[part]) < 2:
            raise ValueError(f"fold {number}: its {part} part has one class only; {advice}")
