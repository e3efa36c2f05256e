"""The part of a run that is neither a tensor nor an option."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Interval:
    """Sums since the last line of training metrics."""

    loss_sum: float = 0.0
    """Cross-entropy of all masked tokens, in nats."""
    num_masked: int = 0
    """Masked tokens."""
    num_samples: int = 0
    """Windows read."""
    num_tokens: int = 0
    """Content tokens read."""
    num_bases: int = 0
    """Bases they spell."""
    seconds: float = 0.0
    """Wall time of the training steps."""


@dataclass
class TrainState:
    """All there is to save of a run but its tensors and options. Counts are over the whole run."""

    iteration: int = 0
    """Optimizer steps taken."""
    consumed_samples: int = 0
    """Training windows read: the data position."""
    consumed_tokens: int = 0
    """Content tokens read."""
    consumed_bases: int = 0
    """Bases those tokens spell."""
    tokenizer_sha256: str = ""
    """Of the tokenizer.json that the ids come from."""
    interval: Interval = field(default_factory=Interval)
    """What the next line of training metrics is made of."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> TrainState:
        """The inverse; what is not stored keeps its default, what is not known is left out.

        Raises:
            TypeError: `stored` or its `interval` is not a mapping.
        """
        known = _known(cls, stored)
        return cls(**{**known, "interval": Interval(**_known(Interval, known.get("interval", {})))})


def _known(kind: type, stored: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(stored, dict):
        raise TypeError(f"{kind.__name__} is stored as {type(stored).__name__}")
    return {entry.name: stored[entry.name] for entry in fields(kind) if entry.name in stored}
