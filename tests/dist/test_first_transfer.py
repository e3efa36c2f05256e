"""Over NCCL the first transfer between two ranks of a group makes a communicator, and holds both
ranks up until the other has come to it too. Gloo never does; here it is made to."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_dna.config import load_config
from megatron_dna.parallel import engine, topology
from megatron_dna.parallel.engine import SegmentEngine, StageResult
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.schedule import SegmentSchedule
from tests.dist.harness import run_ranks

SHAPE = (2, 1, 4)
PIPELINE = "parallel.pipeline_model_parallel_size"
PATIENCE = datetime.timedelta(seconds=20)


class _Meeting:
    """`torch.distributed` for the engine: `isend` and `irecv` meet before the first transfer."""

    def __init__(self, round_name: str) -> None:
        self.store = dist.distributed_c10d._get_default_store()
        self.round_name = round_name
        self.met: set[tuple[str, int]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def _meet(self, group: dist.ProcessGroup, peer: int) -> None:
        if (group.group_name, peer) in self.met:
            return
        self.met.add((group.group_name, peer))
        own, other = f"{group.rank()}-{peer}", f"{peer}-{group.rank()}"
        prefix = f"{self.round_name}/{group.group_name}"
        self.store.set(f"{prefix}/{own}", "here")
        self.store.wait([f"{prefix}/{other}"], PATIENCE)

    def isend(self, tensor: torch.Tensor, group: Any, group_dst: int) -> Any:
        self._meet(group, group_dst)
        return dist.isend(tensor, group=group, group_dst=group_dst)

    def irecv(self, tensor: torch.Tensor, group: Any, group_src: int) -> Any:
        self._meet(group, group_src)
        return dist.irecv(tensor, group=group, group_src=group_src)


def _run(num_stages: int) -> list[float]:
    """On a rank: the gradient of the first stage's weight (0 elsewhere), for each schedule."""
    overrides = [f"{PIPELINE}={num_stages}", "model.num_layers=4"]
    ring = topology.initialize(load_config(None, overrides), setup_platform("cpu")).ring
    gradients = []
    for number, (segments, depth, windows) in enumerate(SCHEDULES):
        weight = torch.ones((), requires_grad=True)

        def forward(task: Any, hidden: Any, memory: Any, weight: Any = weight) -> StageResult:
            if ring.rank == 0:
                hidden = weight * (torch.ones(SHAPE) if memory is None else 1 + memory)
            hidden = hidden * 1.0
            if ring.rank < ring.size - 1:
                return StageResult(hidden, None, None)
            return StageResult(None, hidden.sum(), hidden * 0.5)

        engine.dist = _Meeting(f"schedule {number}")  # type: ignore[assignment]
        SegmentEngine(
            SegmentSchedule(segments, depth, windows), ring, forward,
            lambda _: SHAPE, SHAPE, torch.float32, torch.device("cpu"),
        ).run(forward_only=False)  # fmt: skip
        gradients.append(0.0 if weight.grad is None else weight.grad.item())
    engine.dist = dist
    topology.shutdown()
    return gradients


SCHEDULES = [(2, -1, 1), (3, -1, 4), (4, 2, 3), (3, 1, 2)]
"""Segments, bptt_depth, windows."""


def _expected(segments: int, depth: int, windows: int) -> float:
    """The same in one process of plain autograd."""
    weight = torch.ones((), requires_grad=True)
    memory, total = None, torch.zeros(())
    for segment in range(segments):
        if memory is not None and depth > 0 and segment % depth == 0:
            memory = memory.detach()
        hidden = weight * (torch.ones(SHAPE) if memory is None else 1 + memory)
        total = total + hidden.sum()
        memory = hidden * 0.5
    (windows * total).backward()
    assert weight.grad is not None
    return weight.grad.item()


def _timeouts() -> list[datetime.timedelta]:
    ring = topology.initialize(load_config(None, [f"{PIPELINE}=2"]), setup_platform("cpu")).ring
    groups = (ring.hidden_group, ring.memory_group)
    return [group._get_backend(torch.device("cpu")).options._timeout for group in groups]


def test_memory_waits_as_long_as_all_else() -> None:
    """Else the group's own time-out ends a rank before a hung one has reported its stack."""
    minutes = load_config(None, []).parallel.timeout_minutes
    for timeouts in run_ranks(_timeouts, 2):
        assert timeouts == [datetime.timedelta(minutes=minutes + 10)] * 2


@pytest.mark.parametrize("num_stages", [2, 4])
def test_no_stage_waits_for_what_it_holds_up(num_stages: int) -> None:
    """Else a run with memory hangs on GPUs, as soon as its windows have two segments."""
    first, *others = run_ranks(_run, num_stages, num_stages)
    assert first == pytest.approx([_expected(*schedule) for schedule in SCHEDULES])
    assert others == [[0.0] * len(SCHEDULES)] * (num_stages - 1)
