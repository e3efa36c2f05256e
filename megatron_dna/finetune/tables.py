"""Files of sequences with labels, in the formats that benchmarks come in.

GUE (DNABERT-2): train.csv, dev.csv and test.csv with the columns sequence and label. The Nucleotide
Transformer's tasks: train.fna and test.fna, headers end with `|label`. GENA-LM: fold_1.csv to
fold_n.csv, or folders train, valid and test of CSV files; all columns but the sequence are labels.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_dna.finetune.examples import Example
from megatron_dna.finetune.tasks import Task
from megatron_dna.genome.compressed import read_chunks
from megatron_dna.genome.sequence import clean_sequence


def read_tables(task: Task) -> tuple[list[Example], tuple[str, ...]]:
    """All examples, and the columns of their labels.

    Raises:
        ValueError: a file or column that is not there, a label or sequence that cannot be; names
            file and line.
    """
    assert task.data.path is not None
    path = Path(task.data.path)
    if task.data.format == "nt":
        return list(_read_nt(task, path)), ("label",)
    examples: list[Example] = []
    columns: tuple[str, ...] = ()
    for part, file in _files(task.data.format, path):
        more, found = _read_table(task, file, part)
        if columns and found != columns:
            raise ValueError(f"{file} has the label columns {found}, others have {columns}")
        columns = found
        examples += more
    return examples, columns


def _files(data_format: str, path: Path) -> list[tuple[str, Path]]:
    """(part, file) of a format."""
    if data_format == "table":
        return [("", path)]
    if data_format == "gue":
        return [(part, path / f"{name}.csv") for part, name in
                (("train", "train"), ("valid", "dev"), ("test", "test"))]  # fmt: skip
    folds = [(int(match[1]), file) for file in path.iterdir()
             if (match := re.fullmatch(r"fold_(\d+)\.csv", file.name))]  # fmt: skip
    if folds:
        return [(str(number), file) for number, file in sorted(folds)]
    return [
        (part, file)
        for part in ("train", "valid", "test")
        for file in (sorted((path / part).glob("*.csv")) or [path / f"{part}.csv"])
    ]


def _read_table(task: Task, path: Path, part: str) -> tuple[list[Example], tuple[str, ...]]:
    text = _text(path)
    first = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in first else ",")
    header = tuple(reader.fieldnames or ())
    sequence_column = task.data.sequence_column
    columns = tuple(task.data.label_columns or ("label",))
    if task.data.format == "gena" and task.data.label_columns is None:
        columns = tuple(name for name in header if name != sequence_column)
    for key, column in (("sequence_column", sequence_column),
                        *(("label_columns", column) for column in columns)):  # fmt: skip
        if column not in header:
            raise ValueError(
                f"data.{key} ({column}): {path} has no such column; it has {', '.join(header)}"
            )
    if task.kind in ("classification", "token") and len(columns) != 1:
        raise ValueError(
            f"data.label_columns ({', '.join(columns)}) of {path} must be one for a task of kind "
            f"{task.kind}; name it"
        )
    examples = []
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        sequence = parse_sequence(row[sequence_column], where)
        values = [row[column] for column in columns]
        label = parse_label(task.kind, values, len(sequence), where)
        examples.append(Example(sequence, label, part=part))
    if not examples:
        raise ValueError(f"{path} has no rows")
    return examples, columns


def _read_nt(task: Task, folder: Path) -> Iterator[Example]:
    if task.kind not in ("classification", "regression"):
        raise ValueError(f"kind ({task.kind}): data.format nt has one label a sequence")
    for part in ("train", "test"):
        path = next(
            (file for ending in ("fna", "fa", "fasta", "fna.gz")
             if (file := folder / f"{part}.{ending}").is_file()),
            folder / f"{part}.fna",
        )  # fmt: skip
        records = _text(path).split(">")
        if records[0].strip() or len(records) < 2:
            raise ValueError(f"{path} is not FASTA: it must start with '>'")
        for number, record in enumerate(records[1:], 1):
            header, _, sequence = record.partition("\n")
            where = f"{path}, record {number} ({header[:40]!r})"
            _, bar, label = header.rpartition("|")
            if not bar:
                raise ValueError(f"{where}: the header must be >name|label")
            bases = parse_sequence("".join(sequence.split()), where)
            yield Example(bases, parse_label(task.kind, [label], len(bases), where), part=part)


def parse_sequence(text: str | None, where: str) -> str:
    """Upper case; IUPAC ambiguity codes become N.

    Raises:
        ValueError: empty, or letters that are not nucleotides.
    """
    if not text:
        raise ValueError(f"{where}: there is no sequence")
    try:
        return clean_sequence(text.encode())[0].decode()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def parse_label(
    kind: str, values: list[str | None] | list[str], num_bases: int, where: str
) -> str | tuple[float, ...]:
    """A label from its columns.

    Raises:
        ValueError: it is not of the task's kind.
    """
    texts = [(value or "").strip() for value in values]
    if kind == "classification":
        if not texts[0]:
            raise ValueError(f"{where}: there is no label")
        return texts[0]
    if kind == "token":
        if len(texts[0]) != num_bases or not texts[0].isdecimal() or not texts[0].isascii():
            raise ValueError(
                f"{where}: a token task's label must be one digit a base ({num_bases}), not "
                f"{texts[0][:20]!r} of {len(texts[0])}"
            )
        return texts[0]
    try:
        numbers = tuple(float(text) for text in texts)
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where}: labels ({', '.join(texts)}) must be numbers")
    if kind == "multi_label" and not set(numbers) <= {0.0, 1.0}:
        raise ValueError(f"{where}: multi_label labels ({', '.join(texts)}) must be 0 or 1")
    return numbers


def _text(path: Path) -> str:
    """A text file, gzipped or not, with \\n between lines."""
    try:
        text = b"".join(read_chunks(path, "file of a task")).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error
    return text.replace("\r\n", "\n")
