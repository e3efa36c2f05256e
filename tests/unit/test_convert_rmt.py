"""Models with memory in transformers: the folder's own file against the stack that trains."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

from megatron_dna.config import Config
from megatron_dna.hf import modeling_rmt
from megatron_dna.hf.convert import to_hugging_face
from megatron_dna.model.encoder import DnaBert
from megatron_dna.parallel import topology
from tests.unit.trained_model import SEQ, save_trained

MEM, CONTENT = 5, SEQ - 2
CLS, SEP, PAD = 1, 2, 3


@pytest.fixture(scope="module", params=["plain", "binary"])
def trained(tmp_path_factory, request) -> Iterator[tuple[Path, Config, DnaBert]]:
    yield save_trained(
        tmp_path_factory.mktemp("run"), f"memory.num_mem_tokens={MEM}",
        f"memory.update={request.param}", "memory.max_n_segments=3",
    )  # fmt: skip
    topology.shutdown()


@pytest.fixture(scope="module")
def converted(trained, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("hf") / "model"
    to_hugging_face(trained[0], output)
    return output


def load(auto, folder: Path, **options):
    return auto.from_pretrained(folder, trust_remote_code=True, **options).eval()


def rows(*lengths: int) -> tuple[Tensor, Tensor]:
    """[CLS], so many tokens, [SEP], padding: ids and mask."""
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.full((len(lengths), max(lengths) + 2), PAD)
    for row, length in enumerate(lengths):
        ids[row, 0], ids[row, length + 1] = CLS, SEP
        ids[row, 1 : length + 1] = torch.randint(6, 27, (length,), generator=generator)
    return ids, (ids != PAD).long()


def ours_on(model: DnaBert, content: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the content, and memory after it, segment by segment in the training stack."""
    logits, memory = [], None
    for piece in content.split(CONTENT):
        ids = torch.full((1, SEQ), PAD)
        ids[0, 0], ids[0, len(piece) + 1] = CLS, SEP
        ids[0, 1 : len(piece) + 1] = piece
        mask = torch.arange(SEQ)[None] < len(piece) + 2
        output = model(ids, mask, torch.arange(1, len(piece) + 1)[None], memory=memory)
        logits.append(output.logits[0])
        memory = output.new_memory
    return torch.cat(logits), memory[:, 0]


@pytest.mark.parametrize("lengths", [(CONTENT,), (2 * CONTENT,), (9 * CONTENT,),
                                     (9 * CONTENT - 5, CONTENT, 2 * CONTENT + 1, 4)])  # fmt: skip
def test_logits_and_memory_equal_the_training_stack(trained, converted: Path, lengths):
    """1, 2 and 9 segments, and rows of different length in one batch. A difference means that labs
    would use another model than the one that was trained."""
    theirs = load(AutoModelForMaskedLM, converted)
    ids, mask = rows(*lengths)
    with torch.no_grad():
        got = theirs(input_ids=ids, attention_mask=mask)
        for row, length in enumerate(lengths):
            want, memory = ours_on(trained[2], ids[row, 1 : length + 1])
            assert want.abs().max() > 1
            assert (got.logits[row, 1 : length + 1] - want).abs().max() < 1e-4
            assert (got.memory[row] - memory).abs().max() < 1e-4


def test_memory_matters(converted: Path):
    """Without memory the second segment would not know the first."""
    theirs = load(AutoModelForMaskedLM, converted)
    ids, _ = rows(2 * CONTENT)
    other = ids.clone()
    other[0, 1:CONTENT] = other[0, 1:CONTENT].flip(0)
    with torch.no_grad():
        second = [theirs(input_ids=x).logits[0, CONTENT + 1 : -1] for x in (ids, other)]
    assert (second[0] - second[1]).abs().max() > 1e-4


def test_streaming_equals_one_call(converted: Path):
    """Memory out of one call and into the next, as the file's docstring says."""
    theirs = load(AutoModel, converted)
    ids, _ = rows(3 * CONTENT)
    with torch.no_grad():
        whole = theirs(input_ids=ids, output_hidden_states=True)
        memory, states = None, []
        for piece in ids[0, 1:-1].split(CONTENT):
            segment = torch.cat((torch.tensor([CLS]), piece, torch.tensor([SEP])))[None]
            output = theirs(input_ids=segment, memory=memory)
            memory = output.memory
            states.append(output.last_hidden_state[0, 1:-1])
    assert torch.equal(whole.last_hidden_state[0, 1:-1], torch.cat(states))
    assert torch.equal(whole.last_hidden_state[0, 0], output.last_hidden_state[0, 0])
    assert torch.equal(whole.memory, memory)
    assert [tuple(layer.shape) for layer in whole.hidden_states] == [(1, 3 * CONTENT + 2, 32)] * 5
    assert torch.equal(whole.hidden_states[-1], whole.last_hidden_state)


def test_gradients_reach_the_first_segment_and_the_initial_memory(converted: Path):
    theirs = load(AutoModelForMaskedLM, converted)
    ids, mask = rows(2 * CONTENT, 3)
    labels = torch.full_like(ids, -100)
    labels[0, -3:-1] = ids[0, -3:-1]
    for depth, flows in ((-1, True), (1, False)):
        theirs.config.bptt_depth = depth
        theirs.zero_grad()
        theirs(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        assert bool(theirs.model.initial_memory.grad.any()) == flows


def test_left_padding_of_long_rows_is_refused(converted: Path):
    ids, mask = rows(2 * CONTENT, 4)
    with pytest.raises(ValueError, match="padding on the right"):
        load(AutoModel, converted)(input_ids=ids.flip(1), attention_mask=mask.flip(1))


def test_file_imports_nothing_of_this_package(converted: Path):
    """It must run where only transformers is installed."""
    text = (converted / "modeling_rmt.py").read_text()
    assert text == Path(modeling_rmt.__file__).read_text()
    modules = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert modules <= {"__future__", "dataclasses", "typing", "torch", "transformers"}


def test_save_and_load_keep_logits_bit_for_bit(converted: Path, tmp_path: Path):
    """And the new folder is as complete as the first: it loads without it."""
    theirs = load(AutoModelForMaskedLM, converted)
    ids, mask = rows(2 * CONTENT, CONTENT)
    theirs.save_pretrained(tmp_path / "again")
    again, report = AutoModelForMaskedLM.from_pretrained(
        tmp_path / "again", trust_remote_code=True, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        first, second = (
            model(input_ids=ids, attention_mask=mask).logits for model in (theirs, again.eval())
        )
    assert torch.equal(first, second)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(load(AutoModel, tmp_path / "again").initial_memory,
                       theirs.model.initial_memory)  # fmt: skip


def test_fill_mask_pipeline_reads_long_input(converted: Path):
    fill = pipeline("fill-mask", model=str(converted), trust_remote_code=True)
    answers = fill("ACGTACGT" * 12 + "[MASK]" + "ACGTTTGA" * 12)
    assert len(answers) == 5
    assert all(0 < answer["score"] < 1 for answer in answers)


@pytest.mark.parametrize(
    ("auto", "labels"),
    [(AutoModelForSequenceClassification, 1), (AutoModelForTokenClassification, None)],
)
def test_trainer_fine_tunes(converted: Path, tmp_path: Path, auto, labels):
    """Two steps on rows of two segments; evaluation gives predictions of the labels' shape."""
    model = load(auto, converted, num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    before = model.model.initial_memory.detach().clone()
    rows = []
    for i in range(8):
        inputs = tokenizer("ACGTTGCA" * 12)
        rows.append(inputs | {"labels": labels or [i % 3] * len(inputs["input_ids"])})
    assert len(rows[0]["input_ids"]) > SEQ
    trainer = Trainer(
        model,
        TrainingArguments(
            tmp_path / "out", max_steps=2, per_device_train_batch_size=2, report_to=[],
            use_cpu=True, save_strategy="no", gradient_accumulation_steps=2, learning_rate=1e-2,
        ),
        train_dataset=rows, eval_dataset=rows,
    )  # fmt: skip
    assert trainer.train().training_loss > 0
    assert not torch.equal(model.model.initial_memory, before)
    predictions = trainer.predict(rows).predictions
    assert predictions.shape == ((8, 3) if labels else (8, len(rows[0]["input_ids"]), 3))
    trainer.save_model(tmp_path / "tuned")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    tuned = load(auto, tmp_path / "tuned")
    assert torch.equal(tuned.classifier.weight, model.classifier.weight)
