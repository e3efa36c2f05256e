"""The parameters of a sweep: what each may be, and the options of a run that follow from it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna

from megatron_dna.config import Config, ConfigError, load_config

Value = str | bool | int | float | None
"""Of a parameter: one that Optuna can store."""

OUTPUT_KEY = "train.output_dir"
"""The sweep's own: each trial has a folder in it."""


class Parameter(Protocol):
    """What is varied."""

    @property
    def name(self) -> str:
        """In tables, and in Optuna's storage."""

    @property
    def keys(self) -> frozenset[str]:
        """The options that it sets."""

    def suggest(self, trial: optuna.Trial) -> Value:
        """A value for the trial: the one that it has, else one that the sampler draws."""

    def options(self, value: Value) -> Mapping[str, Any]:
        """Options of the run by their keys, for a value."""

    def examples(self) -> Sequence[Value]:
        """Values to try the keys and types of the options with."""


@dataclass(frozen=True)
class Choice:
    """One of some values, each of which stands for one or more options.

    Attributes:
        name: a key, or the name of a group.
        groups: the options of each value, in the order of the file.
    """

    name: str
    groups: Mapping[Value, Mapping[str, Any]]

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(key for group in self.groups.values() for key in group)

    def suggest(self, trial: optuna.Trial) -> Value:
        value: Value = trial.suggest_categorical(self.name, list(self.groups))
        return value

    def options(self, value: Value) -> Mapping[str, Any]:
        return self.groups[value]

    def examples(self) -> Sequence[Value]:
        return list(self.groups)


@dataclass(frozen=True)
class Range:
    """A number between `low` and `high`, both included; whole if both are.

    Attributes:
        name: the key.
        is_log: drawn evenly in its logarithm.
        step: distance between two values; None is any value.
    """

    name: str
    low: float
    high: float
    is_log: bool = False
    step: float | None = None

    @property
    def keys(self) -> frozenset[str]:
        return frozenset([self.name])

    @property
    def is_whole(self) -> bool:
        """Whether values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: optuna.Trial) -> Value:
        if self.is_whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(
                self.name, int(self.low), int(self.high), step=step, log=self.is_log
            )
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.is_log)

    def options(self, value: Value) -> Mapping[str, Any]:
        return {self.name: value}

    def examples(self) -> Sequence[Value]:
        return [self.low, self.high]


def grid(parameters: Sequence[Parameter]) -> Iterator[dict[str, Value]]:
    """All combinations of choices, the last parameter varying fastest."""
    names = [parameter.name for parameter in parameters]
    for values in itertools.product(*(parameter.examples() for parameter in parameters)):
        yield dict(zip(names, values, strict=True))


def options_of(parameters: Sequence[Parameter], values: Mapping[str, Value]) -> dict[str, Any]:
    """Options of the run by their keys, for a value of each parameter."""
    return {
        key: option
        for parameter in parameters
        for key, option in parameter.options(values[parameter.name]).items()
    }


def apply_options(base: Config, options: Mapping[str, Any]) -> Config:
    """The recipe with these options in place of its own.

    Raises:
        ConfigError: there is no such option, or it has another type.
    """
    # JSON is YAML, which the values of overrides are read as.
    overrides = [f"{key}={json.dumps(option)}" for key, option in options.items()]
    return load_config(None, overrides, base=base)


def describe(values: Mapping[str, Value]) -> str:
    """Such as `optimizer.lr=0.001, width=narrow`."""
    return ", ".join(f"{name}={show(value)}" for name, value in values.items())


def show(value: Value) -> str:
    """A value in a table or log line: numbers with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def parse_parameters(where: str, content: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """The parameters of a sweep file.

    Args:
        where: begins every message.
        content: of the section `parameters`.

    Raises:
        ConfigError: names key, value, rule and fix.
    """
    if not content:
        raise ConfigError(f"{where} must name at least one parameter to vary")
    parameters = tuple(_parse(f"{where}.{name}", name, spec) for name, spec in content.items())
    owner: dict[str, str] = {}
    for parameter in parameters:
        for key in parameter.keys:
            if key == OUTPUT_KEY:
                raise ConfigError(
                    f"{where}.{parameter.name} sets {key}, where trials have folders of their own; "
                    "leave it out"
                )
            if key in owner:
                raise ConfigError(
                    f"{where}.{parameter.name} sets {key}, as {owner[key]} does; let one of them"
                )
            owner[key] = parameter.name
    return parameters


_FORMS = "{values: [...]}, {low: ..., high: ...} or {choices: {NAME: {section.key: value}}}"


def _parse(where: str, name: str, spec: Any) -> Parameter:
    if isinstance(spec, dict) and "choices" in spec:
        _check_keys(where, spec, ("choices",))
        return _parse_groups(where, name, spec["choices"])
    if isinstance(spec, dict) and ("values" in spec or "low" in spec or "high" in spec):
        if "." not in name:
            raise ConfigError(
                f"{where} must be named by the option that it varies, such as optimizer.lr; "
                "only {choices: ...} have names of their own"
            )
        if "values" in spec:
            _check_keys(where, spec, ("values",))
            return _parse_values(f"{where}.values", name, spec["values"])
        _check_keys(where, spec, ("low", "high", "log", "step"))
        return _parse_range(where, name, spec)
    raise ConfigError(f"{where} ({spec!r}) must be {_FORMS}")


def _check_keys(where: str, spec: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in spec:
        if key not in known:
            raise ConfigError(
                f"{where}.{key} is not a key; beside {known[0]} there may be "
                f"{', '.join(known[1:]) or 'none'}"
            )


def _parse_values(where: str, name: str, values: Any) -> Choice:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where} ({values!r}) must be a list of at least one value")
    groups: dict[Value, dict[str, Any]] = {}
    for value in values:
        if isinstance(value, list | dict):
            raise ConfigError(
                f"{where} ({value!r}) must be numbers, words, true, false or null; give lists "
                "names: {choices: {NAME: {" + name + ": ...}}}"
            )
        if value in groups:
            raise ConfigError(f"{where} ({value!r}) must not have a value twice")
        groups[value] = {name: value}
    return Choice(name, groups)


def _parse_groups(where: str, name: str, choices: Any) -> Choice:
    if "." in name:
        raise ConfigError(
            f"{where} has choices, each with options of its own: give it a name without a dot"
        )
    if not isinstance(choices, dict) or not choices:
        raise ConfigError(f"{where}.choices ({choices!r}) must map names to options")
    for label, options in choices.items():
        if not isinstance(options, dict):
            raise ConfigError(
                f"{where}.choices.{label} ({options!r}) must map section.key to values; "
                "{} leaves the recipe as it is"
            )
        for key in options:
            if not isinstance(key, str) or "." not in key:
                raise ConfigError(
                    f"{where}.choices.{label}: {key!r} must be an option such as model.hidden_size"
                )
    return Choice(name, {str(label): options for label, options in choices.items()})


def _parse_range(where: str, name: str, spec: Mapping[str, Any]) -> Range:
    low, high, is_log, step = (spec.get(key) for key in ("low", "high", "log", "step"))
    for key, number in (("low", low), ("high", high), ("step", step)):
        if key == "step" and number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"{where}.{key} ({number!r}) must be a number")
        if not math.isfinite(number):
            raise ConfigError(f"{where}.{key} ({number!r}) must be finite")
    assert low is not None
    assert high is not None
    if not low < high:
        raise ConfigError(f"{where}.low ({low}) must be below high ({high})")
    if is_log not in (None, True, False):
        raise ConfigError(f"{where}.log ({is_log!r}) must be true or false")
    parameter = Range(name, low, high, bool(is_log), step)
    if is_log and low <= 0:
        raise ConfigError(f"{where}.low ({low}) must be above 0 with log: true")
    if step is not None and (is_log or step <= 0 or (parameter.is_whole and step != int(step))):
        raise ConfigError(
            f"{where}.step ({step}) must be positive, whole where low and high are, and goes "
            "without log"
        )
    if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise ConfigError(
            f"{where}.step ({step}) must divide high - low ({high - low:g}): else high is left out"
        )
    return parameter
