"""Tasks and their data: what YAML may say, file formats, splits."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from megatron_dna.finetune.datasets import load_dataset
from megatron_dna.finetune.examples import Dataset, Example
from megatron_dna.finetune.splits import make_folds, overlap_groups
from megatron_dna.finetune.tasks import Task, load_task
from tests.unit.finetune_files import task_of, write_table, write_task
from tests.unit.genome_files import ROOT, reverse_complement

BENCHMARKS = sorted((ROOT / "examples/benchmarks").glob("*.yaml"))
SHARED = ROOT.parent / "shared/data"


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_examples_load(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the repository ships must run, with its own data or with the user's."""
    monkeypatch.chdir(ROOT)
    few = ["data.max_examples=200", "split.num_folds=3"]
    if "${data_root}" in path.read_text():
        with pytest.raises(ValueError, match="stands for --data-root"):
            load_task(path, few)
        if not SHARED.exists():
            pytest.skip("../shared/data is not here")
        task = load_task(path, few, SHARED)
    else:
        task = load_task(path, few)
    dataset = load_dataset(task)
    assert len(dataset.examples) == 200
    assert task.name == path.stem
    assert len(make_folds(task, dataset)) == 3


BAD = [
    ("kind", "rank", r"kind \(rank\) must be one of classification, regression"),
    ("training.epoch", "3", "training.epoch"),
    ("training.epochs", "many", r"training.epochs: .*many"),
    ("training.epochs", "0", r"training.epochs \(0\) must be positive"),
    ("metric", "r2", r"metric \(r2\) must be one of mcc"),
    ("data.format", "excel", r"data.format \(excel\) must be one of table, gue"),
    ("data.path", "absent.csv", r"data.path \(absent.csv\) is not a file"),
    ("data.format", "splice_sites", "data.fasta is not given; data.format splice_sites needs it"),
    ("data.format", "density", r"kind \(classification\) must be regression"),
    ("data.format", "gue", r"is not a folder"),
    ("split.num_folds", "2", r"split.num_folds \(2\) must be at least 3"),
    ("training.pooling", "max", r"training.pooling \(max\) must be one of mean, cls"),
    ("probe.kmers", "[9]", r"probe.kmers \(\[9\]\) must be numbers from 1 to 8"),
    ("data.path", "${data_root}/x", "stands for --data-root"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_bad_options_are_named(tmp_path: Path, key: str, value: str, message: str):
    table = write_table(tmp_path / "t.csv", "classification", 9)
    path = write_task(tmp_path / "t.yaml", "classification", table)
    load_task(path)
    if value.startswith("$"):
        path.write_text(path.read_text().replace(str(table), value))
        overrides = []
    else:
        overrides = [f"{key}={value}"]
    with pytest.raises(ValueError, match=message) as error:
        load_task(path, overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: token\n", "(name|data.format): is not given"),
        ("name: [\n", "is not YAML of a task"),
        ("name: ../x\nkind: token\ndata: {format: exons, fasta: a}\n", "it names a folder"),
        ("- a\n- b\n", "t.yaml"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        task_of(tmp_path, text)
    with pytest.raises(ValueError, match="is not a file"):
        load_task(tmp_path / "absent.yaml")


def test_gue(tmp_path: Path):
    for name, label in (("train", "01"), ("dev", "10"), ("test", "01")):
        rows = "".join(f"{'ACGT' * 5},{x}\n" for x in label)
        (tmp_path / f"{name}.csv").write_text(f"sequence,label\n{rows}")
    text = f"name: g\nkind: classification\ndata: {{format: gue, path: {tmp_path}}}"
    task = task_of(tmp_path, text, "split.num_folds=2")
    dataset = load_dataset(task)
    assert [e.part for e in dataset.examples] == ["train"] * 2 + ["valid"] * 2 + ["test"] * 2
    first, second = make_folds(task, dataset)
    assert (first.train.tolist(), first.valid.tolist(), first.test.tolist()) == (
        [0, 1], [2, 3], [4, 5]
    )  # fmt: skip
    assert second.test.tolist() == first.test.tolist()
    assert dataset.labels(first.valid).tolist() == [1, 0]
    (tmp_path / "dev.csv").unlink()
    with pytest.raises(ValueError, match=r"dev.csv is not there"):
        load_dataset(task)


def test_nucleotide_transformer(tmp_path: Path):
    """Headers end with the label; a tenth of training is for validation."""
    draw = random.Random(0)
    made = ["".join(draw.choices("ACGT", k=50)) for _ in range(60)]
    for part, rows in (("train", made[:50]), ("test", made[50:])):
        text = "".join(f">chr1:{i}|x|{i % 3}\n{s[:30]}\n{s[30:].lower()}\n"
                       for i, s in enumerate(rows))  # fmt: skip
        (tmp_path / f"{part}.fna").write_text(text)
    text = f"name: n\nkind: classification\ndata: {{format: nt, path: {tmp_path}}}"
    task = task_of(tmp_path, text, "split.num_folds=1")
    dataset = load_dataset(task)
    assert [e.sequence for e in dataset.examples] == made
    assert dataset.names == ("0", "1", "2")
    (fold,) = make_folds(task, dataset)
    assert len(fold.train) == 45
    assert sorted([*fold.train, *fold.valid]) == list(range(50))
    assert fold.test.tolist() == list(range(50, 60))
    (tmp_path / "test.fna").write_text(">chr1 0\nACGT\n")
    with pytest.raises(ValueError, match=r"record 1 \('chr1 0'\): the header must be >name|label"):
        load_dataset(task)


def test_gena_folds(tmp_path: Path):
    """fold_1.csv to fold_5.csv: GENA-LM's own script tests split i (from 1) on fold i - 1, the
    first on the fifth, and validates on the one before."""
    for i in range(1, 6):
        text = f"sequence,promoter_presence\n{'ACGTA' * i},0\n{'GGGTA' * i},1\n"
        (tmp_path / f"fold_{i}.csv").write_text(text)
    task = task_of(
        tmp_path, f"name: g\nkind: classification\ndata: {{format: gena, path: {tmp_path}}}"
    )
    dataset = load_dataset(task)
    folds = make_folds(task, dataset)
    named = [
        tuple(sorted({dataset.examples[row].part for row in rows})
              for rows in (fold.train, fold.valid, fold.test))
        for fold in folds
    ]  # fmt: skip
    assert named[0] == (["1", "2", "3"], ["4"], ["5"])
    assert named[1] == (["2", "3", "4"], ["5"], ["1"])
    assert len(folds) == 5


def test_gena_split_folders_and_several_labels(tmp_path: Path):
    for part in ("train", "valid", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "fold_1.csv").write_text("sequence,dev,hk\nACGT,0.5,-1\nTTGA,2,3e-1\n")
    task = task_of(tmp_path, f"name: g\nkind: regression\ndata: {{format: gena, path: {tmp_path}}}")
    dataset = load_dataset(task)
    assert dataset.names == ("dev", "hk")
    fold = make_folds(task, dataset)[0]
    np.testing.assert_allclose(dataset.labels(fold.test), [[0.5, -1], [2, 0.3]])


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("classification", "MKVLAWT,1", "line 3: .*L"),
        ("classification", ",1", "line 3: there is no sequence"),
        ("classification", "ACGT,", "line 3: there is no label"),
        ("regression", "ACGT,high", r"labels \(high\) must be numbers"),
        ("regression", "ACGT,nan", r"labels \(nan\) must be numbers"),
        ("multi_label", "ACGT,2", r"labels \(2\) must be 0 or 1"),
        ("token", "ACGT,012", r"one digit a base \(4\), not '012' of 3"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, kind: str, row: str, message: str):
    """Protein letters, and labels that are not of the kind: file and line."""
    good = "ACGT,0101" if kind == "token" else "ACGT,1"
    (tmp_path / "t.csv").write_text(f"sequence,label\n{good}\n{row}\n")
    task = task_of(
        tmp_path, f"name: t\nkind: {kind}\ndata: {{format: table, path: {tmp_path}/t.csv}}"
    )
    with pytest.raises(ValueError, match=r"t\.csv.*" + message):
        load_dataset(task)


def test_columns_and_classes_that_are_not_there(tmp_path: Path):
    (tmp_path / "t.tsv").write_text("seq\tlabel\nACGT\t1\nACGA\t1\n")
    text = f"name: t\nkind: classification\ndata: {{format: table, path: {tmp_path}/t.tsv}}"
    with pytest.raises(ValueError, match=r"sequence_column \(sequence\).*it has seq, label"):
        load_dataset(task_of(tmp_path, text))
    with pytest.raises(ValueError, match=r"only one class \(1\)"):
        load_dataset(task_of(tmp_path, text, "data.sequence_column=seq"))


def test_labels_absent_in_training_are_named(tmp_path: Path):
    for name, labels in (("train", "01"), ("dev", "01"), ("test", "02")):
        rows = "".join(f"ACGTACGTAC,{x}\n" for x in labels)
        (tmp_path / f"{name}.csv").write_text(f"sequence,label\n{rows}")
    text = f"name: g\nkind: classification\ndata: {{format: gue, path: {tmp_path}}}"
    task = task_of(tmp_path, text)
    with pytest.raises(ValueError, match="label '2' of the test part does not occur in the train"):
        make_folds(task, load_dataset(task))
    (tmp_path / "dev.csv").write_text("sequence,label\nACGTACGTAC,1\n")
    with pytest.raises(ValueError, match="fold 0: its valid part has one class only"):
        make_folds(task, load_dataset(task))


def spans_task(folder: Path, gap: int) -> Task:
    (folder / "g.fa").write_text(">a\nACGT\n")
    text = f"name: s\nkind: classification\ndata: {{format: shuffled, fasta: {folder}/g.fa}}"
    return task_of(folder, text, f"split.gap_bases={gap}")


@pytest.mark.parametrize("gap", [0, 70])
def test_position_splits_do_not_leak(tmp_path: Path, gap: int):
    """Intervals of random place and length, many overlapping: nothing that is tested, or chosen by,
    was seen before; every example is tested once, in blocks."""
    draw = random.Random(1)
    examples = []
    for _ in range(400):
        start, length = draw.randrange(8000), draw.choice((20, 90, 300))
        examples.append(Example("A", draw.choice("xy"), draw.choice("ab"), start, start + length))
    dataset = Dataset(examples, "classification", ("x", "y"))
    folds = make_folds(spans_task(tmp_path, gap), dataset)
    assert sorted(row for fold in folds for row in fold.test) == list(range(400))
    for fold in folds:
        assert len(fold.train) > 150
        for rows, others in ((fold.train, (fold.valid, fold.test)), (fold.valid, (fold.test,))):
            for row in rows:
                one = examples[row]
                for other in (examples[i] for part in others for i in part):
                    assert (
                        one.contig != other.contig
                        or one.end + gap <= other.start
                        or other.end + gap <= one.start
                    )
        first = min((examples[row].contig, examples[row].start) for row in fold.test)
        last = max((examples[row].contig, examples[row].start) for row in fold.test)
        inside = [row for row, e in enumerate(examples) if first < (e.contig, e.start) < last]
        assert set(inside) <= set(fold.test.tolist())


def test_overlap_groups_by_hand():
    """Ends that meet (either strand), one inside another, copies; not a repeat in both middles."""
    draw = random.Random(2)
    bases = "".join(draw.choices("ACGT", k=400))
    shared = "".join(draw.choices("ACGT", k=40))
    sequences = [
        bases[:60], bases[35:95], reverse_complement(bases[80:140]), bases[90:105] * 2,
        bases[200:260], bases[210:250], bases[200:260], bases[241:301],
        "ACCA" * 4 + shared + "GTTG" * 4, "TCTC" * 4 + shared + "CAGC" * 4,
    ]  # fmt: skip
    groups = {frozenset(group) for group in overlap_groups(sequences, 20)}
    assert groups == {frozenset(g) for g in ({0, 1}, {2}, {3}, {4, 5, 6}, {7}, {8}, {9})}
    groups = {frozenset(group) for group in overlap_groups(sequences, 15)}
    assert frozenset({0, 1, 2}) in groups
    assert frozenset({4, 5, 6, 7}) in groups


def test_overlap_splits_do_not_leak(tmp_path: Path):
    """Windows drawn from a small genome on both strands: no window of a test part shares its end
    with one of training. At random, hundreds of pairs would."""
    draw = random.Random(4)
    bases = "".join(draw.choices("ACGT", k=20_000))
    rows = []
    for i in range(300):
        start = draw.randrange(len(bases) - 60)
        window = bases[start : start + 60]
        rows.append((start, window if draw.random() < 0.5 else reverse_complement(window), i % 2))
    text = "".join(f"{s},{label}\n" for _, s, label in rows)
    (tmp_path / "t.csv").write_text(f"sequence,label\n{text}")
    task = task_of(
        tmp_path,
        f"name: t\nkind: classification\ndata: {{format: table, path: {tmp_path}/t.csv}}",
    )
    folds = make_folds(task, load_dataset(task))
    assert sorted(row for fold in folds for row in fold.test) == list(range(300))
    for fold in folds:
        assert 45 <= len(fold.test) <= 75
        seen = {*fold.train, *fold.valid}
        for part, others in ((fold.test, seen), (fold.valid, fold.train)):
            for row in part:
                for other in others:
                    assert abs(rows[row][0] - rows[other][0]) > 40
