"""Adam as Transformer Engine and Apex write it: its step is one number in each parameter group.

`make test-transformer-engine` runs this with Transformer Engine's own.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import megatron.core.optimizer as megatron_optimizer
import pytest
import torch
from megatron.core.optimizer import distrib_optimizer

from megatron_dna.checkpoint.optimizer_state import get_step
from megatron_dna.checkpoint.saving import save_checkpoint
from megatron_dna.checkpoint.sharded import load_checkpoint
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.wrap import whole_parameters
from megatron_dna.training.optimizer import describe_optimizer
from tests.dist.harness import LAYER_SPEC, run_ranks
from tests.dist.small_run import BF16, PLAIN, SmallRun


class FusedAdam(torch.optim.Optimizer):
    """AdamW with `step` in the group, which an empty group does not count.

    Source: `fused_adam.py` of Transformer Engine 2.12; differs: plain torch, no options.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float, betas: Any, eps: float,
                 adam_w_mode: bool, capturable: bool = False) -> None:  # fmt: skip
        assert adam_w_mode
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas,
                                  "eps": eps, "bias_correction": True})  # fmt: skip

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            (beta1, beta2), step = group["betas"], group["step"]
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state |= {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                state["exp_avg"].lerp_(weight.grad, 1 - beta1)
                state["exp_avg_sq"].lerp_(weight.grad**2, 1 - beta2)
                root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"]
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(group["lr"] * state["exp_avg"] / (1 - beta1**step) / root)


FusedAdam.__module__ = "transformer_engine.pytorch.optimizers.fused_adam"
if LAYER_SPEC == "transformer_engine":
    from transformer_engine.pytorch.optimizers import FusedAdam  # type: ignore[no-redef]


def _start(overrides: list[str]) -> SmallRun:
    """A run as on a machine with Transformer Engine's Adam."""
    setup_platform("cpu")  # puts torch's in its place
    for module in (megatron_optimizer, distrib_optimizer):
        module.Adam = FusedAdam  # type: ignore[attr-defined]
        module.USING_PYTORCH_OPTIMIZER = False  # type: ignore[attr-defined]
    return SmallRun.start(overrides)


def train_and_save(folder: str, overrides: list[str]) -> tuple[list[float], str]:
    run = _start(overrides)
    first = run.train(0, 4)
    with whole_parameters(run.model):
        save_checkpoint(folder, run.model, run.optimizer, TrainState(4, 32), run.config)
    assert get_step(run.optimizer) == 4
    return first + run.train(4, 8), describe_optimizer(run.optimizer)


def resume(folder: str, overrides: list[str]) -> list[float]:
    run = _start([*overrides, "train.seed=99"])
    load_checkpoint(Path(folder) / "iter_0000004", run.model, run.optimizer)
    run.scheduler.step(4)
    losses = run.train(4, 8)
    assert get_step(run.optimizer) == 8
    return losses


def _with_torch(overrides: list[str]) -> list[float]:
    return SmallRun.start(overrides).train(0, 8)


@pytest.mark.parametrize("more", [[], [BF16], [PLAIN, BF16]], ids=["fp32", "bf16", "plain_bf16"])
def test_resume_is_exact_and_bias_correction_goes_on(tmp_path: Path, more: list[str]):
    """A lost step would start the bias correction anew: far too large updates after a resume."""
    ((whole, name),) = run_ranks(train_and_save, 1, str(tmp_path), more)
    (rest,) = run_ranks(resume, 1, str(tmp_path), more)
    assert rest == whole[4:]
    assert name.startswith("FusedAdam of Transformer Engine in ")
    if not more:
        (with_torch,) = run_ranks(_with_torch, 1, more)
        assert whole == pytest.approx(with_torch, rel=1e-4)


def test_step_is_that_of_a_group_with_parameters():
    """Where a rank has nothing of a group, that group stays at the step of the last resume."""
    weight = torch.nn.Parameter(torch.ones(1))
    inner = SimpleNamespace(
        param_groups=[{"params": [], "step": 4}, {"params": [weight], "step": 8}], state={}
    )
    part = SimpleNamespace(optimizer=inner, is_stub_optimizer=False)
    assert get_step(part) == 8  # type: ignore[arg-type]
