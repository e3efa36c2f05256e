"""Whole runs by their command, on real DNA: saved beside training, broken off, resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from megatron_dna.checkpoint.folders import set_latest
from tests.dist.whole_runs import start
from tests.gpu.saved_runs import different

OPTIONS = [
    "model.num_layers=4",
    "model.hidden_size=256",
    "model.ffn_hidden_size=512",
    "model.num_attention_heads=4",
    "model.global_attn_every_n_layers=2",
    "data.segment_size=496",
    "memory.num_mem_tokens=16",
    "memory.max_n_segments=2",
    "train.train_iters=6",
    "train.micro_batch_size=4",
    "train.global_batch_size=8",
    "train.eval_interval=3",
    "train.eval_iters=1",
    "checkpoint.save_interval=3",
    "checkpoint.keep_last=0",
    "logging.log_interval=1",
    "model.layer_spec=transformer_engine",
    "parallel.platform=cuda",
]
TP = "parallel.tensor_model_parallel_size=2"
LAYOUTS = {
    "one, bf16": (1, []),
    "one, FP8": (1, ["fp8.recipe=tensorwise"]),
    "TP 2 with SP": (2, [TP, "parallel.sequence_parallel=true"]),
    "PP 2": (2, ["parallel.pipeline_model_parallel_size=2"]),
    "DP 2 with overlap": (
        2, ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"],
    ),
}  # fmt: skip


def train(options: list[str], run: Path, log: Path, ranks: int) -> None:
    """From where the run is to its end."""
    # Attention's backward pass otherwise adds in any order.
    with start(
        [*options, f"train.output_dir={run}"], log, ranks, launch=["--standalone"],
        NVTE_ALLOW_NONDETERMINISTIC_ALGO="0",
    ) as started:  # fmt: skip
        assert started.wait() == 0, started.log[-6000:]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_run_is_the_unbroken_one(
    tmp_path: Path, real_data: list[str], needs_recipe, layout: str
):
    """Bit for bit. The save in its middle was written beside the training."""
    ranks, extra = LAYOUTS[layout]
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    if "fp8.recipe=tensorwise" in extra:
        needs_recipe("tensorwise")
    options = [*OPTIONS, *real_data, *extra]
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    train(options, unbroken, tmp_path / "unbroken.log", ranks)
    checkpoints = resumed / "checkpoints"
    shutil.copytree(unbroken / "checkpoints", checkpoints)
    shutil.rmtree(checkpoints / "iter_0000006")
    set_latest(checkpoints / "iter_0000003")
    train(options, resumed, tmp_path / "resumed.log", ranks)
    log = (tmp_path / "resumed.log").read_text()
    assert "iter_0000003: iteration 3" in log
    assert "FusedAdam of Transformer Engine" in log
    assert different(unbroken / "checkpoints", checkpoints) == []
