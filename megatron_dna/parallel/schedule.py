"""The order of work over segments: a pure function (timeline.py holds a clock to it).

Segments of a window depend on each other through the memory: segment s + 1 can start when s has
left the last stage. So the order is segment-major: all N micro-batches of segment 0, then of
segment 1, and so on; while the memory of the first micro-batch travels back to the first stage,
others keep the stages busy. Backpropagation goes through groups of W segments, in exact reverse
order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One stage's work on one segment of one micro-batch."""

    is_forward: bool
    segment: int
    micro_batch: int


@dataclass(frozen=True)
class SegmentSchedule:
    """The order in which every stage works; only what it sends and receives differs by stage."""

    num_segments: int
    """S."""
    bptt_depth: int
    """W, segments of a group; memory is detached between groups. -1: all segments."""
    num_microbatches: int
    """N, micro-batches in flight."""

    @property
    def group_size(self) -> int:
        """W as a number of segments."""
        if self.bptt_depth == -1:
            return self.num_segments
        return min(self.bptt_depth, self.num_segments)

    def groups(self) -> Iterator[range]:
        """Consecutive groups of segments; the last may be shorter."""
        for first in range(0, self.num_segments, self.group_size):
            yield range(first, min(first + self.group_size, self.num_segments))

    def tasks(self, forward_only: bool = False) -> Iterator[Task]:
        """All tasks of a stage, in order."""
        for group in self.groups():
            forward = [
                Task(True, segment, micro_batch)
                for segment in group
                for micro_batch in range(self.num_microbatches)
            ]
            yield from forward
            if not forward_only:
                for task in reversed(forward):
                    yield Task(False, task.segment, task.micro_batch)

    def is_first_of_group(self, segment: int) -> bool:
        """Whether the memory that enters `segment` is detached."""
        return segment % self.group_size == 0

    def is_last_of_group(self, segment: int) -> bool:
        """Whether no gradient comes back for the memory that leaves `segment`."""
        return self.is_first_of_group(segment + 1) or self.is_last(segment)

    def is_last(self, segment: int) -> bool:
        """Whether the memory that leaves `segment` is not needed."""
        return segment == self.num_segments - 1

    def num_ticks(self, num_stages: int) -> int:
        """Ticks of one direction of a full group when N >= P: N W + P - 1."""
        return self.num_microbatches * self.group_size + num_stages - 1

    def busy_share(self, num_stages: int) -> float:
        """Share of the time that a stage works, sends being hidden; N < P waits for memory."""
        per_segment = max(self.num_microbatches, num_stages)
        ticks = (self.group_size - 1) * per_segment + self.num_microbatches + num_stages - 1
        return self.num_microbatches * self.group_size / ticks
