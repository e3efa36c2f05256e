"""The order of events over segments, without processes: a clock and the dependencies."""

from __future__ import annotations

import pytest

from megatron_dna.parallel.schedule import SegmentSchedule, Task


def finish_times(
    schedule: SegmentSchedule, num_stages: int, forward_only: bool = False
) -> dict[tuple[int, Task], int]:
    """When each stage ends each task, a task taking one tick and sends none.

    Raises:
        AssertionError: no stage can go on: a deadlock.
    """
    tasks = list(schedule.tasks(forward_only))
    last = num_stages - 1
    done: dict[tuple[int, Task], int] = {}
    position, clock = [0] * num_stages, [0] * num_stages
    while any(place < len(tasks) for place in position):
        progressed = False
        for stage in range(num_stages):
            if position[stage] == len(tasks):
                continue
            task = tasks[position[stage]]
            needs = list(_needs(schedule, task, stage, last))
            if all(need in done for need in needs):
                start = max([clock[stage], *(done[need] for need in needs)])
                clock[stage] = done[stage, task] = start + 1
                position[stage] += 1
                progressed = True
        assert progressed, "deadlock"
    return done


def _needs(schedule: SegmentSchedule, task: Task, stage: int, last: int):
    """What must be done before `task`, from the definition of the method."""
    before = Task(task.is_forward, task.segment - 1, task.micro_batch)
    after = Task(task.is_forward, task.segment + 1, task.micro_batch)
    if task.is_forward:
        if stage > 0:
            yield stage - 1, task
        elif task.segment > 0:
            yield last, before
    else:
        yield stage, Task(True, task.segment, task.micro_batch)
        if stage < last:
            yield stage + 1, task
        elif not schedule.is_last_of_group(task.segment):
            yield 0, after


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
