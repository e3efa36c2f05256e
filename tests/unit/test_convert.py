"""A checkpoint written by the trainer's own code, read back by transformers alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

from megatron_dna.config import Config
from megatron_dna.hf.convert import to_hugging_face
from megatron_dna.hf.weights import qkv_by_kind
from megatron_dna.model.encoder import DnaBert
from megatron_dna.parallel import topology
from megatron_dna.tokenizer.bpe import DnaTokenizer
from tests.unit.trained_model import SEQ, save_trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Config, DnaBert]:
    """A checkpoint folder, its options, and the model that is in it."""
    yield save_trained(tmp_path_factory.mktemp("run"))
    topology.shutdown()


@pytest.fixture(scope="module")
def converted(trained, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("hf") / "model"
    to_hugging_face(trained[0], output)
    return output


def test_transformers_computes_the_same_logits(trained, converted: Path):
    """A difference means that labs would use another model than the one that was trained."""
    _, _, ours = trained
    theirs, report = AutoModelForMaskedLM.from_pretrained(converted, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == "ModernBertForMaskedLM"
    input_ids = torch.randint(0, ours.vocab_size, (3, SEQ))
    with torch.no_grad():
        want = ours(input_ids, None, torch.arange(SEQ).expand(3, -1)).logits
        got = theirs.eval()(input_ids=input_ids).logits
    assert want.abs().max() > 1
    assert (got - want).abs().max() < 1e-4
    assert theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight


def test_tokenizer_agrees(trained, converted: Path):
    _, config, _ = trained
    ours = DnaTokenizer.from_file(config.data.tokenizer)
    theirs = AutoTokenizer.from_pretrained(converted)
    sequence = "ACGTTGCAAACCGTNNNNNNNNNNNNACGT"
    assert theirs(sequence)["input_ids"] == [ours.cls_id, *ours.encode(sequence), ours.sep_id]
    assert (theirs.pad_token_id, theirs.mask_token_id) == (ours.pad_id, ours.mask_id)
    assert theirs.model_max_length == SEQ


def test_fill_mask_pipeline_runs(converted: Path):
    fill = pipeline("fill-mask", model=str(converted))
    answers = fill("ACGTACGT[MASK]ACGTTTGA")
    assert len(answers) == 5
    assert all(0 < answer["score"] < 1 for answer in answers)


def test_save_and_load_keep_logits_bit_for_bit(converted: Path, tmp_path: Path):
    model = AutoModelForMaskedLM.from_pretrained(converted).eval()
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again").eval()
    input_ids = torch.randint(0, 27, (2, SEQ))
    with torch.no_grad():
        first, second = (each(input_ids=input_ids).logits for each in (model, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("auto", "per_token"),
    [(AutoModelForSequenceClassification, False), (AutoModelForTokenClassification, True)],
)
def test_trainer_fine_tunes(converted: Path, tmp_path: Path, auto, per_token: bool):
    model = auto.from_pretrained(converted, num_labels=3)
    before = model.get_input_embeddings().weight.detach().clone()
    inputs = AutoTokenizer.from_pretrained(converted)("ACGTTGCA" * 4)
    label = [1] * len(inputs["input_ids"]) if per_token else 1
    trainer = Trainer(
        model,
        TrainingArguments(
            tmp_path, max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            save_strategy="no",
        ),
        train_dataset=[inputs | {"labels": label}] * 4,
    )  # fmt: skip
    assert trainer.train().global_step == 2
    assert not torch.equal(model.get_input_embeddings().weight, before)


def test_bf16_halves_the_weights(trained, tmp_path: Path):
    to_hugging_face(trained[0], tmp_path / "m", dtype="bf16")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "m").dtype == torch.bfloat16


def test_qkv_rows_by_hand():
    """Two heads of width 1: Megatron's rows q0 k0 v0 q1 k1 v1 become q0 q1 k0 k1 v0 v1."""
    rows = torch.tensor([[0.0, 0], [1, 1], [2, 2], [3, 3], [4, 4], [5, 5]])
    assert qkv_by_kind(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5]


def test_bad_input_leaves_nothing(trained, tmp_path: Path):
    path, *_ = trained
    with pytest.raises(ValueError, match="no config"):
        to_hugging_face(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"tokenizer \(absent.json\)"):
        to_hugging_face(path, tmp_path / "out", tokenizer=Path("absent.json"))
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        to_hugging_face(path, tmp_path / "there")
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]


def test_command_line(trained, tmp_path: Path):
    """As the README says it: a run's folder in, a model out; an error is one line."""
    path, *_ = trained
    command = [sys.executable, "tools/convert_checkpoint.py", "to-hf", "--checkpoint"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    run = subprocess.run(
        [*command, str(path.parent.parent), "--output", str(tmp_path / "m")],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert "iter_0000007" in run.stdout
    assert (tmp_path / "m" / "README.md").read_text().startswith("---\n")
    run = subprocess.run(
        [*command, str(path), "--output", str(tmp_path / "m")],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert run.returncode == 2
    assert "exists already" in run.stderr
    assert "Traceback" not in run.stderr
