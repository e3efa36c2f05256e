"""Import rules that import-linter cannot state: which file may use which module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_dna"


def imported_names(path: Path) -> Iterator[str]:
    """Every module or member that a file imports, anywhere in it, by its full dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = [*parents, node.module] if node.module else parents
            yield from (".".join([*module, alias.name]) for alias in node.names)


def importers(module: str) -> set[str]:
    """The project's own files that import `module` or something in it."""
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tools").glob("*.py"), *ROOT.glob("pretrain*.py")]
    return {
        str(path.relative_to(ROOT))
        for path in files
        if any(f"{name}.".startswith(f"{module}.") for name in imported_names(path))
    }


@pytest.mark.parametrize(
    "line",
    ["import a.b._core", "from a.b import _core", "from a.b._core import Encoder"],
)
def test_every_form_of_import_is_seen(tmp_path: Path, line: str) -> None:
    """If one form is missed, a file can break the rules below unseen."""
    path = tmp_path / "module.py"
    path.write_text(f"def f():\n    {line}\n")
    assert any(f"{name}.".startswith("a.b._core.") for name in imported_names(path))


def test_only_tokenizer_genome_and_data_import_the_extension() -> None:
    """An untyped extension module is used through typed facades only."""
    allowed = ("megatron_dna/tokenizer/", "megatron_dna/genome/", "megatron_dna/data/")
    assert not {f for f in importers("megatron_dna._core") if not f.startswith(allowed)}


def test_only_topology_touches_megatrons_parallel_state() -> None:
    """Megatron's process-group globals have one owner; others are handed what they need."""
    allowed = {"megatron_dna/parallel/topology.py"}
    assert importers("megatron.core.parallel_state") <= allowed
    assert importers("megatron.core.mpu") <= allowed


def test_the_trainer_of_megatron_is_never_imported() -> None:
    """Megatron-Core is the engine; `megatron.training` has its own arguments and globals."""
    assert not importers("megatron.training")
    assert not importers("megatron.legacy")
