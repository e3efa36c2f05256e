"""Steps with a bad loss or gradient: skipped alike on all ranks, recorded, and not without end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_dna.checkpoint.state import GuardState
from megatron_dna.config import load_config
from megatron_dna.parallel.step import run_step
from megatron_dna.training.guard import (
    MEAN_STEPS,
    DivergenceError,
    StepGuard,
    check_divergence,
    note_divergence,
)
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.test_resume import _go_back, _record, _tensors
from tests.dist.whole_runs import start


def _train(overrides: list[str], faults: dict[int, str]) -> tuple[int, str]:
    """A run in which some iterations (from 1) have a bad "loss" or "gradient"; iteration, error."""
    from megatron_dna.training import trainer as module

    trainer = module.Trainer(load_config(None, overrides))

    def run_bad_step(*args, **kwargs):
        fault = faults.get(trainer.state.iteration + 1)
        result = run_step(*args, **kwargs)
        if fault == "loss":
            return replace(result, loss_sum=math.nan)
        if (
            fault == "gradient"
            and trainer.session.place.rank == trainer.session.place.world_size - 1
        ):
            for parameter in trainer.session.model.parameters():
                parameter.main_grad.fill_(torch.inf)
        return result

    module.run_step = run_bad_step
    message = ""
    try:
        trainer.train()
    except DivergenceError as error:
        message = str(error)
    finally:
        module.run_step = run_step
    trainer.close()
    return trainer.state.iteration, message


def _options(folder: Path) -> list[str]:
    return [
        *write_data(folder), f"train.output_dir={folder}/run", "train.train_iters=12",
        "train.eval_interval=0", "checkpoint.save_interval=3", "logging.log_interval=2",
    ]  # fmt: skip


OVERLAP = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]


@pytest.mark.parametrize("extra", [[], OVERLAP], ids=["plain", "overlap"])
def test_bad_steps_are_skipped_alike_on_all_ranks_and_after_a_resume(
    tmp_path: Path, extra: list[str]
):
    """If not, NaN gets into the weights, replicas drift apart, or a resumed run goes elsewhere."""
    options, faults = [*_options(tmp_path), *extra], {4: "loss", 5: "gradient", 8: "gradient"}
    run = tmp_path / "run"
    assert run_ranks(_train, 2, options, faults) == [(12, "")] * 2
    tensors, record = _tensors(run), _record(run)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert [line.get("train/skipped_steps", 0) for line in record] == [0, 1, 2, 3, 3, 3]
    assert "train/loss" in record[1]  # of iteration 3 alone
    state = json.loads((run / "checkpoints" / "iter_0000012" / "train_state.json").read_text())
    assert state["guard"] | {"loss_mean": 0} == {
        "loss_mean": 0, "num_losses": 9, "skipped_in_a_row": 0, "skipped": 3
    }  # fmt: skip
    manifest = json.loads((run / "checkpoints" / "iter_0000012" / "manifest.json").read_text())
    assert manifest["optimizer_step"] == 9
    names = sorted(path.name for path in (run / "skipped").iterdir())
    assert names == [f"iteration_000000{number}.json" for number in (4, 5, 8)]
    report = json.loads((run / "skipped" / names[1]).read_text())
    assert (report["iteration"], report["fault"]) == (5, "gradient norm is inf")
    assert [sample["sample"] for sample in report["samples"]] == list(range(32, 40))
    assert all(sample["prefix"] == f"{tmp_path}/train" for sample in report["samples"])
    assert {"document", "start", "length", "origin"} <= report["samples"][0].keys()
    _go_back(run, 6)
    assert run_ranks(_train, 2, options, faults) == [(12, "")] * 2
    assert _record(run) == record
    for name, tensor in _tensors(run).items():
        assert torch.equal(tensor, tensors[name]), name


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path: Path):
    """If not, a run that has diverged burns its hours, and overwrites its good checkpoints."""
    options = [*_options(tmp_path), "train.max_skipped_steps=2"]
    faults = {2: "loss", 3: "loss", 5: "gradient", 6: "loss", 7: "loss"}
    outcomes = run_ranks(_train, 2, options, faults)
    assert outcomes[0] == outcomes[1]
    iteration, message = outcomes[0]
    assert iteration == 6
    assert "loss is nan in iteration 7 (samples 48 to 55)" in message
    assert "train.max_skipped_steps (2)" in message
    run = tmp_path / "run"
    assert (run / "skipped" / "iteration_0000007.json").is_file()
    assert message in (run / "diverged.txt").read_text()
    # Not of iterations 3 and 6: what was skipped there may be the weights' fault.
    assert not list((run / "checkpoints").glob("iter_*"))


def test_torchrun_s_restart_does_not_diverge_again(tmp_path: Path):
    """If not, all GPUs compute the same way to the same end, as often as torchrun is allowed to."""
    check_divergence(tmp_path, is_restart=True)  # nothing has diverged
    note_divergence(tmp_path, "loss is nan in iteration 7")
    for _ in range(2):
        with pytest.raises(DivergenceError, match="loss is nan in iteration 7"):
            check_divergence(tmp_path, is_restart=True)
    check_divergence(tmp_path, is_restart=False)  # somebody wants it
    check_divergence(tmp_path, is_restart=True)


DIVERGE = """\
import math, os, sys
from dataclasses import replace
sys.path.insert(0, os.getcwd())
import pretrain_dna_bert
from megatron_dna.training import trainer

def run_step(*args, __original=trainer.run_step, **kwargs):
    print("a step was taken", file=sys.stderr, flush=True)
    return replace(__original(*args, **kwargs), loss_sum=math.nan)

trainer.run_step = run_step
sys.exit(pretrain_dna_bert.main())
"""


def test_a_whole_run_diverges_once(tmp_path: Path):
    script = tmp_path / "diverge.py"
    script.write_text(DIVERGE)
    options = [*_options(tmp_path), "train.max_skipped_steps=0"]
    launch = ["--max-restarts", "2"]
    with start(options, tmp_path / "log", ranks=1, launch=launch, script=str(script)) as run:
        assert run.wait() == 3, run.log[-3000:]
    assert run.log.count("a step was taken") == 1
    assert "error: loss is nan in iteration 1" in run.log


def test_spikes():
    """If not, one bad batch throws a long run back, or ordinary noise is skipped."""
    config = load_config(None, ["train.loss_spike_factor=1.5", "train.max_skipped_steps=1"])
    guard = StepGuard(config, GuardState())
    for number in range(MEAN_STEPS):
        assert guard.fault_of_loss(1e9) is None  # too little to compare with yet
        guard.accept(4.0 + number % 2)
    assert guard.state.loss_mean == pytest.approx(4.5)
    assert guard.fault_of_loss(6.7) is None
    fault = guard.fault_of_loss(6.8)
    assert fault == "loss 6.8000 is above 1.5 times its running mean 4.5000"
    guard.skip(fault, 51, 0)
    with pytest.raises(DivergenceError, match="iteration 52"):
        guard.skip(fault, 52, 32)
    guard.accept(4.5)
    assert (guard.state.skipped, guard.state.skipped_in_a_row) == (2, 0)
    for _ in range(10 * MEAN_STEPS):
        guard.accept(1.0)
    assert guard.state.loss_mean == pytest.approx(1.0, abs=0.01)  # what was long ago is forgotten
    guard.new_stage()
    assert guard.fault_of_loss(100.0) is None
    assert StepGuard(load_config(), guard.state).fault_of_loss(1e30) is None
