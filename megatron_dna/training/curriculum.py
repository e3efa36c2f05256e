"""From few segments to many: which stage a run is in, and when it moves on.

A stage ends after a number of iterations, or when its metric has converged over a window of
batches. All decisions follow from the step's sums over the whole world, from the options and from
random numbers that are a pure function of (data.seed, iteration): so every rank takes the same
ones, at every layout, and a run that resumes goes on as if it had never stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from megatron_dna.checkpoint.state import CurriculumState
from megatron_dna.config import Config, StageConfig, UntilConfig
from megatron_dna.data.loader import Batch
from megatron_dna.model.memory import memory_noise
from megatron_dna.parallel.step import MemoryNoise, StepResult

logger = logging.getLogger(__name__)

_SEGMENTS_PURPOSE = 4
"""Second word of the Philox key; see csrc/philox.hpp."""


def draw_num_segments(stage: StageConfig, seed: int, iteration: int) -> int:
    """Segments of the windows of one step: n_segments, or for a share of the steps 1..n_segments.

    Args:
        stage: the stage that the step is in.
        seed: data.seed.
        iteration: steps taken before.
    """
    key = np.array([seed % 2**64, _SEGMENTS_PURPOSE], np.uint64)
    counter = np.array([0, iteration, 0, 0], np.uint64)
    coin, number = (int(word) for word in np.random.Philox(counter=counter, key=key).random_raw(2))
    if coin >= stage.vary_n_segments * 2**64:
        return stage.n_segments
    return 1 + (number * stage.n_segments >> 64)


def has_converged(until: UntilConfig, state: CurriculumState, total: float, count: float) -> bool:
    """Take in one value of the metric; whether the stage ends with it.

    Args:
        until: what ends the stage.
        state: its window, best mean and number of values since the best are moved on.
        total: sum of the metric over what it is a mean of (masked tokens of a step).
        count: of these.
    """
    state.window = [*state.window, [total, count]][-until.window :]
    if len(state.window) < until.window:
        return False
    mean = window_mean(state)
    sign = -1.0 if until.metric.endswith("/loss") else 1.0  # losses fall
    if state.best is None or sign * mean > sign * state.best:
        state.best, state.since_best = mean, 0
    else:
        state.since_best += 1
    is_reached = until.threshold is not None and sign * mean >= sign * until.threshold
    return is_reached or (until.patience is not None and state.since_best >= until.patience)


def window_mean(state: CurriculumState) -> float:
    """Mean of the metric over all that the window's values are means of."""
    totals, counts = zip(*state.window, strict=True)
    return sum(totals) / max(1.0, sum(counts))


class Curriculum:
    """A run's way through the stages; moves its state on."""

    def __init__(self, config: Config, state: CurriculumState) -> None:
        """Go on from `state`, which is changed in place."""
        self.config = config
        self.state = state
        whole = StageConfig(n_segments=config.memory.max_n_segments)
        self.stages = config.memory.curriculum or [whole]
        if state.stage >= len(self.stages):
            logger.warning(
                "memory.curriculum has %d stages now: going on in the last one", len(self.stages)
            )
            self.state.stage = len(self.stages) - 1

    @property
    def stage(self) -> StageConfig:
        """The present stage."""
        return self.stages[self.state.stage]

    @property
    def lr(self) -> float:
        """Peak learning rate of the present stage."""
        return self.config.optimizer.lr if self.stage.lr is None else self.stage.lr

    @property
    def needs_accuracy(self) -> bool:
        """Whether steps must count correct predictions."""
        return self.stage.until is not None and self.stage.until.metric == "train/accuracy"

    def num_segments(self, iteration: int) -> int:
        """Segments of the windows of the step after `iteration` steps."""
        return draw_num_segments(self.stage, self.config.data.seed, iteration)

    def noise_std(self) -> float:
        """Standard deviation of the memory noise in the coming step."""
        memory = self.config.memory
        if self.state.stage < memory.noise_start:
            return 0.0
        ramp = max(1, memory.noise_ramp_iters)
        return memory.noise_std * min(1.0, (self.state.noise_iterations + 1) / ramp)

    def noise(self, iteration: int) -> MemoryNoise | None:
        """What makes the noise of the step after `iteration` steps; None where there is none."""
        std, config = self.noise_std(), self.config
        if std == 0:
            return None

        def make(batch: Batch, segment: int) -> Tensor:
            return memory_noise(
                std,
                config.train.seed,
                iteration,
                batch.samples,
                batch.first_segment + segment,
                config.memory.num_mem_tokens,
                config.model.hidden_size,
            )

        return make

    def after_step(self, result: StepResult | None, num_segments: int) -> bool:
        """Take in a training step on windows of `num_segments`; whether a new stage begins.

        Only steps on windows of all n_segments tell whether the stage has converged, and skipped
        ones (None) do not.
        """
        state, stage = self.state, self.stage
        state.iterations += 1
        if state.stage >= self.config.memory.noise_start:
            state.noise_iterations += 1
        if stage.train_iters is not None and state.iterations >= stage.train_iters:
            return self._advance("its length")
        if result is None or stage.until is None or num_segments != stage.n_segments:
            return False
        totals = {"train/loss": result.loss_sum, "train/accuracy": float(result.num_correct)}
        if stage.until.metric not in totals:
            return False
        return self._take_in(stage.until, totals[stage.until.metric], float(result.num_masked))

    def after_evaluation(self, scores: Mapping[str, float]) -> bool:
        """Take in `valid/loss` and `valid/accuracy`; whether a new stage begins."""
        until = self.stage.until
        if until is None or until.metric not in scores:
            return False
        return self._take_in(until, scores[until.metric], 1.0)

    def record(self) -> dict[str, float]:
        """The present stage as metrics; nothing in a run without segments."""
        if self.config.memory.max_n_segments == 1:
            return {}
        return {
            "train/curriculum_stage": self.state.stage,
            "train/n_segments": self.stage.n_segments,
        }

    def _take_in(self, until: UntilConfig, total: float, count: float) -> bool:
        if not has_converged(until, self.state, total, count):
            return False
        mean = window_mean(self.state)
        return self._advance(f"{until.metric} {mean:.4f} over {until.window}")

    def _advance(self, reason: str) -> bool:
        """Begin the next stage, if there is one."""
        old = self.state
        if old.stage == len(self.stages) - 1:
            return False
        old_stage, old_iterations = old.stage, old.iterations
        old.stage += 1
        old.iterations, old.window, old.best, old.since_best = 0, [], None, 0
        logger.info(
            "curriculum: stage %d ended after %d iterations (%s); stage %d of %d begins: "
            "%d segments, peak lr %.3e, %.0f%% of the batches varied",
            old_stage, old_iterations, reason, old.stage, len(self.stages) - 1,
            self.stage.n_segments, self.lr, 100 * self.stage.vary_n_segments,
        )  # fmt: skip
        return True
