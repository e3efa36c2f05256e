"""What every rule is made of: a check, and an error with key, value, rule and fix."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any

from megatron_dna.config import ConfigError


def require(holds: bool, key: str, value: Any, rule: str, fix: str) -> None:
    """Refuse a value that breaks a rule.

    Args:
        holds: whether it keeps the rule.
        key: full key, such as `train.lr`.
        value: as it was given.
        rule: what holds for good values, to be read after key and value.
        fix: what to do.

    Raises:
        ConfigError: the rule is broken.
    """
    value = str(value).lower() if isinstance(value, bool) else value  # as YAML spells it
    if not holds:
        raise ConfigError(f"{key} ({value}) {rule}; {fix}")


def require_positive(section: str, options: Any, *names: str) -> None:
    """The options of these `names` must be above 0."""
    for name in names:
        value = getattr(options, name)
        fix = f"give a number above 0{_default(options, name)}"
        require(value > 0, f"{section}.{name}", value, "must be positive", fix)


def require_not_negative(section: str, options: Any, *names: str) -> None:
    """The options of these `names` must be 0 or above."""
    for name in names:
        value = getattr(options, name)
        fix = f"give 0 or more{_default(options, name)}"
        require(value >= 0, f"{section}.{name}", value, "must not be negative", fix)


def require_one_of(section: str, options: Any, name: str, choices: Sequence[str | None]) -> None:
    """The option must be one of `choices`."""
    value = getattr(options, name)
    near = difflib.get_close_matches(str(value), map(str, choices), n=1)
    fix = f"did you mean {near[0]}?" if near else f"choose one{_default(options, name)}"
    rule = "must be one of " + ", ".join("null" if one is None else one for one in choices)
    require(value in choices, f"{section}.{name}", value, rule, fix)


def next_multiple(value: int, divisor: int) -> int:
    """The smallest multiple of `divisor` that is not below `value`, and not 0."""
    return max(1, -(-value // divisor)) * divisor


def next_divisor(value: int, start: int) -> int:
    """The divisor of `value` that is nearest to `start`, the smaller one where two are."""
    divisors = (number for number in range(1, value + 1) if value % number == 0)
    return min(divisors, key=lambda number: abs(number - start))


def smallest_factor(needed: int, other: int) -> int:
    """The smallest number whose product with `other` is a multiple of `needed`."""
    return needed // math.gcd(needed, other)


def _default(options: Any, name: str) -> str:
    (field,) = (field for field in dataclasses.fields(options) if field.name == name)
    if field.default is dataclasses.MISSING or field.default is None:
        return ""
    return f" (the default is {field.default})"
