"""The order of events over segments, without processes: a clock and the dependencies."""

from __future__ import annotations

import pytest

from megatron_dna.parallel.schedule import SegmentSchedule, Task
from megatron_dna.parallel.timeline import finish_times


@pytest.mark.parametrize("num_stages", range(1, 9))
@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
def test_ticks_equal_the_formula(num_stages: int, depth: int):
    """N W + P - 1 ticks a direction for a group: the stages never wait but to fill and drain."""
    for num_microbatches in range(num_stages, 17):
        schedule = SegmentSchedule(depth, -1, num_microbatches)
        formula = num_microbatches * depth + num_stages - 1
        assert schedule.num_ticks(num_stages) == formula
        forward = max(finish_times(schedule, num_stages, forward_only=True).values())
        assert forward == formula
        # The last stage turns at once, so both directions share the drain and the fill.
        both = max(finish_times(schedule, num_stages).values())
        assert both == 2 * num_microbatches * depth + 2 * (num_stages - 1)
        busy = num_microbatches * depth / formula
        assert schedule.busy_share(num_stages) == pytest.approx(busy)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("segments", "depth"), [(1, -1), (5, 1), (5, 2), (6, 3), (7, -1), (8, 5)])
def test_every_task_once_and_no_deadlock(num_stages: int, segments: int, depth: int):
    """Few micro-batches wait for memory, uneven groups end early, and all of it ends."""
    for num_microbatches in (1, 2, 3, 5):
        schedule = SegmentSchedule(segments, depth, num_microbatches)
        tasks = list(schedule.tasks())
        assert len(set(tasks)) == len(tasks) == 2 * segments * num_microbatches
        finish_times(schedule, num_stages)


@pytest.mark.parametrize("num_stages", [2, 4, 8])
def test_too_few_micro_batches_wait_as_long_as_said(num_stages: int):
    for num_microbatches in range(1, num_stages):
        schedule = SegmentSchedule(6, -1, num_microbatches)
        ticks = max(finish_times(schedule, num_stages, forward_only=True).values())
        assert schedule.busy_share(num_stages) == pytest.approx(num_microbatches * 6 / ticks)


def test_backward_is_the_reverse_of_forward_in_each_group():
    schedule = SegmentSchedule(5, 2, 3)
    tasks = [(t.is_forward, t.segment, t.micro_batch) for t in schedule.tasks()]
    start = 0
    for group in ([0, 1], [2, 3], [4]):
        size = 3 * len(group)
        forward = tasks[start : start + size]
        assert forward == [(True, s, n) for s in group for n in range(3)]
        backward = tasks[start + size : start + 2 * size]
        assert backward == [(False, s, n) for _, s, n in reversed(forward)]
        start += 2 * size
    assert start == len(tasks)


def test_the_clock_sees_a_deadlock():
    """An order in which a segment comes before the one whose memory it reads can never run."""

    class Backwards(SegmentSchedule):
        def tasks(self, forward_only: bool = False):
            yield Task(True, 1, 0)
            yield Task(True, 0, 0)

    with pytest.raises(RuntimeError, match="no stage can go on"):
        finish_times(Backwards(2, -1, 1), 2, forward_only=True)
