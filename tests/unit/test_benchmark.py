"""Benchmarks: linear models and their baselines against scikit-learn by hand, restarts, reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import matthews_corrcoef, roc_auc_score
from sklearn.preprocessing import StandardScaler

from megatron_dna.finetune import benchmark
from megatron_dna.finetune.benchmark import METHODS, run_benchmark
from megatron_dna.finetune.datasets import load_dataset
from megatron_dna.finetune.metrics import score
from megatron_dna.finetune.probe import embeddings, kmer_shares
from megatron_dna.finetune.report import markdown, mean_and_spread, table
from megatron_dna.finetune.splits import make_folds
from tests.unit.finetune_files import make_task, model_folder, write_model, write_table, write_task

ROOT = Path(__file__).parents[2]
LINEAR = ["gc", "kmer", "probe", "probe-random"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "plain")


def count_kmers(sequence: str, k: int) -> list[float]:
    found = [sequence[i : i + k] for i in range(len(sequence) - k + 1)]
    found = [word for word in found if "N" not in word]
    return sorted(
        found.count("".join(word)) / max(1, len(found)) for word in product("ACGT", repeat=k)
    )


def test_kmers_by_counting():
    sequences = ["ACGTACGGTNACCA", "AAAAAAAA", "AC", "NNNNN"]
    for k in (1, 2, 3):
        shares = kmer_shares(sequences, k)
        assert shares.shape == (4, 4**k)
        for sequence, row in zip(sequences, shares, strict=True):
            np.testing.assert_allclose(np.sort(row), count_kmers(sequence, k))
    assert not np.array_equal(kmer_shares(["AC"], 2), kmer_shares(["CA"], 2))


def by_hand(task, dataset, fold, values) -> dict[str, float]:
    """The best strength on valid, scored on test: with scikit-learn alone."""
    best, answer = -np.inf, {}
    scaler = StandardScaler().fit(values[fold.train])
    train, valid, test = (scaler.transform(values[rows])
                          for rows in (fold.train, fold.valid, fold.test))  # fmt: skip
    labels = [dataset.labels(rows) for rows in (fold.train, fold.valid, fold.test)]
    for strength in task.probe.strengths:
        if task.kind == "classification":
            model = LogisticRegression(C=strength, max_iter=500).fit(train, labels[0])
            chosen = matthews_corrcoef(labels[1], model.predict(valid))
            scores = {
                "mcc": matthews_corrcoef(labels[2], model.predict(test)),
                "auroc": roc_auc_score(labels[2], model.predict_proba(test)[:, 1]),
            }
        else:
            ridge = Ridge(alpha=1 / strength).fit(train, labels[0])
            chosen = stats.pearsonr(labels[1][:, 0], ridge.predict(valid).ravel()).statistic
            predicted = ridge.predict(test).ravel()
            scores = {
                "pearson": stats.pearsonr(labels[2][:, 0], predicted).statistic,
                "spearman": stats.spearmanr(labels[2][:, 0], predicted).statistic,
            }
        if chosen > best:
            best, answer = chosen, scores
    return answer


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_baselines_and_probe_are_scikit_learns(plain: Path, tmp_path: Path, kind: str):
    """GC content, k-mers of one length, and mean states of ModernBERT: recomputed from scratch."""
    task = make_task(tmp_path, kind, "probe.kmers=[2]", count=60)
    model = model_folder(plain)
    results = run_benchmark([task], model, tmp_path / "o", LINEAR[:3])[task.name]["methods"]
    dataset = load_dataset(task)
    sequences = [example.sequence for example in dataset.examples]
    bare = model.encoder()
    states = []
    for sequence in sequences:
        inputs = model.tokenizer(sequence, return_tensors="pt")
        with torch.no_grad():
            states.append(bare(**inputs).last_hidden_state[0, 1:-1].mean(0).numpy())
    features = {
        "gc": np.array([[sum(base in "GC" for base in s) / len(s)] for s in sequences]),
        "kmer": kmer_shares(sequences, 2),
        "probe": np.stack(states),
    }
    for method, values in features.items():
        for fold, got in zip(make_folds(task, dataset), results[method], strict=True):
            want = by_hand(task, dataset, fold, values)
            for name, value in want.items():
                assert got["scores"]["test"][name] == pytest.approx(value, abs=1e-3)
            if kind == "regression" and method == "gc":  # it is the label
                assert got["scores"]["test"]["pearson"] > 0.999


def test_metrics_by_hand():
    labels = np.array([0, 0, 1, 1, 1, 0])
    ones = np.array([0.1, 0.6, 0.7, 0.4, 0.9, 0.2])
    got = score("classification", labels, np.stack([1 - ones, ones], 1))
    pairs = [float(a > b) for a in ones[labels == 1] for b in ones[labels == 0]]
    assert got["auroc"] == pytest.approx(np.mean(pairs))
    assert got["accuracy"] == pytest.approx(4 / 6)
    assert got["mcc"] == pytest.approx((2 * 2 - 1 * 1) / 9)
    numbers, ties = np.array([[1.0], [2], [3], [10]]), np.array([[2.0], [2], [1], [9]])
    got = score("regression", numbers, ties)
    assert got["spearman"] == pytest.approx(stats.spearmanr(numbers, ties).statistic)
    assert score("regression", numbers, np.ones((4, 1)))["pearson"] == 0


@pytest.mark.parametrize("kind", ["multi_label", "token"])
def test_linear_models_of_other_kinds_learn(plain: Path, tmp_path: Path, kind: str):
    """k-mers around a token say whether it is G or C; those of a sequence, which bases it has."""
    task = make_task(tmp_path, kind, "probe.max_tokens=400", "probe.context=1", count=60)
    result = run_benchmark([task], model_folder(plain), tmp_path / "o", LINEAR)[task.name]
    means = {m: mean_and_spread(f, task.main_metric)[0] for m, f in result["methods"].items()}
    assert means["kmer"] > 0.6
    assert means["probe"] > 0.8


def test_embeddings_of_long_input_read_all_segments(tmp_path: Path):
    """With memory, states of the last segment know the first."""
    model = model_folder(write_model(tmp_path / "rmt", has_memory=True))
    task = make_task(tmp_path, "token", count=12, length=200)
    dataset = load_dataset(task)
    sequences = [example.sequence for example in dataset.examples]
    first = embeddings(task, dataset, model.tokenize(sequences), model)
    assert len(first.values) == sum(len(t.ids) - 2 for t in model.tokenize(sequences))
    changed = ["".join(reversed(s[:50])) + s[50:] for s in sequences]
    tokens = model.tokenize(changed)
    second = embeddings(task, dataset, tokens, model)
    last = [np.flatnonzero(f.owners == 0)[-1] for f in (first, second)]
    assert np.abs(first.values[last[0]] - second.values[last[1]]).max() > 1e-5


def test_all_methods_and_a_killed_run(plain: Path, tmp_path: Path, monkeypatch):
    """Killed in the fifth fold, it goes on with that: no finished fold is run or written again."""
    tasks = [
        make_task(tmp_path, kind, "training.epochs=2", count=45)
        for kind in ("classification", "regression")
    ]
    methods = ["gc", "finetune", "finetune-random"]
    model = model_folder(plain)
    want = run_benchmark(tasks, model, tmp_path / "once", methods)
    ran: list[tuple[str, str, int]] = []
    original = benchmark._Work.run

    class Killed(Exception):
        pass

    def run(self, method, fold, scratch):
        if len(ran) == 4:
            raise Killed
        ran.append((self.task.name, method, fold))
        return original(self, method, fold, scratch)

    monkeypatch.setattr(benchmark._Work, "run", run)
    with pytest.raises(Killed):
        run_benchmark(tasks, model, tmp_path / "o", methods)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("fold_*.json")}
    assert len(files) == 4
    first, ran[:] = ran[:], []
    monkeypatch.setattr(
        benchmark._Work, "run",
        lambda self, *rest: ran.append((self.task.name, *rest[:2])) or original(self, *rest),
    )  # fmt: skip
    got = run_benchmark(tasks, model, tmp_path / "o", methods)
    assert len(ran) == 2 * 3 * 3 - 4
    assert not set(first) & set(ran)
    assert all(path.stat().st_mtime_ns == at for path, at in files.items())
    for name in want:
        assert got[name]["about"] == want[name]["about"]
        for method in methods:
            for a, b in zip(got[name]["methods"][method], want[name]["methods"][method],
                            strict=True):  # fmt: skip
                assert a["scores"]["test"] == pytest.approx(b["scores"]["test"], abs=1e-6)
    ran[:] = []
    run_benchmark(tasks, model, tmp_path / "o", methods)
    assert not ran
    assert not (tmp_path / "o" / ".scratch").exists()
    other = [make_task(tmp_path, "classification", "training.epochs=3", count=45)]
    with pytest.raises(ValueError, match="fold_0.json is of another task"):
        run_benchmark(other, model, tmp_path / "o", methods)
    second = model_folder(write_model(tmp_path / "second", has_memory=True))
    with pytest.raises(ValueError, match="fold_0.json is of another model_sha256"):
        run_benchmark(tasks, second, tmp_path / "o", methods)


def test_report_by_hand():
    def folds(*values: float) -> list[dict]:
        return [{"scores": {"test": dict.fromkeys(("mcc", "accuracy", "f1", "auroc", "auprc"), v)},
                 "seconds": 2.0} for v in values]  # fmt: skip

    results = {
        "a": {
            "metric": "mcc", "split_by": "position", "num_examples": 9, "num_test": [3, 3, 3],
            "about": {"task": {"description": "What.", "kind": "classification"}},
            "methods": {"gc": folds(0.1, 0.2, 0.3), "probe": folds(0.5, 0.5, 0.8)},
        }
    }  # fmt: skip
    rows = table(results, METHODS)
    assert rows[0] == ["task", "metric", "GC content", "frozen, pretrained"]
    assert rows[1] == ["a", "mcc", "0.200 ± 0.100", "0.600 ± 0.173"]
    page = markdown(results, METHODS, "m")
    assert "| a | mcc | 0.200 ± 0.100 | 0.600 ± 0.173 |" in page
    assert "9 examples, 3 folds (split by position; 3 to 3 examples tested)." in page


def test_command_line(plain: Path, tmp_path: Path):
    for name in ("one", "two"):
        csv = write_table(tmp_path / f"{name}.csv", "classification", 45)
        write_task(tmp_path / f"{name}.yaml", "classification", csv)

    def call(*suite: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "tools/benchmark.py", "--model", str(plain), "--output",
             str(tmp_path / "o"), "--methods", "gc", "probe-random", "--set", "split.num_folds=3",
             "--suite", *suite],
            capture_output=True, text=True, check=False, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    done = call(f"{tmp_path}/one.yaml", f"{tmp_path}/two.yaml")
    assert done.returncode == 0, done.stderr
    assert "frozen, random" in done.stdout
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert set(results) == {"one", "two"}
    assert len(results["one"]["methods"]["gc"]) == 3
    assert (tmp_path / "o" / "results.md").read_text().startswith("# Benchmark of plain")
    assert (tmp_path / "o" / "results.png").read_bytes().startswith(b"\x89PNG")
    bad = call(f"{tmp_path}/one.yaml", f"{tmp_path}/one.yaml")
    assert bad.returncode == 2
    assert "error: --suite has two tasks of one name" in bad.stderr
    assert "Traceback" not in bad.stderr
