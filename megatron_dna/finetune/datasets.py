"""A task's files as a dataset."""

from __future__ import annotations

import dataclasses

import numpy as np

from megatron_dna.finetune.examples import Dataset, Example, label_names
from megatron_dna.finetune.genomic import cut_examples
from megatron_dna.finetune.tables import read_tables
from megatron_dna.finetune.tasks import GENOMIC, Task


def load_dataset(task: Task) -> Dataset:
    """Read or cut all examples, take `max_examples` of them, crop what is too long.

    Raises:
        ValueError: see `read_tables` and `cut_examples`.
    """
    columns: tuple[str, ...] = (task.data.format,)
    if task.data.format in GENOMIC:
        examples = cut_examples(task)
    else:
        examples, columns = read_tables(task)
    most, crop = task.data.max_examples, task.data.crop_bases
    if most is not None and len(examples) > most:
        chosen = np.random.default_rng(task.seed).choice(len(examples), most, replace=False)
        examples = [examples[row] for row in np.sort(chosen)]
    if crop is not None:
        examples = [_crop(example, crop) for example in examples]
    return Dataset(examples, task.kind, label_names(task.kind, examples, columns))


def _crop(example: Example, size: int) -> Example:
    cut = max(0, (len(example.sequence) - size) // 2)
    sequence = example.sequence[cut : cut + size]
    if not example.contig:
        return dataclasses.replace(example, sequence=sequence)
    start = example.start + cut
    return dataclasses.replace(example, sequence=sequence, start=start, end=start + len(sequence))
