"""Skips what is here where Transformer Engine does not run on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.transformer_engine import standin

HERE = Path(__file__).parent
REASON = "needs the Python part of Transformer Engine; run `make test-transformer-engine`"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is in this folder where it cannot run."""
    if standin.is_installed():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="module")
def world() -> Iterator[object]:
    """The CPU as a world of one process, for the tests of one file."""
    from megatron_dna.parallel import topology
    from tests.gpu.bodies import open_world

    yield open_world("cpu")
    topology.shutdown()


@pytest.fixture
def needs_recipe() -> Callable[[str], None]:
    """Every recipe is there."""
    return lambda recipe: None
