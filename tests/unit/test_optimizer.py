"""The learning rate by iteration, against the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_dna.config import load_config
from megatron_dna.training.optimizer import build_scheduler, learning_rate


class _Optimizer:
    """What a scheduler sees of an optimizer."""

    def __init__(self) -> None:
        self.param_groups = [{"wd_mult": 1.0}, {"wd_mult": 0.0}]


def _rates(*options: str) -> list[float]:
    """The rate of each of the steps 0 to 100."""
    config = load_config(None, ["optimizer.lr=1.0", "train.train_iters=100", *options])
    optimizer = _Optimizer()
    scheduler = build_scheduler(config, optimizer)
    rates = []
    for _ in range(101):
        rates.append(learning_rate(optimizer))
        scheduler.step(1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    return rates


def test_constant():
    assert _rates("scheduler.lr_decay_style=constant") == [1.0] * 101


def test_linear_with_warm_up():
    rates = _rates(
        "scheduler.lr_decay_style=linear", "scheduler.lr_warmup_iters=20", "scheduler.min_lr=0.1"
    )
    want = [i / 20 for i in range(20)] + [1 - 0.9 * i / 80 for i in range(81)]
    assert rates == pytest.approx(want)


def test_cosine():
    rates = _rates("scheduler.lr_decay_style=cosine", "scheduler.lr_decay_iters=50")
    want = [0.5 * (1 + math.cos(math.pi * i / 50)) for i in range(51)] + [0.0] * 50
    assert rates == pytest.approx(want)


def test_wsd_decays_over_the_last_tenth():
    rates = _rates("scheduler.lr_decay_style=WSD", "scheduler.lr_warmup_iters=10")
    want = [i / 10 for i in range(10)] + [1.0] * 81 + [1 - i / 10 for i in range(1, 11)]
    assert rates == pytest.approx(want)


@pytest.mark.parametrize(("asked", "length"), [(25, 25), (500, 90)])
def test_wsd_decay_can_be_chosen_up_to_the_warm_up(asked: int, length: int):
    rates = _rates(
        "scheduler.lr_decay_style=WSD",
        "scheduler.lr_warmup_iters=10",
        f"scheduler.lr_wsd_decay_iters={asked}",
    )
    assert rates[100 - length] == 1.0
    assert rates[100 - length // 2] == pytest.approx(0.5, abs=0.03)
    assert rates[100] == pytest.approx(0.0)


def test_resumed_schedule_goes_on_where_it_was():
    """One jump of n steps, as resuming makes, equals n single steps."""
    config = load_config(None, ["train.train_iters=30", "scheduler.lr_warmup_iters=5"])
    stepped, jumped = _Optimizer(), _Optimizer()
    single, resumed = build_scheduler(config, stepped), build_scheduler(config, jumped)
    for _ in range(17):
        single.step(1)
    resumed.step(17)
    assert stepped.param_groups == jumped.param_groups
    assert torch.tensor(learning_rate(stepped)).isfinite()
