"""Runs a segment schedule on one pipeline stage: compute, and what goes to other stages.

Hidden states go from stage to stage, new memory from the last stage back to the first; in the
backward pass their gradients go the other way. Receives are posted before they are needed and sends
are not waited for, so that transfers hide behind compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.schedules import custom_backward
from torch import Tensor

from megatron_dna.parallel.schedule import SegmentSchedule, Task
from megatron_dna.parallel.topology import Ring

Key = tuple[int, int]
"""(segment, micro-batch)."""


@dataclass
class StageResult:
    """What a stage computed for one segment of one micro-batch."""

    hidden: Tensor | None
    """To the next stage; None on the last."""
    loss_sum: Tensor | None
    """Last stage: sum of losses, the start of the backward pass."""
    new_memory: Tensor | None
    """Last stage: to the next segment; None without memory."""


Forward = Callable[[Task, Tensor | None, Tensor | None], StageResult]
"""(task, hidden states from the stage before, memory from the segment before) -> result."""


@dataclass
class _Kept:
    """What the backward pass of a task needs."""

    hidden_in: Tensor | None
    memory_in: Tensor | None
    result: StageResult


class SegmentEngine:
    """One stage's run through a schedule."""

    def __init__(
        self,
        schedule: SegmentSchedule,
        ring: Ring,
        forward: Forward,
        hidden_shape: Callable[[Task], tuple[int, ...]],
        memory_shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Set up a step.

        Args:
            schedule: the order of work.
            ring: this stage's neighbours.
            forward: computes a task.
            hidden_shape: of a task between stages, [`residual_length`, micro_batch, hidden].
            memory_shape: [M, micro_batch, hidden], from the last stage to the first.
            dtype: of both.
            device: where they live.
        """
        self.schedule = schedule
        self.ring = ring
        self.forward = forward
        self.hidden_shape, self.memory_shape = hidden_shape, memory_shape
        self.dtype, self.device = dtype, device
        self.is_first = ring.rank == 0
        self.is_last = ring.rank == ring.size - 1
        self.kept: dict[Key, _Kept] = {}
        self.memory: dict[Key, tuple[Tensor, dist.Work | None]] = {}
        self.memory_gradients: dict[Key, tuple[Tensor, dist.Work | None]] = {}
        self.sending: list[tuple[dist.Work, Tensor]] = []

    def run(self, forward_only: bool, before_last: Callable[[], None] = lambda: None) -> None:
        """Work through the schedule; `before_last` is called before the last backward task."""
        tasks = list(self.schedule.tasks(forward_only))
        incoming = self._expect_hidden(tasks[0])
        for task, following in zip(tasks, [*tasks[1:], None], strict=True):
            # In one direction the next receive and this send have different peers: overlap them.
            # Where the direction turns they have the same one, and must be in the same order there.
            turns = following is None or following.is_forward != task.is_forward
            ahead = None if turns or following is None else self._expect_hidden(following)
            hidden = _wait(incoming)
            if task.is_forward:
                self._run_forward(task, hidden, forward_only)
            else:
                if following is None:
                    before_last()
                self._run_backward(task, hidden)
            incoming = self._expect_hidden(following) if turns and following else ahead
        for work, _ in self.sending:
            work.wait()
        assert not self.kept or forward_only

    def _run_forward(self, task: Task, hidden: Tensor | None, forward_only: bool) -> None:
        key = (task.segment, task.micro_batch)
        memory = None
        if self.is_first and task.segment > 0:
            memory = _wait(self.memory.pop((task.segment - 1, task.micro_batch), None))
        if not forward_only:
            if hidden is not None:
                hidden.requires_grad_()
            if memory is not None and not self.schedule.is_first_of_group(task.segment):
                memory.requires_grad_()
        result = self.forward(task, hidden, memory)
        # Hidden states first: over NCCL the first transfer between two ranks holds both up until
        # the other has come to it, and the memory that the first stage waits for is made of them.
        if result.hidden is not None:
            self._send(result.hidden.detach(), self.ring.rank + 1, self.ring.hidden_group)
            # The next stage has the values; only the graph is needed here from now on.
            result.hidden.data = torch.empty((1,), dtype=self.dtype, device=self.device)
        self._pass_memory(key, result.new_memory)
        if not forward_only:
            self.kept[key] = _Kept(hidden, memory, result)

    def _run_backward(self, task: Task, hidden_gradient: Tensor | None) -> None:
        key = (task.segment, task.micro_batch)
        kept = self.kept.pop(key)
        if kept.result.hidden is not None:
            custom_backward(kept.result.hidden, hidden_gradient)
        else:
            assert kept.result.loss_sum is not None
            outputs: list[Tensor] = [kept.result.loss_sum]
            gradients: list[Tensor | None] = [None]
            memory_gradient = _wait(self.memory_gradients.pop(key, None))
            if memory_gradient is not None:
                assert kept.result.new_memory is not None
                outputs.append(kept.result.new_memory)
                gradients.append(memory_gradient)
            torch.autograd.backward(outputs, gradients)
        if kept.hidden_in is not None:
            self._send(kept.hidden_in.grad, self.ring.rank - 1, self.ring.hidden_group)
        self._pass_memory_gradient(key, kept.memory_in)

    def _pass_memory(self, key: Key, new_memory: Tensor | None) -> None:
        """From the last stage of this segment to the first stage of the next."""
        if self.schedule.is_last(key[0]) or not self.memory_shape[0]:
            return
        if self.is_last and self.is_first:
            assert new_memory is not None
            self.memory[key] = (new_memory.detach(), None)
        elif self.is_last:
            assert new_memory is not None
            self._send(new_memory.detach(), 0, self.ring.memory_group)
        elif self.is_first:
            self.memory[key] = self._expect(
                self.memory_shape, self.ring.size - 1, self.ring.memory_group
            )

    def _pass_memory_gradient(self, key: Key, memory_in: Tensor | None) -> None:
        """From the first stage of this segment to the last stage of the one before."""
        segment, micro_batch = key
        if self.schedule.is_first_of_group(segment) or not self.memory_shape[0]:
            return
        before = (segment - 1, micro_batch)
        if self.is_last and self.is_first:
            assert memory_in is not None
            assert memory_in.grad is not None
            self.memory_gradients[before] = (memory_in.grad, None)
        elif self.is_first:
            assert memory_in is not None
            assert memory_in.grad is not None
            self._send(memory_in.grad, self.ring.size - 1, self.ring.memory_group)
        elif self.is_last:
            self.memory_gradients[before] = self._expect(
                self.memory_shape, 0, self.ring.memory_group
            )

    def _expect_hidden(self, task: Task) -> tuple[Tensor, dist.Work | None] | None:
        """Post the receive of what `task` needs from a neighbour stage."""
        if task.is_forward and not self.is_first:
            return self._expect(self.hidden_shape(task), self.ring.rank - 1, self.ring.hidden_group)
        if not task.is_forward and not self.is_last:
            return self._expect(self.hidden_shape(task), self.ring.rank + 1, self.ring.hidden_group)
        return None

    def _expect(
        self, shape: tuple[int, ...], stage: int, group: dist.ProcessGroup
    ) -> tuple[Tensor, dist.Work]:
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        work = dist.irecv(tensor, group=group, group_src=stage)
        assert work is not None
        return tensor, work

    def _send(self, tensor: Tensor | None, stage: int, group: dist.ProcessGroup) -> None:
        assert tensor is not None
        tensor = tensor.contiguous()
        work = dist.isend(tensor, group=group, group_dst=stage)
        assert work is not None
        self.sending = [entry for entry in self.sending if not entry[0].is_completed()]
        self.sending.append((work, tensor))  # the buffer lives until it has been sent


def _wait(incoming: tuple[Tensor, dist.Work | None] | None) -> Tensor | None:
    if incoming is None:
        return None
    tensor, work = incoming
    if work is not None:
        work.wait()
    return tensor
