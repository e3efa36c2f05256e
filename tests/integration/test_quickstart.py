"""`make quickstart`, with few steps: everything it promises is there, and it goes on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from tests.integration.commands import run_python

FEW = ("train.eval_interval=30", "checkpoint.save_interval=30", "scheduler.lr_warmup_iters=10")
KEYS = {
    *("train/loss", "train/grad_norm", "train/lr"),
    *("train/tokens_per_second", "train/bases_per_second"),
    *("valid/loss", "valid/accuracy", "valid/bits_per_base"),
}


def quickstart(out: Path, iterations: int) -> str:
    """Run it to its end; returns what it prints."""
    done = run_python(
        *("tools/quickstart.py", "--output-dir", out, f"train.train_iters={iterations}", *FEW)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The first call: its output folder and what it prints."""
    out = tmp_path_factory.mktemp("quickstart") / "new"
    return out, quickstart(out, 60)


def records(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "tiny/metrics.jsonl").read_text().splitlines()]


def test_everything_it_names_is_there(first: tuple[Path, str]) -> None:
    """A newcomer's first run: a name in the summary that does not exist ends their trust."""
    out, text = first
    made = [
        *("tokenizer.json", "chr20.json", "evaluation.json", "loss.png"),
        *(f"chr20_{split}.{kind}" for split in ("train", "valid") for kind in ("bin", "idx")),
        *("tiny/config.yaml", "tiny/metrics.jsonl", "tiny/checkpoints/latest"),
        *("model/iter_0000060/config.json", "model/iter_0000060/model.safetensors"),
    ]
    assert [name for name in made if not (out / name).is_file()] == []
    assert (out / "tiny/checkpoints/iter_0000060").is_dir()
    assert list((out / "tiny/tensorboard").iterdir())
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert records(out)[-1].keys() >= KEYS
    assert records(out)[-1]["iteration"] == 60

    summary = text[text.index("== done in") :]
    for name in ("tokenizer.json", "chr20.json", "tiny ", "model/iter_0000060", "loss.png"):
        assert f"{out}/{name}" in summary
    numbers = json.loads((out / "evaluation.json").read_text())
    for label, prefix in (("this model", ""), ("unigram", "unigram_"), ("uniform", "uniform_")):
        (row,) = (line for line in summary.splitlines() if line.strip().startswith(label))
        loss, bits = map(float, row.split()[-2:])
        assert loss == pytest.approx(numbers[f"{prefix}loss"], abs=1e-4)
        assert bits == pytest.approx(numbers[f"{prefix}bits_per_base"], abs=1e-4)


def test_the_model_beats_the_unigram(first: tuple[Path, str]) -> None:
    """Even a fifth of the quickstart's steps must learn more than how frequent tokens are."""
    numbers = json.loads((first[0] / "evaluation.json").read_text())
    assert numbers["loss"] < numbers["unigram_loss"] < numbers["uniform_loss"]


def test_the_model_loads_in_transformers(first: tuple[Path, str]) -> None:
    """The point of the whole way."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = first[0] / "model" / "iter_0000060"
    model = AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "ModernBertForMaskedLM"
    inputs = tokenizer("ACGTTGCA" * 20, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (*inputs["input_ids"].shape, 512)
    assert logits.isfinite().all()


def test_finished_steps_are_not_done_again(first: tuple[Path, str]) -> None:
    """If they were, trying a thing twice would cost minutes, or the run itself.

    The second call asks for two steps more; the training command that it prints is then run once
    more, as a user would who copies it.
    """
    out, _ = first
    made = [out / "tokenizer.json", out / "chr20_train.bin"]
    before, written = records(out), [path.stat().st_mtime_ns for path in made]
    text = quickstart(out, 62)
    assert text.count("is there already: skipped") == 2
    assert [path.stat().st_mtime_ns for path in made] == written
    after = records(out)
    assert after[: len(before)] == before
    assert [record["iteration"] for record in after[len(before) :]] == [62]
    assert (out / "model" / "iter_0000062" / "model.safetensors").is_file()

    (command,) = (line for line in text.splitlines() if "pretrain_dna_bert.py" in line)
    done = run_python(*shlex.split(command)[2:])
    assert done.returncode == 0, done.stderr
    assert "nothing to do: train.train_iters (62) are done" in done.stderr
    assert records(out) == after
