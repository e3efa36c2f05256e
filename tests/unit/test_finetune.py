"""Fine-tuning: every kind of task is learned, with all weights or adapters, from short and long
sequences; what is written is a model folder that gives the same predictions."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from megatron_dna.finetune import run, train
from megatron_dna.finetune.run import run_finetune
from megatron_dna.finetune.tasks import Task
from tests.unit.finetune_files import (
    MAX_TOKENS,
    make_task,
    model_folder,
    write_model,
    write_table,
    write_task,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "plain": write_model(folder / "a" / "plain"),
        "rmt": write_model(folder / "b" / "rmt", has_memory=True),
    }


def losses(summary: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in summary["history"] if "loss" in entry]


def reload(folder: Path, task: Task) -> Any:
    auto: Any = AutoModelForSequenceClassification
    if task.kind == "token":
        auto = AutoModelForTokenClassification
    return auto.from_pretrained(folder, trust_remote_code=True).eval()


def predict(folder: Path, task: Task, sequences: list[str]) -> list[np.ndarray]:
    """With nothing but transformers: outputs [labels], or [tokens, classes], of each sequence."""
    model, tokenizer = reload(folder, task), AutoTokenizer.from_pretrained(folder)
    found = []
    for sequence in sequences:
        with torch.no_grad():
            logits = model(**tokenizer(sequence, return_tensors="pt")).logits[0]
        logits = logits[1:-1] if task.kind == "token" else logits
        if task.kind == "multi_label":
            logits = logits.sigmoid()
        elif task.kind != "regression":
            logits = logits.softmax(-1)
        found.append(logits.numpy())
    return found


def of_test_part(output: Path, task: Task) -> tuple[list[str], np.ndarray]:
    """Sequences of the test part, and the predictions that the run wrote."""
    with (output / "predictions.tsv").open() as stream:
        rows = list(csv.reader(stream, delimiter="\t"))[1:]
    with Path(task.data.path or "").open() as stream:
        sequences = [row["sequence"] for row in csv.DictReader(stream)]
    chosen = list(dict.fromkeys(int(row[0]) for row in rows))
    return [sequences[i] for i in chosen], np.array([row[5:] for row in rows], np.float64)


def score_again(output: Path, kind: str, written: np.ndarray) -> dict[str, float]:
    """A metric of the test part from the predictions that the run wrote."""
    with (output / "predictions.tsv").open() as stream:
        header, *rows = csv.reader(stream, delimiter="\t")
    if kind in ("classification", "token"):
        chosen = np.array(header[5:])[written.argmax(1)]
        return {"accuracy": float(np.mean(chosen == [row[4] for row in rows]))}
    labels = np.array([row[4].split(",") for row in rows], np.float64)
    if kind == "multi_label":
        return {"auroc": float(roc_auc_score(labels, written))}
    return {"pearson": float(np.corrcoef(labels[:, 0], written[:, 0])[0, 1])}


CASES = [
    ("plain", "classification", 0), ("plain", "regression", 0), ("plain", "multi_label", 0),
    ("plain", "token", 0), ("plain", "regression", 4), ("plain", "token", 4),
    ("rmt", "classification", 0), ("rmt", "token", 0), ("rmt", "multi_label", 4),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "lora_rank"), CASES)
def test_learns(models: dict[str, Path], tmp_path: Path, name: str, kind: str, lora_rank: int):
    """Loss falls, the test part is predicted far above chance, and the folder that is written gives
    those predictions in transformers alone. Models with memory read several segments."""
    length = 200 if name == "rmt" else 40
    lora = [f"training.lora_rank={lora_rank}", "training.lora_alpha=16", "training.epochs=8"]
    task = make_task(tmp_path, kind, *(lora if lora_rank else []), length=length)
    model = model_folder(models[name])
    if name == "rmt":
        assert len(model.tokenize(["ACGTTGCA" * 25])[0].ids) > 2 * MAX_TOKENS
    summary = run_finetune(task, model, tmp_path / "o")
    history = losses(summary)
    assert history[-1] < 0.6 * history[0]
    test = summary["scores"]["test"]
    assert test[task.main_metric] > 0.85
    by_epoch = [e[key] for e in summary["history"] if (key := f"eval_{task.main_metric}") in e]
    assert summary["scores"]["valid"][task.main_metric] == pytest.approx(max(by_epoch), abs=1e-5)
    if kind == "regression":
        assert test["r2"] > 0.7  # of labels around 105: in their own units
    sequences, written = of_test_part(tmp_path / "o", task)
    scored = score_again(tmp_path / "o", kind, written)
    assert {name: test[name] for name in scored} == pytest.approx(scored, abs=1e-3)
    outputs = np.vstack(predict(tmp_path / "o" / "model", task, sequences))
    np.testing.assert_allclose(outputs, written, atol=2e-3, rtol=1e-3)
    assert not (tmp_path / "o" / "checkpoints").exists()
    assert (tmp_path / "o" / "training.png").read_bytes().startswith(b"\x89PNG")


def test_adapters_alone_are_trained_and_load_again(models: dict[str, Path], tmp_path: Path):
    """The encoder's own weights stay bit for bit; the base with the adapter is the merged model."""
    import peft

    task = make_task(tmp_path, "classification", "training.lora_rank=2", "training.epochs=1")
    model = model_folder(models["plain"])
    before = model.predictor(task, ["at", "gc"], seed=0)
    adapted = train.add_adapters(model.predictor(task, ["at", "gc"], seed=0), task)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "head" in name or "classifier" in name for name in trained)
    assert sum("lora_" in name for name in trained) == 2 * 2 * 4  # A, B of 4 matrices, 2 layers
    summary = run_finetune(task, model, tmp_path / "o")
    whole = sum(p.numel() for p in before.parameters())
    assert 0 < summary["trained_parameters"] < whole / 2
    again: Any = peft.PeftModel.from_pretrained(before, tmp_path / "o" / "adapter").eval()
    weights = dict(model.encoder().named_parameters())
    for name, value in again.get_base_model().model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(value, weights[name.replace("base_layer.", "")])
    merged = reload(tmp_path / "o" / "model", task)
    ids = model.tokenizer("ACGTTGCAAC" * 4, return_tensors="pt")
    with torch.no_grad():
        first, second = again(**ids).logits, merged(**ids).logits
    assert torch.allclose(first, second, atol=1e-5)
    assert (tmp_path / "o" / "adapter").stat()
    plain = predict(models["plain"], task, ["ACGTTGCAAC" * 4])[0]
    assert np.abs(plain - second.softmax(-1).numpy()).max() > 1e-4


def test_random_start_has_the_shape_but_not_the_weights(models: dict[str, Path], tmp_path: Path):
    task = make_task(tmp_path, "classification")
    model = model_folder(models["rmt"])
    pretrained, first, second, other = (
        model.predictor(task, ["a", "b"], seed, random).state_dict()
        for seed, random in ((0, False), (0, True), (0, True), (1, True))
    )
    name = "model.encoder.layers.1.mlp.Wi.weight"
    assert {k: v.shape for k, v in pretrained.items()} == {k: v.shape for k, v in first.items()}
    assert torch.equal(pretrained[name], model.encoder().state_dict()[name.removeprefix("model.")])
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], pretrained[name])
    assert not torch.equal(first[name], other[name])


def test_a_killed_run_goes_on(models: dict[str, Path], tmp_path: Path, monkeypatch):
    """Killed when it has written its second epoch: it does not start again, and ends the same."""
    task = make_task(tmp_path, "classification", "training.epochs=4", "training.learning_rate=1e-3")
    want = run_finetune(task, model_folder(models["plain"]), tmp_path / "once")

    class Killed(Exception):
        pass

    class Dies(train.PrinterCallback):
        def on_save(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            if state.epoch == 2:
                raise Killed

    original = train.Trainer.remove_callback
    monkeypatch.setattr(
        train.Trainer, "remove_callback", lambda self, kind: self.add_callback(Dies())
    )
    with pytest.raises(Killed):
        run_finetune(task, model_folder(models["plain"]), tmp_path / "o")
    assert not (tmp_path / "o" / "model").exists()
    monkeypatch.setattr(train.Trainer, "remove_callback", original)
    changed = make_task(tmp_path, "classification", "training.epochs=5")
    with pytest.raises(ValueError, match="holds a run with another task"):
        run_finetune(changed, model_folder(models["plain"]), tmp_path / "o")
    steps = []
    step = train.Trainer.training_step
    monkeypatch.setattr(
        train.Trainer, "training_step",
        lambda self, *rest, **options: steps.append(1) or step(self, *rest, **options),
    )  # fmt: skip
    got = run_finetune(task, model_folder(models["plain"]), tmp_path / "o")
    assert len(steps) == 2 * 5  # epochs 3 and 4 of 30 examples, 6 a step
    assert got["scores"]["test"] == pytest.approx(want["scores"]["test"])
    assert losses(got) == pytest.approx(losses(want), rel=1e-4)


def test_bad_input_is_named(models: dict[str, Path], tmp_path: Path):
    task = make_task(tmp_path, "classification", "training.epochs=1")
    model = model_folder(models["plain"])
    with pytest.raises(ValueError, match=r"--fold \(3\) must be between 0 and 2"):
        run_finetune(task, model, tmp_path / "o", fold=3)
    assert not (tmp_path / "o").exists()
    long = make_task(tmp_path / "long", "classification", length=200)
    with pytest.raises(ValueError, match=r"the model .* reads 40; cut them \(data.crop_bases"):
        run_finetune(long, model, tmp_path / "o")
    cropped = make_task(
        tmp_path / "long", "classification", "data.crop_bases=40", "training.epochs=1", length=200
    )
    run_finetune(cropped, model, tmp_path / "o")
    with pytest.raises(ValueError, match="holds a finished run"):
        run_finetune(cropped, model, tmp_path / "o")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is not a Hugging Face model folder"):
        model_folder(tmp_path / "empty")


def test_code_in_a_model_folder_is_not_run(models: dict[str, Path], tmp_path: Path):
    """A folder from outside may hold any code."""
    folder = write_model(tmp_path / "m" / "rmt", has_memory=True)
    (folder / "modeling_rmt.py").write_text("raise SystemExit('run')\n")
    task = make_task(tmp_path, "classification", "training.epochs=1")
    run_finetune(task, model_folder(folder), tmp_path / "o")
    assert "SystemExit" not in (tmp_path / "o" / "model" / "modeling_rmt.py").read_text()


def test_interrupted_output_is_not_left(models: dict[str, Path], tmp_path: Path, monkeypatch):
    """A model folder has its name only when it is whole."""
    task = make_task(tmp_path, "classification", "training.epochs=1")
    monkeypatch.setattr(run, "merged", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_finetune(task, model_folder(models["plain"]), tmp_path / "o")
    assert not (tmp_path / "o" / "model").exists()
    assert not (tmp_path / "o" / "metrics.json").exists()


def test_command_line(models: dict[str, Path], tmp_path: Path):
    table = write_table(tmp_path / "t.csv", "classification", 60)
    task = write_task(tmp_path / "t.yaml", "classification", table)

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "tools/finetune.py", "--model", str(models["plain"]), "--task",
             str(task), "--output", str(tmp_path / "o"), *more],
            capture_output=True, text=True, check=False, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    bad = call("training.epoch=1")
    assert bad.returncode == 2
    assert bad.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "training.epoch" in bad.stderr
    assert "Traceback" not in bad.stderr
    assert not (tmp_path / "o").exists()
    done = call("training.epochs=1", "split.num_folds=3")
    assert done.returncode == 0, done.stderr
    assert "test  mcc" in done.stdout
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert metrics["num_examples"] == {"train": 20, "valid": 20, "test": 20}
