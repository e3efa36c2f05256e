"""Runs the trials of a sweep: starts them, watches them, takes down what comes of them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from megatron_dna.config import Config, ConfigError, to_yaml
from megatron_dna.sweep.runners import CANCELLED, CONFIG_FILE, Runner
from megatron_dna.sweep.space import describe
from megatron_dna.sweep.spec import Sweep
from megatron_dna.sweep.store import TrialStore
from megatron_dna.training.metrics import read_records
from megatron_dna.training.signals import REQUEUE_EXIT_STATUS, StopRequest

logger = logging.getLogger(__name__)

MAX_CRASHES = 1
"""A run that ended for no reason of its own is started again so often."""


class TrialError(Exception):
    """A trial showed that something is wrong with all of them. Names the trial and its log."""


@dataclass
class Active:
    """A trial that runs, or will again.

    Attributes:
        reported: the last iteration whose value is known.
        file_state: size and time of change of metrics.jsonl when it was read.
    """

    trial: optuna.Trial
    config: Config
    folder: Path
    reported: int
    file_state: tuple[int, int] | None = field(default=None)

    @property
    def is_pruned(self) -> bool:
        """Whether it was decided to end it early."""
        return "pruned_at" in self.trial.user_attrs

    def new_records(self, metric: str) -> Iterator[dict[str, Any]]:
        """Evaluations that are not known yet, in order."""
        path = self.folder / "metrics.jsonl"
        try:
            found = path.stat()
        except FileNotFoundError:
            return
        state = (found.st_size, found.st_mtime_ns)
        if state == self.file_state:
            return
        self.file_state = state
        for record in read_records(path):
            if metric in record and record["iteration"] > self.reported:
                self.reported = record["iteration"]
                yield record


class Controller:
    """Brings a sweep to its end."""

    def __init__(
        self, sweep: Sweep, store: TrialStore, runner: Runner, jobs: int, stop: StopRequest
    ) -> None:
        """Starts nothing yet.

        Args:
            sweep: what to try.
            store: what came of it so far.
            runner: where trials run.
            jobs: trials at once.
            stop: ends the sweep.
        """
        self._sweep = sweep
        self._store = store
        self._runner = runner
        self._jobs = jobs
        self._stop = stop
        self._active: dict[Path, Active] = {}

    def run(self) -> bool:
        """Make the trials that are left.

        Returns:
            Whether all are made: False if the sweep was asked to stop.

        Raises:
            TrialError: a trial was refused (status 2); the others were asked to save.
            OSError: a trial cannot be started.
        """
        try:
            with (
                logging_redirect_tqdm([logging.getLogger("megatron_dna")]),
                tqdm(total=self._sweep.num_trials, unit="trial", disable=None) as bar,
            ):
                return self._run(bar)
        finally:
            self._runner.close()

    def _run(self, bar: Any) -> bool:
        left = self._store.running()
        while self._stop.signal is None:
            while len(self._active) < self._jobs:
                trial = left.pop(0) if left else self._store.begin()
                if trial is None:
                    break
                self._start(trial)
            bar.update(self._store.count_finished() - bar.n)
            if not self._active:
                return True
            time.sleep(self._runner.poll_s)
            self._watch()
        logger.info("asked to stop (%s): the same command goes on", self._stop.signal)
        return False

    def _start(self, trial: optuna.Trial) -> None:
        values = self._store.values(trial)
        name = self._sweep.trial_folder(trial.number).name
        try:
            config = self._sweep.config(trial.number, values)
        except ConfigError as error:
            logger.warning("%s: %s", name, error)
            self._store.fail(trial, str(error))
            return
        folder = self._sweep.trial_folder(trial.number)
        active = Active(trial, config, folder, self._store.last_reported(trial))
        self._prune_if_due(active)
        if active.is_pruned:  # the sweep was killed before its run had ended
            self._store.prune(trial)
            return
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{CONFIG_FILE}"
        partial.write_text(to_yaml(config))
        partial.replace(folder / CONFIG_FILE)
        logger.info("%s: %s", name, describe(values))
        self._runner.start(folder)
        self._active[folder] = active

    def _watch(self) -> None:
        """Take down what is new; what had ended before that has all its metrics."""
        ended = self._runner.poll()
        for active in self._active.values():
            self._read(active)
        for folder, status in ended.items():
            self._settle(self._active.pop(folder), status)

    def _read(self, active: Active) -> None:
        """Report new evaluations, and end the trial early if they say so."""
        if active.is_pruned:
            return
        objective = self._sweep.options.objective.metric
        for record in active.new_records(objective):
            tokens = record["train/consumed_tokens"]
            self._store.report(active.trial, record["iteration"], record[objective], tokens)
            self._prune_if_due(active)
            if active.is_pruned:
                return

    def _prune_if_due(self, active: Active) -> None:
        """Ask the trial's run to end if its last evaluation says so."""
        is_over = active.reported >= active.config.train.train_iters
        if not active.is_pruned and not is_over and active.trial.should_prune():
            active.trial.set_user_attr("pruned_at", active.reported)
            logger.info(
                "%s: ends early, worse than the median at iteration %d", active.folder.name,
                active.reported,
            )  # fmt: skip
        if active.is_pruned:
            self._runner.stop(active.folder)

    def _settle(self, active: Active, status: int) -> None:
        """What the end of a trial's run means."""
        trial, folder = active.trial, active.folder
        if active.is_pruned:
            self._store.prune(trial)
        elif status == 0:
            value = self._store.complete(trial)
            best = self._store.best()
            if value is not None and best is not None:
                logger.info(
                    "%s: %s %.4f; best is trial %d, %.4f", folder.name,
                    self._sweep.options.objective.metric, value, best.number, best.value,
                )  # fmt: skip
        elif status == REQUEUE_EXIT_STATUS:  # somebody asked the run, not the sweep
            self._restart(active)
        elif status == 2:
            raise TrialError(f"{folder.name} was refused: {last_error(folder)}")
        elif status == 3:
            self._fail(active, f"diverged: {last_error(folder)}")
        elif status == CANCELLED:
            self._fail(active, "its job was cancelled")
        else:
            crashes = trial.user_attrs.get("crashes", 0) + 1
            trial.set_user_attr("crashes", crashes)
            if crashes > MAX_CRASHES:
                self._fail(active, f"ended with status {status}: {last_error(folder)}")
            else:
                logger.warning("%s: ended with status %d; once more", folder.name, status)
                self._restart(active)

    def _restart(self, active: Active) -> None:
        self._runner.start(active.folder)
        self._active[active.folder] = active

    def _fail(self, active: Active, reason: str) -> None:
        logger.warning("%s: failed, %s", active.folder.name, reason)
        self._store.fail(active.trial, reason)


def last_error(folder: Path) -> str:
    """The last line of a trial's logs that is an error, else where the logs are."""
    logs = [folder / "run.log", *sorted((folder / "logs").glob("*.log"), key=os.path.getmtime)]
    for path in reversed(logs):
        if path.is_file():
            lines = path.read_text(errors="replace").splitlines()
            errors = [line for line in lines if line.startswith(("error:", "error ("))]
            if errors:
                return f"{errors[-1]} ({path})"
    return f"see the logs in {folder}"
