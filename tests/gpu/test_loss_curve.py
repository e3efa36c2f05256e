"""FP8 trains as BF16 does, on real DNA."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from megatron_dna.config import load_config
from megatron_dna.training.metrics import read_records

RECIPES = ("tensorwise", "blockwise", "delayed")
STEPS, INTERVAL = 200, 20
CURVE = [
    "model.num_layers=4",
    "model.hidden_size=256",
    "model.ffn_hidden_size=512",
    "model.num_attention_heads=4",
    "model.global_attn_every_n_layers=2",
    "model.local_attention=128",
    "model.layer_spec=transformer_engine",
    "data.segment_size=512",
    "train.micro_batch_size=16",
    "train.global_batch_size=16",
    "train.eval_interval=0",
    "train.eval_iters=4",
    "optimizer.lr=0.001",
    "scheduler.lr_warmup_iters=20",
    "checkpoint.save_interval=0",
    "parallel.platform=cuda",
    f"train.train_iters={STEPS}",
    f"logging.log_interval={INTERVAL}",
]


@pytest.fixture(scope="module")
def curves(real_data: list[str], tmp_path_factory: pytest.TempPathFactory):
    """Trains on real DNA and remembers the curves: (recipe, more options) -> mean losses."""
    known: dict[tuple[str, ...], list[float]] = {}

    def train(*options: str) -> list[float]:
        if options not in known:
            folder = tmp_path_factory.mktemp("run")
            known[options] = loss_curve([*CURVE, *real_data, *options], folder)
        return known[options]

    return train


def loss_curve(options: list[str], folder: Path) -> list[float]:
    """Train a run to its end; its losses, each the mean of an interval."""
    from megatron_dna.training.trainer import Trainer

    trainer = Trainer(load_config(None, [*options, f"train.output_dir={folder}"]))
    trainer.train()
    trainer.close()
    records = read_records(folder / "metrics.jsonl")
    return [record["train/loss"] for record in records if "train/loss" in record]


@pytest.mark.parametrize("recipe", RECIPES)
def test_loss_curve_is_that_of_bf16(needs_recipe, curves, recipe: str):
    """Within 1% over 200 steps of real DNA, in every interval of 20; and both do learn."""
    needs_recipe(recipe)
    want, got = curves("fp8.recipe=none"), curves(f"fp8.recipe={recipe}")
    assert len(want) == len(got) == STEPS // INTERVAL
    assert want[-1] < want[0] - 0.2, "nothing was learned: the curves say nothing"
    for step, (ours, other) in enumerate(zip(got, want, strict=True)):
        assert math.isclose(ours, other, rel_tol=0.01), f"interval {step}: {ours} and {other}"
