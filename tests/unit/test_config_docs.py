"""docs/configuration.md says what config.py says."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """tools/generate_config_docs.py, imported from its file."""
    path = ROOT / "tools" / "generate_config_docs.py"
    spec = importlib.util.spec_from_file_location("generate_config_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_up_to_date(generator: ModuleType) -> None:
    """If this fails, an option changed and its page did not: run `make docs`."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == generator.render(), "docs/configuration.md is out of date: run `make docs`"


def test_option_without_docstring_is_refused(generator: ModuleType) -> None:
    """An option nobody can read about must not slip in."""

    @dataclasses.dataclass
    class Bare:
        silent: int = 1

    with pytest.raises(ValueError, match=r"Bare\.silent has no docstring"):
        generator.field_docs(Bare)
