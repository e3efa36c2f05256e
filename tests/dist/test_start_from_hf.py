"""A Hugging Face model as the start of a run, at several layouts, with and without memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_dna.checkpoint.folders import find_latest
from megatron_dna.checkpoint.reader import read_weights
from megatron_dna.hf.convert import from_hugging_face
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.small_run import PP, SP, TP
from tests.unit.test_convert_from_hf import write_hf

MEMORY = ["memory.num_mem_tokens=4", "memory.max_n_segments=2", "data.segment_size=24"]


def _start(config_path: str, overrides: list[str]) -> None:
    """The command a lab would give; weights are saved before the first step too."""
    from megatron_dna.checkpoint.saving import save_checkpoint
    from megatron_dna.config import load_config
    from megatron_dna.training.trainer import Trainer

    config = load_config(config_path, overrides)
    trainer = Trainer(config)
    folder = Path(config.train.output_dir) / "start"
    save_checkpoint(folder, trainer.session.model, None, trainer.state, config)
    trainer.train()
    trainer.close()


@pytest.mark.parametrize(
    ("world_size", "layout", "memory"),
    [(2, [TP, SP], []), (4, [TP, PP], MEMORY)],
    ids=["tp2_sp", "tp2_pp2_memory"],
)
def test_training_starts_from_a_converted_model(
    tmp_path: Path, world_size: int, layout: list[str], memory: list[str]
):
    """With config.yaml as it was written and data added, every weight is the Hugging Face one."""
    write_hf(tmp_path / "hf", num_hidden_layers=4)
    converted = from_hugging_face(tmp_path / "hf", tmp_path / "start")
    data = [option for option in write_data(tmp_path) if option.startswith("data.")]
    overrides = [
        *(option for option in data if "tokenizer" not in option), "data.segment_size=24",
        *layout, *memory, "train.train_iters=2", "train.precision=fp32", "parallel.platform=cpu",
        "train.micro_batch_size=2", "train.global_batch_size=4", "train.eval_iters=1",
        "checkpoint.save_interval=0", f"train.output_dir={tmp_path}/run",
    ]  # fmt: skip
    run_ranks(_start, world_size, str(tmp_path / "start" / "config.yaml"), overrides)
    first, last = (find_latest(tmp_path / "run" / name) for name in ("start", "checkpoints"))
    assert first is not None
    assert last is not None
    want, got, trained = (read_weights(path) for path in (converted, first, last))
    assert got.keys() - want.keys() == ({"embedding.initial_memory"} if memory else set())
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
        assert not torch.equal(trained[name][:20], tensor[:20]), name
