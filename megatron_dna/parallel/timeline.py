"""When each stage does what: the segment schedule against a clock, before anything is run.

Every task takes one tick, forward or backward, and transfers take none.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_dna.parallel.schedule import SegmentSchedule, Task

Event = tuple[int, Task]
"""(stage, task)."""


def finish_times(
    schedule: SegmentSchedule, num_stages: int, forward_only: bool = False
) -> dict[Event, int]:
    """The tick at which each stage ends each task; a task began one tick before.

    Raises:
        RuntimeError: no stage can go on: a deadlock.
    """
    tasks = list(schedule.tasks(forward_only))
    done: dict[Event, int] = {}
    position, clock = [0] * num_stages, [0] * num_stages
    while any(place < len(tasks) for place in position):
        progressed = False
        for stage in range(num_stages):
            if position[stage] == len(tasks):
                continue
            task = tasks[position[stage]]
            needs = list(_needs(schedule, task, stage, num_stages - 1))
            if all(need in done for need in needs):
                start = max([clock[stage], *(done[need] for need in needs)])
                clock[stage] = done[stage, task] = start + 1
                position[stage] += 1
                progressed = True
        if not progressed:
            raise RuntimeError(f"{schedule} on {num_stages} stages: no stage can go on")
    return done


def _needs(schedule: SegmentSchedule, task: Task, stage: int, last: int) -> Iterator[Event]:
    """What must be done before `task`, from the definition of the method."""
    before = Task(task.is_forward, task.segment - 1, task.micro_batch)
    after = Task(task.is_forward, task.segment + 1, task.micro_batch)
    if task.is_forward:
        if stage > 0:
            yield stage - 1, task
        elif task.segment > 0:
            yield last, before  # its memory
    else:
        yield stage, Task(True, task.segment, task.micro_batch)
        if stage < last:
            yield stage + 1, task
        elif not schedule.is_last_of_group(task.segment):
            yield 0, after  # the gradient of its memory
