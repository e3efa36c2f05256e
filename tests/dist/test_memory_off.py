"""Without memory and with one segment, the machinery of memory changes not a bit."""

from __future__ import annotations

import itertools

import pytest

from megatron_dna.parallel import step as step_module
from tests.dist.harness import run_ranks
from tests.dist.small_run import PP, SP, TP, SmallRun

ONE_MICRO_BATCH = "train.micro_batch_size=8"
"""Of several, gradients would be added in another order."""


def _losses(overrides: list[str], through_segments: bool) -> list[float]:
    run = SmallRun.start([ONE_MICRO_BATCH, *overrides])
    if through_segments:
        # Windows of one segment go through Megatron's schedules; send them through ours.
        def segment_schedule(forward_step_func, data_iterator, **_):
            step = forward_step_func.__self__
            step_module._run_segments(step, list(data_iterator), run.config, run.place)

        step_module.get_forward_backward_func = lambda: segment_schedule
    return run.train(0, 6)


LAYOUTS = {
    "one": (1, []),
    "tp2_sp": (2, [TP, SP]),
    "pp2": (2, [PP]),
    "dp2": (2, ["train.micro_batch_size=4"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_segment_without_memory_is_the_plain_encoder(layout: str):
    """The segment schedule with S = 1 and M = 0 trains as Megatron's own schedules do."""
    world_size, overrides = LAYOUTS[layout]
    plain = run_ranks(_losses, world_size, overrides, False)
    ours = run_ranks(_losses, world_size, overrides, True)
    assert plain == ours
    assert len(set(plain[0])) == 6


@pytest.mark.parametrize("more", [["memory.bptt_depth=1"], ["memory.update=binary"]])
def test_options_of_memory_do_nothing_without_it(more: list[str]):
    """A plain run may not depend on options that do not concern it."""
    results = [run_ranks(_losses, 1, options, False)[0] for options in ([], more)]
    assert all(a == b for a, b in itertools.pairwise(results))
