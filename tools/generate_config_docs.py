"""Write docs/configuration.md from the docstrings of megatron_dna/config.py.

example:
  python tools/generate_config_docs.py
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

from megatron_dna import config

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"

HEAD = """\
# Configuration

<!-- Written by `make docs` from megatron_dna/config.py. Change it there. -->

    torchrun --nproc_per_node N pretrain_dna_bert.py --config recipe.yaml section.key=value ...

On GPUs `python tools/launch.py` takes the place of `torchrun` ([faults](faults.md)).

A recipe is a YAML file with the sections below; `section.key=value` on the command line has the
last word. An unknown key, a value of the wrong type, a missing file or a shape that does not divide
ends the run before any process group exists, with one message that names the key, the value, the
rule and the fix. The resolved options are written to `<train.output_dir>/config.yaml` and into
every checkpoint.
"""


def field_docs(owner: type[Any]) -> dict[str, str]:
    """The string literal under each field of a dataclass, by field name, on one line.

    Raises:
        ValueError: a field has none.
    """
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    body = definition.body
    docs = {}
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        match after:
            case ast.Expr(value=ast.Constant(value=str(text))):
                docs[statement.target.id] = " ".join(text.split())
            case _:
                raise ValueError(f"{owner.__name__}.{statement.target.id} has no docstring")
    return docs


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default as it is written in YAML, or `required`."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    if field.default is dataclasses.MISSING:
        return "required"
    value = field.default
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    return f"`{text}`" if text else "`''`"


def table(owner: type[Any], prefix: str) -> str:
    """A Markdown table of a dataclass: option, type, default, meaning."""
    docs = field_docs(owner)
    lines = ["| option | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(owner):
        kind = str(field.type).replace(" | None", " or null").replace("|", "\\|")
        meaning = docs[field.name].replace("|", "\\|")
        lines.append(f"| `{prefix}{field.name}` | {kind} | {default_of(field)} | {meaning} |")
    return "\n".join(lines)


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    sections = {field.name: field.default_factory for field in dataclasses.fields(config.Config)}
    for name, owner in sections.items():
        assert isinstance(owner, type)
        parts.append(f"## {name}\n\n{inspect.getdoc(owner)}\n\n{table(owner, f'{name}.')}\n")
        if owner is config.MemoryConfig:
            for heading, entry in (
                ("Each entry of `memory.curriculum`", config.StageConfig),
                ("Each `until` of a stage", config.UntilConfig),
            ):
                parts.append(f"{heading}:\n\n{table(entry, '')}\n")
        if owner is config.DataConfig:
            parts.append(
                f"Each entry of `data.train` and `data.valid`:\n\n{table(config.BlendSource, '')}\n"
            )
    return "\n".join(parts)


def main() -> None:
    """Rewrite the page."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
