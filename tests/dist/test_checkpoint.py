"""Checkpoints: exact on the same layout, equal on others, whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_dna.checkpoint.folders import find_latest
from megatron_dna.checkpoint.manifest import CheckpointError
from megatron_dna.checkpoint.metadata import read_shapes
from megatron_dna.checkpoint.optimizer_state import to_save
from megatron_dna.checkpoint.reader import read_weights
from megatron_dna.checkpoint.saving import save_checkpoint
from megatron_dna.checkpoint.sharded import load_checkpoint
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.checkpoint.tensors import model_tensors
from tests.dist.harness import run_ranks
from tests.dist.small_run import BF16, CP, PLAIN, PP, SP, TP, SmallRun


def _weights(run: SmallRun) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.module.named_parameters()}


def _train_and_save(folder: str, overrides: list[str]) -> tuple[list[float], dict]:
    """Five steps, a checkpoint, then what the next five are without an interruption."""
    run = SmallRun.start(overrides)
    run.train(0, 5)
    save_checkpoint(folder, run.model, run.optimizer, TrainState(5, 40), run.config)
    losses = run.train(5, 10)
    weights = _weights(run)
    return losses, weights


def _resume(folder: str, overrides: list[str]) -> tuple[list[float], dict]:
    """The next five steps from the checkpoint, in a model that had other weights before."""
    run = SmallRun.start([*overrides, "train.seed=99"])
    state = load_checkpoint(Path(folder) / "iter_0000005", run.model, run.optimizer)
    assert (state.iteration, state.consumed_samples) == (5, 40)
    run.scheduler.step(state.iteration)
    losses = run.train(5, 10)
    weights = _weights(run)
    return losses, weights


SAME = {
    "one": (1, []),
    "tp2_sp": (2, [TP, SP]),
    "pp2": (2, [PP]),
    # Sizes that leave padding between the optimizer's buckets.
    "pp2_padded": (2, [PP, "model.ffn_hidden_size=50", "model.norm_bias=true"]),
    "tp2_pp2_sp": (4, [TP, PP, SP]),
    "dp2": (2, []),
    "dp2_plain": (2, [PLAIN]),
    "cp2": (2, [CP]),
    "dp2_bf16": (2, [BF16]),
    "tp2_bf16_plain": (2, [TP, BF16, PLAIN]),
}


@pytest.mark.parametrize("layout", SAME)
def test_resume_is_exact_on_the_same_layout(tmp_path: Path, layout: str):
    """A difference in a single bit means that some state was lost or changed on disk."""
    world_size, overrides = SAME[layout]
    want = run_ranks(_train_and_save, world_size, str(tmp_path), overrides)
    got = run_ranks(_resume, world_size, str(tmp_path), overrides)
    for (want_losses, want_weights), (got_losses, got_weights) in zip(want, got, strict=True):
        assert got_losses == want_losses
        for name, weight in want_weights.items():
            assert torch.equal(got_weights[name], weight), name


def _train_on(folder: str, overrides: list[str], start: int, stop: int) -> list[float]:
    """Steps `start` to `stop` from the checkpoint at `start` (none at 0), then a checkpoint."""
    run = SmallRun.start(overrides)
    if start:
        path = find_latest(folder)
        assert path is not None
        assert load_checkpoint(path, run.model, run.optimizer).iteration == start
        run.scheduler.step(start)
    losses = run.train(start, stop)
    save_checkpoint(folder, run.model, run.optimizer, TrainState(stop), run.config)
    return losses


def test_layouts_can_change_during_a_run(tmp_path: Path):
    """A difference means that resharding loses or mixes up weights or optimizer state."""
    want = run_ranks(_train_on, 1, str(tmp_path / "whole"), [], 0, 20)[0]
    got = []
    for number, overrides in enumerate(([TP, SP], [PP], [], [CP], [PLAIN])):
        start = 4 * number
        folder = str(tmp_path / "parts")
        got += run_ranks(_train_on, 2, folder, overrides, start, start + 4)[0]
    assert got == pytest.approx(want, rel=1e-5)


def _copy(source: str, target: str, overrides: list[str]) -> None:
    run = SmallRun.start(overrides)
    state = load_checkpoint(source, run.model, run.optimizer)
    save_checkpoint(target, run.model, run.optimizer, state, run.config)


def _all_tensors(path: Path) -> dict[str, torch.Tensor]:
    tensors = {name: torch.empty(shape) for name, shape in read_shapes(path).items()}
    reader = torch.distributed.checkpoint.FileSystemReader(str(path))
    torch.distributed.checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resharding_keeps_every_bit(tmp_path: Path, precision: str):
    """A difference means that passing through another layout changes the run."""
    option = f"train.precision={precision}"
    run_ranks(_train_on, 1, str(tmp_path), [option], 0, 3)
    want = path = tmp_path / "iter_0000003"
    for number, overrides in enumerate(([TP, SP], [PP], [CP], [TP, PLAIN], [])):
        target = tmp_path / str(number)
        run_ranks(_copy, 2, str(path), str(target), [option, *overrides])
        path = target / "iter_0000003"
    tensors = _all_tensors(path)
    for name, tensor in _all_tensors(want).items():
        assert torch.equal(tensors[name], tensor), name
    assert any("exp_avg_sq" in name for name in tensors)
    assert any("fp32_param" in name for name in tensors) == (precision == "bf16")


def test_precision_can_change_during_a_run(tmp_path: Path):
    """bf16 and back: the fp32 main weights and moments must come through exactly."""
    run_ranks(_train_on, 1, str(tmp_path), [BF16], 0, 3)
    first = tmp_path / "iter_0000003"
    run_ranks(_copy, 1, str(first), str(tmp_path / "fp32"), [])
    run_ranks(_copy, 1, str(tmp_path / "fp32" / first.name), str(tmp_path / "bf16"), [BF16])
    want, got = _all_tensors(first), _all_tensors(tmp_path / "bf16" / first.name)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    assert torch.equal(read_weights(first)[name], want[f"optimizer.state.fp32_param.{name}"])


def _take_weights_alone(folder: str) -> None:
    """Go back to weights that were saved without an optimizer, and save with it."""
    run = SmallRun.start([BF16])
    weights = save_checkpoint(folder, run.model, None, TrainState(1), run.config)
    run.train(0, 2)
    load_checkpoint(weights, run.model, run.optimizer)
    save_checkpoint(folder, run.model, run.optimizer, TrainState(2), run.config)


def test_weights_alone_reach_the_optimizer(tmp_path: Path):
    """If not, the first step in bf16 puts the random weights back that were there before."""
    run_ranks(_take_weights_alone, 1, str(tmp_path))
    want, got = _all_tensors(tmp_path / "iter_0000001"), _all_tensors(tmp_path / "iter_0000002")
    assert not any("optimizer" in name for name in want)
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
        assert torch.equal(got[f"optimizer.state.fp32_param.{name}"], tensor), name


def _start_from_weights(folder: str, overrides: list[str]) -> None:
    """A bf16 run that has trained goes back to fp32 weights, and saves with its optimizer."""
    run = SmallRun.start([BF16, *overrides])
    run.train(0, 2)
    load_checkpoint(Path(folder) / "iter_0000001", run.model, run.optimizer)
    save_checkpoint(folder, run.model, run.optimizer, TrainState(2), run.config)


def _save_weights(folder: str) -> None:
    run = SmallRun.start([])
    save_checkpoint(folder, run.model, None, TrainState(1), run.config)


@pytest.mark.parametrize("layout", [[], [PLAIN], [TP]], ids=["dp2", "dp2_plain", "tp2"])
def test_fp32_weights_reach_the_optimizer_of_a_bf16_run_unrounded(
    tmp_path: Path, layout: list[str]
):
    """If not, a run that starts from a converted model trains on from weights rounded to bf16."""
    run_ranks(_save_weights, 1, str(tmp_path))
    run_ranks(_start_from_weights, 2, str(tmp_path), layout)
    want, got = _all_tensors(tmp_path / "iter_0000001"), _all_tensors(tmp_path / "iter_0000002")
    for name, tensor in want.items():
        assert torch.equal(got[f"optimizer.state.fp32_param.{name}"], tensor), name
        assert torch.equal(got[name], tensor.bfloat16().float()), name
        assert not got[f"optimizer.state.exp_avg.{name}"].any(), name
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in want.values())


def _storages(tensors: list[torch.Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def _save_at_dp4(folder: str, overrides: list[str]) -> None:
    """A save, and where the tensors lie that it is made of."""
    run = SmallRun.start([BF16, "model.num_layers=4", "model.hidden_size=64", *overrides])
    run.train(0, 1)
    (adam,) = (part.optimizer for part in run.optimizer.chained_optimizers)
    kept = [tensor for main, state in adam.state.items() for tensor in (main, *state.values())]
    described = [value.data for value in to_save(run.optimizer, model_tensors(run.model))]
    assert _storages(described) <= _storages(kept), "the state was copied to be described"
    save_checkpoint(folder, run.model, run.optimizer, TrainState(1), run.config)


@pytest.mark.parametrize("layout", [[], [PLAIN], [CP]], ids=["dp4", "dp4_plain", "cp2_dp2"])
def test_every_rank_writes_its_share(tmp_path: Path, layout: list[str]):
    """If not, one rank writes (and holds in host memory) what all together should."""
    run_ranks(_save_at_dp4, 4, str(tmp_path), layout)
    files = (tmp_path / "iter_0000001").glob("__*.distcp")
    sizes = {path.name: path.stat().st_size for path in files}
    assert len(sizes) == 4
    assert max(sizes.values()) < 1.3 * sum(sizes.values()) / 4, sizes


def _load_fails(folder: str, overrides: list[str]) -> str:
    run = SmallRun.start(overrides)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder, run.model, run.optimizer)
    return str(error.value)


def test_a_missing_file_is_named_on_every_rank(tmp_path: Path):
    """If one rank alone notices, the others hang; if none does, weights are garbage."""
    run_ranks(_train_on, 2, str(tmp_path), [TP], 0, 1)
    folder = tmp_path / "iter_0000001"
    (folder / "__1_0.distcp").rename(tmp_path / "kept")
    for message in run_ranks(_load_fails, 2, str(folder), [TP]):
        assert "__1_0.distcp is missing" in message
    content = bytearray((tmp_path / "kept").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "__1_0.distcp").write_bytes(content)
    for message in run_ranks(_load_fails, 2, str(folder), [TP]):
        assert "__1_0.distcp is not what was written" in message
    (folder / "__1_0.distcp").unlink()
    (tmp_path / "kept").rename(folder / "__1_0.distcp")
    (message,) = run_ranks(_load_fails, 1, str(folder), ["model.ffn_hidden_size=64"])
    assert "linear_fc1.weight has shape" in message
    (message,) = run_ranks(_load_fails, 1, str(folder), ["model.num_layers=3"])
    assert "has no tensor decoder.layers.2" in message


def _save_fails(folder: str) -> str:
    run = SmallRun.start([])
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(folder, run.model, run.optimizer, TrainState(1), run.config)
    return str(error.value)


def test_a_folder_that_cannot_be_written_is_named_on_every_rank(tmp_path: Path):
    """If one rank alone notices, the others hang."""
    (tmp_path / "file").write_text("in the way")
    for message in run_ranks(_save_fails, 2, str(tmp_path / "file")):
        assert str(tmp_path / "file") in message


OTHERS = {
    "dp4": [],
    "pp4": ["parallel.pipeline_model_parallel_size=4"],
    "tp4": ["parallel.tensor_model_parallel_size=4", SP],
    "cp2_tp2": [CP, TP, SP],
}


def test_from_tp2_pp2_to_dp4_pp4_and_tp4(tmp_path: Path):
    """A difference means that a run cannot move to another cut of the cluster."""
    layers = "model.num_layers=4"
    (want, _), *_ = run_ranks(_train_and_save, 4, str(tmp_path), [layers, TP, PP])
    assert len(want) == 5
    for overrides in OTHERS.values():
        for losses, _ in run_ranks(_resume, 4, str(tmp_path), [layers, *overrides]):
            assert losses == pytest.approx(want, rel=1e-5)
