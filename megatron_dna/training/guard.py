"""Steps that are better not taken: a loss or gradient that is not a number, or a sudden spike.

Such a step is skipped: its gradients are dropped, its batch counts as read, and the learning rate
moves on. What is decided here follows from sums over the whole world and from the saved state, so
every rank skips the same steps, and a resumed run the same ones again.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_dna.checkpoint.folders import write_text
from megatron_dna.checkpoint.state import GuardState
from megatron_dna.config import Config
from megatron_dna.data.inspect import Dataset
from megatron_dna.data.loader import SampleReader

logger = logging.getLogger(__name__)

MEAN_STEPS = 50
"""About so many steps make the running mean of the loss; spikes are looked for after as many."""


_DIVERGED = "diverged.txt"


class DivergenceError(ArithmeticError):
    """Too many steps in a row had a loss or gradient that was of no use."""


def note_divergence(output_dir: Path, message: str) -> None:
    """Leave word for `check_divergence`. One rank calls this."""
    write_text(output_dir / _DIVERGED, message + "\n")


def check_divergence(output_dir: Path, is_restart: bool) -> None:
    """Refuse to diverge once more where torchrun starts the ranks again. One rank calls this.

    From the same checkpoint they would only come to the same end. Who starts the run by hand, with
    other options or without, has its reasons.

    Raises:
        DivergenceError: the one that the run ended with.
    """
    path = output_dir / _DIVERGED
    if is_restart and path.exists():
        raise DivergenceError(path.read_text().strip())
    path.unlink(missing_ok=True)


class StepGuard:
    """Decides on each step of a run; moves its state on."""

    def __init__(self, config: Config, state: GuardState) -> None:
        """Go on from `state`, which is changed in place."""
        self.config = config
        self.state = state

    def fault_of_loss(self, loss: float) -> str | None:
        """What is wrong with a step's loss; None if nothing is."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        factor, state = self.config.train.loss_spike_factor, self.state
        if factor > 0 and state.num_losses >= MEAN_STEPS and loss > factor * state.loss_mean:
            return (
                f"loss {loss:.4f} is above {factor:g} times its running mean {state.loss_mean:.4f}"
            )
        return None

    def fault_of_gradient(self, norm: float) -> str | None:
        """What is wrong with a step's gradient; None if nothing is."""
        return None if math.isfinite(norm) else f"gradient norm is {norm}"

    def accept(self, loss: float) -> None:
        """The step was taken."""
        state = self.state
        state.num_losses += 1
        state.loss_mean += (loss - state.loss_mean) / min(state.num_losses, MEAN_STEPS)
        state.skipped_in_a_row = 0

    def skip(self, fault: str, iteration: int, first_sample: int) -> None:
        """The step, whose batch begins with `first_sample`, was not taken.

        Raises:
            DivergenceError: it is one too many.
        """
        state, limit = self.state, self.config.train.max_skipped_steps
        state.skipped_in_a_row += 1
        state.skipped += 1
        if state.skipped_in_a_row > limit:
            raise DivergenceError(
                f"{fault} in iteration {iteration} (samples {first_sample} to "
                f"{first_sample + self.config.train.global_batch_size - 1}), and as many as "
                f"train.max_skipped_steps ({limit}) were skipped just before; look at the batches "
                "in skipped/ of the output folder, lower optimizer.lr or raise "
                "scheduler.lr_warmup_iters, then resume from the last checkpoint"
            )
        logger.info(
            "skipped iteration %d: %s (%d in a row, at most %d; %d in all)",
            iteration, fault, state.skipped_in_a_row, limit, state.skipped,
        )  # fmt: skip

    def new_stage(self) -> None:
        """Other windows have other losses: begin the mean anew."""
        self.state.num_losses, self.state.loss_mean = 0, 0.0


def save_batch(
    output_dir: Path, config: Config, iteration: int, first_sample: int, about: dict[str, Any]
) -> Path:
    """Write where a step's batch came from to skipped/iteration_NNNNNNN.json. One rank calls this.

    Args:
        output_dir: of the run.
        config: of the run.
        iteration: the step.
        first_sample: of its global batch.
        about: what is wrong with it.
    """
    path = output_dir / "skipped" / f"iteration_{iteration:07d}.json"
    path.parent.mkdir(exist_ok=True)
    numbers = range(first_sample, first_sample + config.train.global_batch_size)
    samples: list[dict[str, Any]] = [{"sample": number} for number in numbers]
    if config.data.kind == "genome":
        places = SampleReader(config, "train").places(numbers)
        datasets = {prefix: _open(prefix, config) for prefix in {place.prefix for place in places}}
        for sample, place in zip(samples, places, strict=True):
            dataset = datasets[place.prefix]
            window = dataset and dataset.decode(place.document, place.start, place.length)
            origin = window.origin if window else None
            sample |= place._asdict() | {"origin": None if origin is None else asdict(origin)}
    report = {"iteration": iteration, **about, "samples": samples}
    partial = path.with_suffix(".partial")
    write_text(partial, json.dumps(report, indent=1) + "\n")
    partial.replace(path)
    return path


def _open(prefix: str, config: Config) -> Dataset | None:
    """What tells where tokens come from; None for a pair that came without its manifest."""
    try:
        return Dataset(prefix, Path(config.data.tokenizer))
    except ValueError as error:
        logger.warning("where the samples of %s come from is not known: %s", prefix, error)
        return None
