"""The GPU suite: `make test-gpu`. Without a GPU every test of it is skipped, for one reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from megatron_dna.config import load_config

HERE = Path(__file__).parent


def missing() -> str | None:
    """Why nothing here can run; None if it can."""
    if not torch.cuda.is_available():
        return "tests/gpu needs a CUDA device and none is visible; run `make test-gpu` where one is"
    if importlib.util.find_spec("transformer_engine") is None:
        return "tests/gpu needs Transformer Engine (docs/install.md)"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is in this folder where it cannot run."""
    reason = missing()
    if reason is None:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module", autouse=True)
def on_gpu() -> None:
    """Skips where the tests of a whole suite have put the CPU in CUDA's place."""
    from megatron_dna.parallel.platform import _CpuStandIn

    if _CpuStandIn.installed:
        pytest.skip("this process computes on the CPU in CUDA's place; run `make test-gpu`")


@pytest.fixture(scope="module")
def world() -> Iterator[object]:
    """The GPU as a world of one process, for the tests of one file."""
    from megatron_dna.parallel import topology
    from tests.gpu.bodies import open_world

    yield open_world("cuda")
    topology.shutdown()


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a run on real DNA."""
    from benchmarks.gpu.data import prepare

    return prepare(tmp_path_factory.mktemp("data"), vocab_size=512)


@pytest.fixture
def needs_recipe() -> Callable[[str], None]:
    """Skips a test whose FP8 recipe this GPU or CUDA cannot run."""
    from megatron_dna.config import ConfigError
    from megatron_dna.parallel.accelerator import check_accelerator
    from megatron_dna.parallel.platform import find_accelerator, setup_platform

    def check(recipe: str) -> None:
        config = load_config(None, [f"fp8.recipe={recipe}"])
        try:
            found = find_accelerator(setup_platform("cuda"))
            check_accelerator(config, "transformer_engine", found)
        except ConfigError as error:
            pytest.skip(str(error))

    return check
