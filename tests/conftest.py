"""Settings of every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_sessionstart() -> None:
    """Refuse to run when the extension is not the build that was asked for (test-sanitize)."""
    expected = os.environ.get("MEGATRON_DNA_EXPECT_CORE")
    if expected is None:
        return
    from megatron_dna import _core

    if Path(expected).resolve() not in Path(_core.__file__).resolve().parents:
        raise pytest.UsageError(f"megatron_dna._core is {_core.__file__}, not under {expected}")
