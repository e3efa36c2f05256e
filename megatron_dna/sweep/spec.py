"""A sweep file: what to vary, how to choose, what to compare by and how many trials to make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from megatron_dna.config import Config, ConfigError
from megatron_dna.sweep.space import (
    Choice,
    Parameter,
    Value,
    apply_options,
    describe,
    grid,
    options_of,
    parse_parameters,
)
from megatron_dna.validation import validate

METRICS: dict[str, Literal["minimize", "maximize"]] = {
    "valid/bits_per_base": "minimize",
    "valid/loss": "minimize",
    "valid/accuracy": "maximize",
}
"""What trials can be compared by."""


@dataclass(frozen=True)
class ObjectiveOptions:
    """What trials are compared by."""

    metric: str = "valid/bits_per_base"
    """Or `valid/loss`, `valid/accuracy`; bits a base do not depend on how long tokens are."""
    take: str = "last"
    """The `last` evaluation of a trial or its `best`."""


@dataclass(frozen=True)
class PrunerOptions:
    """A trial ends early if its best value so far is worse than the median of finished trials."""

    startup_trials: int = 4
    """Trials that must be complete before any is pruned."""
    warmup_iters: int = 0
    """No trial is pruned before this iteration."""


@dataclass(frozen=True)
class SweepOptions:
    """The keys of a sweep file."""

    name: str = MISSING
    """In Optuna's storage, and of Slurm jobs."""
    sampler: str = "grid"
    """`grid` (all combinations), `random` or `tpe`."""
    seed: int = 1234
    """Of `random` and `tpe`: together with a trial's number."""
    trials: int | None = None
    """How many, for `random` and `tpe`; a grid has as many as it has combinations."""
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    """What trials are compared by."""
    pruner: PrunerOptions | None = None
    """Whether trials may end early: none does unless given."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """What is varied; see docs/sweeps.md."""


@dataclass(frozen=True)
class Sweep:
    """A sweep: a sweep file on a recipe.

    Attributes:
        options: of the sweep file.
        parameters: what is varied.
        base: the recipe; its train.output_dir is the sweep's folder.
        world_size: processes of a trial.
    """

    options: SweepOptions
    parameters: tuple[Parameter, ...]
    base: Config
    world_size: int

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path(self.base.train.output_dir)

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Which values are better."""
        return METRICS[self.options.objective.metric]

    @property
    def num_trials(self) -> int:
        """How many are to be made in all."""
        if self.options.trials is not None:
            return self.options.trials
        return sum(1 for _ in grid(self.parameters))

    def trial_folder(self, number: int) -> Path:
        """train.output_dir of a trial."""
        return self.folder / f"trial_{number:04d}"

    def config(self, number: int, values: Mapping[str, Value], files: bool = True) -> Config:
        """The options of a trial, checked.

        Args:
            number: of the trial.
            values: of its parameters.
            files: whether the files that it names must be there.

        Raises:
            ConfigError: this combination is no valid run.
        """
        options = options_of(self.parameters, values)
        options["train.output_dir"] = str(self.trial_folder(number))
        metric = self.options.objective.metric
        try:
            config = apply_options(self.base, options)
            validate(config, self.world_size, files)
            if not config.data.valid:
                raise ConfigError(
                    f"data.valid (empty) must name held-out data: objective.metric is {metric}"
                )
            if self.options.pruner is not None and config.train.eval_interval == 0:
                raise ConfigError(
                    "train.eval_interval (0) evaluates at the end only: leave pruner out, or set it"
                )
        except ConfigError as error:
            raise ConfigError(f"trial with {describe(values)}: {error}") from error
        return config


def read_sweep(path: Path, base: Config, world_size: int = 1, files: bool = True) -> Sweep:
    """A sweep file, checked against the recipe that it varies; of a grid every combination.

    Args:
        path: YAML; the keys are those of SweepOptions.
        base: the recipe.
        world_size: processes of a trial.
        files: whether the files that runs name must be there.

    Raises:
        ConfigError: names key, value, rule and fix.
    """
    options = _load(path)
    _check(path, options)
    parameters = parse_parameters(f"{path}: parameters", options.parameters)
    sweep = Sweep(options, parameters, base, world_size)
    if options.sampler == "grid":
        for parameter in parameters:
            if not isinstance(parameter, Choice):
                raise ConfigError(
                    f"{path}: parameters.{parameter.name} has low and high, sampler is grid; give "
                    "values, or take random or tpe"
                )
        for number, values in enumerate(grid(parameters)):
            sweep.config(number, values, files)
    else:
        _try_keys(path, sweep)
    return sweep


def _load(path: Path) -> SweepOptions:
    if not path.is_file():
        raise ConfigError(f"--sweep ({path}) is not a file; pass the path of a sweep file (YAML)")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SweepOptions), OmegaConf.load(path))
        options = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{path}: {error.full_key} is missing; every sweep needs it") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: {error.full_key or 'sweep'}: {reason}") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ConfigError(f"--sweep ({path}) is not YAML of a sweep: {error}") from error
    assert isinstance(options, SweepOptions)
    return options


def _check(path: Path, options: SweepOptions) -> None:
    """The rules between the keys of a sweep file."""

    def require(holds: bool, key: str, value: Any, rule: str) -> None:
        if not holds:
            raise ConfigError(f"{path}: {key} ({value}) {rule}")

    name, sampler, trials = options.name, options.sampler, options.trials
    require(
        bool(name) and name.replace("-", "_").isidentifier(), "name", name,
        "must be letters, digits, _ and -: it names jobs",
    )  # fmt: skip
    require(sampler in ("grid", "random", "tpe"), "sampler", sampler,
            "must be grid, random or tpe")  # fmt: skip
    if sampler == "grid":
        require(trials is None, "trials", trials,
                "goes with random and tpe; a grid tries every combination")  # fmt: skip
    else:
        require(trials is not None and trials > 0, "trials", trials,
                f"must be given, and positive: sampler is {sampler}")  # fmt: skip
    require(options.seed >= 0, "seed", options.seed, "must not be negative")
    metric, take = options.objective.metric, options.objective.take
    require(metric in METRICS, "objective.metric", metric, f"must be one of {', '.join(METRICS)}")
    require(take in ("last", "best"), "objective.take", take, "must be last or best")
    if options.pruner is not None:
        startup, warmup = options.pruner.startup_trials, options.pruner.warmup_iters
        require(startup >= 1, "pruner.startup_trials", startup, "must be at least 1")
        require(warmup >= 0, "pruner.warmup_iters", warmup, "must not be negative")


def _try_keys(path: Path, sweep: Sweep) -> None:
    """Whether there are options of these names that take such values; rules come with a trial."""
    for parameter in sweep.parameters:
        for value in parameter.examples():
            try:
                apply_options(sweep.base, parameter.options(value))
            except ConfigError as error:
                raise ConfigError(f"{path}: parameters.{parameter.name}: {error}") from error
