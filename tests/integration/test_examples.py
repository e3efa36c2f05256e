"""The recipes in examples/ are what a newcomer starts from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from megatron_dna.config import load_config
from megatron_dna.training.metrics import read_records
from megatron_dna.validation import validate
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.integration.commands import ROOT

# The others need GPUs: tests/dist/test_planning.py builds them in worlds that are not there.
RECIPES = sorted(path.name for path in (ROOT / "examples").glob("tiny*.yaml"))


def _train(recipe: Path, overrides: list[str]) -> None:
    from megatron_dna.training.trainer import Trainer

    trainer = Trainer(load_config(recipe, overrides))
    trainer.train()
    trainer.close()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_takes_two_steps(tmp_path: Path, name: str) -> None:
    """A recipe with an option that no longer exists, or that does not fit, fails here first."""
    recipe = ROOT / "examples" / name
    paths = [option for option in write_data(tmp_path) if option.split("=")[0] in PATHS]
    parallel = load_config(recipe).parallel
    world_size = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    overrides = [
        *paths, f"train.output_dir={tmp_path}/run", "train.train_iters=2", "train.eval_iters=1",
        "train.micro_batch_size=1", "train.global_batch_size=2", "scheduler.lr_warmup_iters=1",
        "logging.log_interval=1", "parallel.platform=cpu",
    ]  # fmt: skip
    validate(load_config(recipe, overrides), world_size)
    run_ranks(_train, world_size, recipe, overrides)
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [record["iteration"] for record in records] == [1, 2]
    assert all(math.isfinite(record["train/loss"]) for record in records)


PATHS = ("data.tokenizer", "data.train", "data.valid")
