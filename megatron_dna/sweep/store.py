"""What is known of every trial: an Optuna study in an SQLite file, the only state of a sweep.

Everything is in there as soon as it is known, so that after a kill the same sweep goes on: trials
that Optuna has as RUNNING keep number, folder and parameters. User attributes of a trial:

    tokens      {iteration: content tokens read} of each value that was reported
    pruned_at   iteration at which it was decided to end it early
    crashes     how often its run ended for no reason of its own
    reason      why it failed
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from megatron_dna.config import ConfigError
from megatron_dna.sweep.space import Value, grid
from megatron_dna.sweep.spec import Sweep

logger = logging.getLogger(__name__)

DATABASE = "sweep.db"


class TrialStore:
    """The trials of a sweep. One process at a time may write; see `OutputLock`."""

    def __init__(self, sweep: Sweep) -> None:
        """Open the sweep's study, or begin it.

        Raises:
            ConfigError: it was begun with other options.
        """
        self._sweep = sweep
        options = sweep.options
        self._storage = _open_storage(sweep.folder)
        for name in optuna.get_all_study_names(self._storage):
            if name != options.name:
                raise ConfigError(
                    f"{sweep.folder / DATABASE} has the sweep {name}, not name ({options.name}); "
                    "take that name, or another train.output_dir"
                )
        self.study = optuna.create_study(
            storage=self._storage,
            study_name=options.name,
            direction=sweep.direction,
            pruner=_make_pruner(sweep),
            load_if_exists=True,
        )
        self._check_is_the_same()
        if options.sampler == "grid":
            for values in list(grid(sweep.parameters))[len(self._all()) :]:
                self.study.enqueue_trial(values)

    def _check_is_the_same(self) -> None:
        """Refuse a study of other options; more trials are welcome."""
        options = dataclasses.asdict(self._sweep.options) | {"trials": None}
        recipe = dataclasses.asdict(self._sweep.base)
        recipe["train"]["output_dir"] = None  # the folder may have been moved
        now = json.loads(json.dumps({"sweep": options, "recipe": recipe}))
        before = self.study.user_attrs.get("begun_with")
        if before is None:
            self.study.set_user_attr("begun_with", now)
        elif before != now:
            key, was, value = _first_difference(before, now)
            raise ConfigError(
                f"{self._sweep.folder / DATABASE} was begun with {key} {was}, not {value}; take "
                "that back, or begin a new sweep with another train.output_dir"
            )

    def _all(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def count(self, *states: TrialState) -> int:
        """Trials in one of these states."""
        return sum(1 for trial in self._all() if trial.state in states)

    def count_finished(self) -> int:
        """Trials that need nothing more, failed ones included."""
        return sum(1 for trial in self._all() if trial.state.is_finished())

    def running(self) -> list[optuna.Trial]:
        """Those that were begun and have no result."""
        study_id = self._storage.get_study_id_from_name(self.study.study_name)
        found = []
        for trial in self._all():
            if trial.state == TrialState.RUNNING:
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(
                    study_id, trial.number
                )
                found.append(optuna.Trial(self.study, trial_id))
        return found

    def begin(self) -> optuna.Trial | None:
        """The next trial, None if there are as many as there should be."""
        begun = self.count(*(state for state in TrialState if state != TrialState.WAITING))
        if begun >= self._sweep.num_trials:
            return None
        return self.study.ask()

    def values(self, trial: optuna.Trial) -> dict[str, Value]:
        """Its parameters; those that it does not have yet are drawn."""
        values = {}
        for place, parameter in enumerate(self._sweep.parameters):
            self.study.sampler = self._make_sampler(trial.number, place)
            values[parameter.name] = parameter.suggest(trial)
        return values

    def _make_sampler(self, number: int, place: int) -> optuna.samplers.BaseSampler:
        """One for each draw: what it gives does not depend on when the sweep was interrupted."""
        seeds = np.random.SeedSequence([self._sweep.options.seed, number, place])
        seed = int(seeds.generate_state(1)[0])
        if self._sweep.options.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def report(self, trial: optuna.Trial, iteration: int, value: float, tokens: int) -> None:
        """Record an evaluation."""
        known = dict(trial.user_attrs.get("tokens", {}))
        trial.set_user_attr("tokens", known | {str(iteration): tokens})
        trial.report(value, iteration)

    def last_reported(self, trial: optuna.Trial) -> int:
        """Iteration of its last evaluation that was recorded, 0 without one."""
        return max(self._all()[trial.number].intermediate_values, default=0)

    def complete(self, trial: optuna.Trial) -> float | None:
        """Take the trial's value from what was reported; None (and it failed) without one."""
        reported = self._all()[trial.number].intermediate_values
        finite = {step: value for step, value in reported.items() if math.isfinite(value)}
        objective = self._sweep.options.objective
        if objective.take == "last":
            value = reported[max(reported)] if reported else math.nan
        else:
            best = min if self._sweep.direction == "minimize" else max
            value = best(finite.values(), default=math.nan)
        if not math.isfinite(value):
            self.fail(trial, f"its {objective.take} {objective.metric} is no number")
            return None
        self.study.tell(trial, value)
        return value

    def prune(self, trial: optuna.Trial) -> None:
        """It ended early."""
        self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: optuna.Trial, reason: str) -> None:
        """It has no value."""
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def best(self) -> optuna.trial.FrozenTrial | None:
        """The best complete trial."""
        return best_trial(self.study)


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    """The best complete trial of a study, if there is one."""
    if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        return None
    return study.best_trial


def load_study(folder: Path) -> optuna.Study:
    """The study of a sweep's folder, to be read.

    Raises:
        ConfigError: there is none.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise ConfigError(f"train.output_dir ({folder}) has no {DATABASE}; run the sweep first")
    return optuna.load_study(study_name=None, storage=_open_storage(folder))


def _open_storage(folder: Path) -> optuna.storages.RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    return optuna.storages.RDBStorage(f"sqlite:///{(folder / DATABASE).absolute()}")


def _make_pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    options = sweep.options.pruner
    if options is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(options.startup_trials, options.warmup_iters)


def _first_difference(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any]:
    """Key and both values where two nested mappings differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                return _first_difference(
                    before.get(name), now.get(name), f"{key}.{name}" if key else name
                )
    return key, before, now
