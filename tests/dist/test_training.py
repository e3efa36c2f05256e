"""A step is the same step however it is split, and a run that breaks says so and stops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from megatron_dna.config import load_config
from megatron_dna.data.loader import build_loader
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.training.baselines import compute_baselines
from megatron_dna.training.metrics import read_records
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.small_run import CP, PLAIN, PP, SP, TP, SmallRun


def _norms(overrides: list[str]) -> tuple[list[float], list[float]]:
    run = SmallRun.start([*overrides, "optimizer.clip_grad=0.5"])
    losses, norms = [], []
    for step in range(3):
        losses += run.train(step, step + 1)
        norms.append(float(run.last_grad_norm))
    return losses, norms


OVERLAP = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]
LAYOUTS = {
    "tp2": (2, [TP]),
    "tp2_sp_plain": (2, [TP, SP, PLAIN]),
    "pp2": (2, [PP]),
    "dp2_plain": (2, [PLAIN]),
    "cp2": (2, [CP]),
    "dp2_overlap": (2, OVERLAP),
    "tp2_pp2_sp": (4, [TP, PP, SP]),
}


@pytest.fixture(scope="module")
def one_process() -> tuple[list[float], list[float]]:
    return run_ranks(_norms, 1, [])[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_norm_does_not_depend_on_the_layout(one_process, layout: str):
    """A difference means that clipping, and so training, depends on how the model is split."""
    world_size, overrides = LAYOUTS[layout]
    for losses, norms in run_ranks(_norms, world_size, overrides):
        assert losses == pytest.approx(one_process[0], rel=1e-5)
        assert norms == pytest.approx(one_process[1], rel=1e-5)


def _train(overrides: list[str]) -> None:
    from megatron_dna.training.trainer import Trainer

    trainer = Trainer(load_config(None, overrides))
    trainer.train()
    trainer.close()


def test_a_run_learns_what_context_tells(tmp_path: Path):
    """If the held-out loss stays at the unigram's, something between data and update is cut."""
    options = write_data(tmp_path)
    run = tmp_path / "run"
    overrides = ["train.train_iters=150", "train.eval_interval=0", "optimizer.lr=0.005"]
    run_ranks(_train, 1, [*options, *overrides, f"train.output_dir={run}"])
    last = read_records(run / "metrics.jsonl")[-1]
    tokenizer = DnaTokenizer.from_file(tmp_path / "tokenizer.json")
    prefixes = [str(tmp_path / "train")], [str(tmp_path / "valid")]
    baselines = compute_baselines(*prefixes, tokenizer)
    assert last["iteration"] == 150
    assert last["valid/loss"] < baselines.unigram - 0.3
    assert last["valid/accuracy"] > 2 / 16
    # Tokens of the chain are all pairs of bases.
    assert last["valid/bits_per_base"] == pytest.approx(last["valid/loss"] / math.log(2) / 2)
    train = ("loss", "grad_norm", "lr", "tokens_per_second", "bases_per_second")
    assert {f"train/{name}" for name in train} <= last.keys()
    for name in ("config.yaml", "tensorboard", "checkpoints/iter_0000150", "checkpoints/latest"):
        assert (run / name).exists()


def _evaluate_twice(overrides: list[str]) -> tuple[dict[str, float], dict[str, float], float]:
    """Two evaluations, and the same loss from the logits of all samples one by one."""
    from megatron_dna.training.evaluation import evaluate
    from megatron_dna.training.session import open_session

    session = open_session(load_config(None, overrides))
    first, second = evaluate(session), evaluate(session)
    total, count = 0.0, 0.0
    batches = build_loader(session.config, "valid", 0, 0, 1)
    session.model.eval()
    for _ in range(4 * session.config.train.eval_iters):  # micro-batches of a global batch of 8
        batch = next(batches)
        mask = None if batch.attention_mask is None else batch.attention_mask[0]
        with torch.no_grad():
            output = session.model(batch.input_ids[0], mask, batch.masked_positions[0])
        log_probability = output.logits.double().log_softmax(-1)
        chosen = log_probability.gather(-1, batch.labels[0].unsqueeze(-1)).squeeze(-1)
        total -= (chosen * batch.loss_mask[0]).sum().item()
        count += batch.loss_mask[0].sum().item()
    return first, second, total / count


def test_evaluation_is_repeatable_and_token_weighted(tmp_path: Path):
    """If not, two models, or two moments of a run, are not compared on the same footing."""
    options = [*write_data(tmp_path), "train.eval_iters=10"]
    ((first, second, loss),) = run_ranks(_evaluate_twice, 1, options)
    assert first == second
    assert first["valid/loss"] == pytest.approx(loss, rel=1e-5)
    for extra in ([], [CP]):
        for got, _, _ in run_ranks(_evaluate_only, 2, [*options, *extra]):
            assert got == pytest.approx(first, rel=1e-5)


def _evaluate_only(overrides: list[str]) -> tuple[dict[str, float], None, None]:
    from megatron_dna.training.evaluation import evaluate
    from megatron_dna.training.session import open_session

    return evaluate(open_session(load_config(None, overrides))), None, None


def _diverges(overrides: list[str]) -> str:
    from megatron_dna.training.guard import DivergenceError
    from megatron_dna.training.trainer import Trainer

    trainer = Trainer(load_config(None, overrides))
    with pytest.raises(DivergenceError) as error:
        trainer.train()
    trainer.close()
    return str(error.value)


def test_a_loss_that_is_not_finite_stops_all_ranks(tmp_path: Path):
    """If not, a run burns its hours on NaN, or one rank stops and the others hang."""
    run = tmp_path / "run"
    options = [
        *write_data(tmp_path), f"train.output_dir={run}", "train.train_iters=9", PP,
        "optimizer.lr=1e30", "optimizer.clip_grad=0", "checkpoint.save_interval=1",
        "scheduler.lr_warmup_iters=0", "scheduler.lr_decay_style=constant",
        "train.max_skipped_steps=0",
    ]  # fmt: skip
    messages = run_ranks(_diverges, 2, options)
    assert len(set(messages)) == 1
    assert "in iteration 2 (samples 8 to 15)" in messages[0]
    assert [path.name for path in (run / "checkpoints").glob("iter_*")] == ["iter_0000001"]


def _refuses(overrides: list[str]) -> str:
    from megatron_dna.training.trainer import Trainer

    with pytest.raises(ValueError) as error:  # noqa: PT011
        Trainer(load_config(None, overrides))
    return str(error.value)


def test_another_architecture_or_tokenizer_cannot_resume(tmp_path: Path):
    """If not, weights are read as what they are not."""
    options = [
        *write_data(tmp_path), f"train.output_dir={tmp_path / 'run'}", "train.train_iters=3"
    ]  # fmt: skip
    run_ranks(_train, 1, options)
    (message,) = run_ranks(_refuses, 1, [*options, "model.norm_bias=true"])
    assert "model.norm_bias (True) differs" in message
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    (message,) = run_ranks(_refuses, 1, options)
    assert "data.tokenizer" in message
    other = [f"train.output_dir={tmp_path / 'other'}", f"checkpoint.load={tmp_path / 'run'}"]
    (message,) = run_ranks(_refuses, 1, [*options, *other])
    assert "data.tokenizer" in message
