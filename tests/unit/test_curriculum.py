"""When a stage ends, how many segments a batch has, and how much noise there is."""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import Any

import pytest
import torch

from megatron_dna.checkpoint.state import CurriculumState
from megatron_dna.config import Config, StageConfig, UntilConfig, load_config, to_yaml
from megatron_dna.model.memory import memory_noise
from megatron_dna.parallel.step import StepResult
from megatron_dna.training.curriculum import Curriculum, draw_num_segments, has_converged
from tests.unit.data_files import philox


def make(stages: list[dict[str, Any]], *more: str) -> Config:
    return load_config(
        None,
        ["memory.num_mem_tokens=2", "memory.max_n_segments=7",
         f"memory.curriculum={json.dumps(stages)}", *more],
    )  # fmt: skip


def result(loss: float = 1.0, num_masked: int = 10, num_correct: int = 0) -> StepResult:
    return StepResult(loss * num_masked, num_masked, num_correct, 0, 0, 0)


def test_no_curriculum_is_one_stage_of_all_segments():
    config = load_config(None, ["memory.num_mem_tokens=2", "memory.max_n_segments=7"])
    curriculum = Curriculum(config, CurriculumState())
    assert [curriculum.num_segments(i) for i in range(5)] == [7] * 5
    assert not any(curriculum.after_step(result(), 7) for _ in range(50))
    assert curriculum.lr == config.optimizer.lr
    assert curriculum.noise(3) is None


def test_a_plain_run_records_no_stage():
    assert Curriculum(load_config(None, []), CurriculumState()).record() == {}


def test_stages_of_fixed_length(caplog):
    stages = [
        {"n_segments": 1, "train_iters": 2},
        {"n_segments": 3, "train_iters": 3, "lr": 0.1},
        {"n_segments": 7, "train_iters": 1},
    ]
    curriculum = Curriculum(make(stages, "optimizer.lr=0.2"), CurriculumState())
    seen = []
    with caplog.at_level(logging.INFO):
        for iteration in range(8):
            n = curriculum.num_segments(iteration)
            seen.append((n, curriculum.lr, curriculum.after_step(result(), n)))
    assert seen == [
        (1, 0.2, False), (1, 0.2, True),
        (3, 0.1, False), (3, 0.1, False), (3, 0.1, True),
        (7, 0.2, False), (7, 0.2, False), (7, 0.2, False),
    ]  # fmt: skip
    assert curriculum.record() == {"train/curriculum_stage": 2, "train/n_segments": 7}
    assert "stage 0 ended after 2 iterations" in caplog.text
    assert "stage 1 of 2 begins: 3 segments, peak lr 1.000e-01" in caplog.text


@pytest.mark.parametrize(
    ("metric", "options", "values", "ends_at"),
    [
        # means over two: -, 2.5, 1.75, 1.0
        ("train/loss", {"threshold": 1.0, "window": 2}, [3, 2, 1.5, 0.5, 9], 3),
        ("train/loss", {"threshold": 2.5, "window": 2}, [3, 2, 1], 1),
        ("train/loss", {"threshold": 0.1, "window": 1}, [3, 2, 1], None),
        ("train/loss", {"threshold": 9.0, "window": 4}, [3, 2, 1], None),
        ("train/accuracy", {"threshold": 0.5, "window": 2}, [0.2, 0.6, 0.4, 0.8], 2),
        # a plateau: values that are no new best in a row
        ("train/loss", {"patience": 2, "window": 1}, [3, 2, 2, 1, 1.5, 1.0, 0.5], 5),
        ("train/accuracy", {"patience": 2, "window": 1}, [0.1, 0.3, 0.2, 0.25, 0.9], 3),
        # of the mean, not of the values: 2.5, 2.0, 2.0, 2.5
        ("train/loss", {"patience": 2, "window": 2}, [3, 2, 2, 2, 3], 4),
        # whichever comes first
        ("train/loss", {"patience": 1, "threshold": 0.5, "window": 1}, [3, 2, 0.4, 9], 2),
        ("train/loss", {"patience": 1, "threshold": 0.5, "window": 1}, [3, 4, 0.4], 1),
    ],
)
def test_convergence(metric: str, options: dict[str, Any], values: list[float], ends_at):
    until, state = UntilConfig(metric=metric, **options), CurriculumState()
    ends = [has_converged(until, state, 100 * value, 100) for value in values]
    assert (ends.index(True) if True in ends else None) == ends_at
    assert len(state.window) <= until.window


def test_the_mean_is_over_tokens_not_over_batches():
    """Never a mean of means: 30 losses of 1 and 10 of 3 are 1.5."""
    until, state = UntilConfig(threshold=1.5, window=2), CurriculumState()
    assert not has_converged(until, state, 30.0, 30)
    assert has_converged(until, state, 30.0, 10)


def test_only_batches_of_all_segments_tell_of_convergence():
    """Short windows are easy: a stage must not end on them."""
    until = {"metric": "train/accuracy", "threshold": 0.9, "window": 2}
    config = make([{"n_segments": 3, "until": until, "vary_n_segments": 0.5}, {"n_segments": 7}])
    curriculum = Curriculum(config, CurriculumState())
    assert curriculum.needs_accuracy
    assert not any(curriculum.after_step(result(num_correct=10), 2) for _ in range(9))
    assert not curriculum.after_step(result(num_correct=10), 3)
    assert not curriculum.after_evaluation({"valid/accuracy": 1.0})
    assert curriculum.after_step(result(num_correct=9), 3)
    assert curriculum.state == CurriculumState(stage=1, noise_iterations=11)
    assert not curriculum.needs_accuracy


def test_evaluations_end_a_stage():
    until = {"metric": "valid/loss", "threshold": 1.0, "window": 2}
    curriculum = Curriculum(make([{"n_segments": 3, "until": until}, {}]), CurriculumState())
    assert not any(curriculum.after_step(result(loss=0.1), 3) for _ in range(9))
    ends = [curriculum.after_evaluation({"valid/loss": v}) for v in (1.2, 0.9, 1.0)]
    assert ends == [False, False, True]


def test_a_state_saved_at_any_step_goes_on_alike():
    until = {"metric": "train/loss", "patience": 2, "window": 3}
    config = make([{"until": until}, {"n_segments": 2, "train_iters": 4}, {"n_segments": 7}])
    losses = [3, 2, 2.5, 1, 1, 2, 3, 4, 1, 2, 3, 4]

    def run(state: CurriculumState, values: list[float]) -> CurriculumState:
        curriculum = Curriculum(config, state)
        for value in values:
            curriculum.after_step(result(loss=value), curriculum.stage.n_segments)
        return state

    whole = run(CurriculumState(), losses)
    assert whole.stage == 2
    for cut in range(len(losses)):
        stored = json.loads(json.dumps(vars(run(CurriculumState(), losses[:cut]))))
        assert run(CurriculumState(**stored), losses[cut:]) == whole


def test_a_shorter_curriculum_goes_on_in_its_last_stage(caplog):
    curriculum = Curriculum(make([{"train_iters": 1}, {"n_segments": 2}]), CurriculumState(stage=4))
    assert curriculum.state.stage == 1
    assert "2 stages now" in caplog.text


def test_number_of_segments_follows_philox():
    """A pure function of (seed, iteration) that no rank, layout or resume can change."""
    stage = StageConfig(n_segments=5, vary_n_segments=0.5)
    for seed, iteration in ((0, 0), (1234, 7), (2**63, 10**9), (-1, 3)):
        coin, number, *_ = philox([1, iteration, 0, 0], [seed % 2**64, 4])
        expected = 1 + (number * 5 >> 64) if coin < 2**63 else 5
        assert draw_num_segments(stage, seed, iteration) == expected


def test_number_of_segments_is_drawn_for_the_share_of_batches():
    stage = StageConfig(n_segments=4, vary_n_segments=0.5)
    counts = Counter(draw_num_segments(stage, 1, i) for i in range(8000))
    assert set(counts) == {1, 2, 3, 4}
    for n in (1, 2, 3):
        assert counts[n] == pytest.approx(1000, abs=120)  # 4 standard deviations
    always = StageConfig(n_segments=4, vary_n_segments=1.0)
    assert Counter(draw_num_segments(always, 1, i) for i in range(8000))[4] < 2200
    never = StageConfig(n_segments=4)
    assert {draw_num_segments(never, 1, i) for i in range(100)} == {4}


def test_noise_ramps_from_its_stage_on():
    stages = [{"train_iters": 2}, {"n_segments": 2, "train_iters": 3}, {"n_segments": 7}]
    options = ["memory.noise_std=0.5", "memory.noise_start=1", "memory.noise_ramp_iters=4"]
    curriculum = Curriculum(make(stages, *options), CurriculumState())
    levels = []
    for _ in range(8):
        levels.append(curriculum.noise_std())
        curriculum.after_step(result(), curriculum.stage.n_segments)
    assert levels == [0, 0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    at_once = Curriculum(make(stages, *options[:1], "memory.noise_ramp_iters=0"), CurriculumState())
    assert at_once.noise_std() == 0.5


def test_noise_depends_on_sample_and_place_only():
    """Or other layouts, resumes and cuts would train on other noise."""
    whole = memory_noise(0.5, 1, 7, torch.tensor([3, 4, 5]), 2, 4, 64)
    assert whole.shape == (4, 3, 64)
    assert whole.dtype == torch.float32
    part = memory_noise(0.5, 1, 7, torch.tensor([4]), 2, 4, 64)
    assert torch.equal(part[:, 0], whole[:, 1])
    for seed, iteration, sample, segment in (
        (2, 7, 4, 2),
        (1, 8, 4, 2),
        (1, 7, 5, 2),
        (1, 7, 4, 3),
    ):
        other = memory_noise(0.5, seed, iteration, torch.tensor([sample]), segment, 4, 64)
        assert (other - part).abs().max() > 0.1
    many = memory_noise(0.5, 1, 7, torch.arange(200), 0, 4, 64)
    assert many.std().item() == pytest.approx(0.5, rel=0.02)
    assert many.mean().item() == pytest.approx(0, abs=0.01)


def test_stages_survive_yaml(tmp_path):
    until = {"metric": "valid/accuracy", "patience": 3}
    config = make([{"until": until, "lr": 0.1}, {"n_segments": 7, "vary_n_segments": 0.5}])
    assert config.memory.curriculum[0].until == UntilConfig("valid/accuracy", None, 3)
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "c.yaml") == config
