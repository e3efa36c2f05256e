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
    num_correct: int = 0
    """Masked tokens predicted correctly; counted only where a stage's `until` needs it."""
    num_predicted: int = 0
    """Masked tokens among which these were counted."""
    num_segments: int = 0
    """Segments computed, over all ranks."""
    num_tokens: int = 0
    """Content tokens read."""
    num_bases: int = 0
    """Bases they spell."""
    seconds: float = 0.0
    """Wall time of the training steps."""


@dataclass
class CurriculumState:
    """Where a run is in `memory.curriculum`, and what decides when the stage ends."""

    stage: int = 0
    """Number of the stage, from 0."""
    iterations: int = 0
    """Steps taken in it."""
    window: list[list[float]] = field(default_factory=list)
    """The last values of the stage's metric, oldest first, each [sum, count]."""
    best: float | None = None
    """Best mean over a full window in this stage."""
    since_best: int = 0
    """Values since then."""
    noise_iterations: int = 0
    """Steps taken since stage `memory.noise_start` began."""


@dataclass
class GuardState:
    """What decides whether a step is skipped."""

    loss_mean: float = 0.0
    """Running mean of the loss over the steps taken."""
    num_losses: int = 0
    """Steps that it is made of."""
    skipped_in_a_row: int = 0
    """Steps skipped since the last one that was taken."""
    skipped: int = 0
    """Steps skipped in the whole run."""


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
    curriculum: CurriculumState = field(default_factory=CurriculumState)
    """Where the run is in its curriculum."""
    guard: GuardState = field(default_factory=GuardState)
    """What decides whether a step is skipped."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> TrainState:
        """The inverse; what is not stored keeps its default, what is not known is left out.

        Raises:
            TypeError: `stored` or a part of it is not a mapping.
        """
        known = _known(cls, stored)
        parts = {"interval": Interval, "curriculum": CurriculumState, "guard": GuardState}
        for name, part in parts.items():
            known[name] = part(**_known(part, known.get(name, {})))
        return cls(**known)


def _known(kind: type, stored: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(stored, dict):
        raise TypeError(f"{kind.__name__} is stored as {type(stored).__name__}")
    return {entry.name: stored[entry.name] for entry in fields(kind) if entry.name in stored}
