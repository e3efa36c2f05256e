"""Write the table of recipes in docs/planning.md, planned for the GPUs that each recipe names.

A recipe names them in the command of its own plan, in its comment:
`--num-gpus N --gpu NAME`, and `--vocab-size V` where it is not 32000.

example:
  python tools/generate_plan_docs.py
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_dna.config import load_config
from megatron_dna.training.logs import quiet_libraries

if TYPE_CHECKING:
    from megatron_dna.planning.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "planning.md"
RECIPES = ("tiny", "base", "large", "1b", "3b", "7b")
VOCAB_SIZE = 32000
COMMAND = re.compile(r"--num-gpus (\d+) --gpu (\w+)(?: --vocab-size (\d+))?")
TABLE = re.compile(r"(<!-- Written by `make docs`.*? -->\n\n).*?(<!-- end -->)", re.DOTALL)


def recipe_paths() -> list[Path]:
    """The planned recipes, plain and with memory, small ones first."""
    return [ROOT / "examples" / f"{name}{kind}.yaml" for name in RECIPES for kind in ("", "_rmt")]


def plan_recipe(path: Path) -> Plan:
    """The plan of a recipe on the GPUs that it names.

    Raises:
        ValueError: it names none.
    """
    from megatron_dna.planning.gpus import find_gpu
    from megatron_dna.planning.plan import make_plan

    command = COMMAND.search(path.read_text(encoding="utf-8"))
    if command is None:
        raise ValueError(f"{path} must name --num-gpus N --gpu NAME in its comment")
    vocab_size = int(command[3] or VOCAB_SIZE)
    return make_plan(load_config(path), int(command[1]), find_gpu(command[2]), vocab_size)


def render() -> str:
    """The table in Markdown, and an empty line."""
    from megatron_dna.planning.report import GIB, human, layout

    lines = [
        "| recipe | parameters | GPUs | layout | recompute | GiB a GPU | tokens/s/GPU | MFU "
        "| tokens | days | GPU hours |",
        "| --- | ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for path in recipe_paths():
        plan = plan_recipe(path)
        config = plan.config
        lines.append(
            f"| `{path.stem}` | {human(plan.parameters)} | {plan.num_gpus} {plan.gpu.name} "
            f"| {layout(plan)}, {plan.num_microbatches} x {config.train.micro_batch_size} "
            f"| {config.train.recompute_granularity or 'none'} "
            f"| {plan.memory.total / GIB:.1f} of {plan.gpu.memory_gib:g} "
            f"| {human(plan.tokens_per_s / plan.num_gpus)} | {plan.mfu:.0%} "
            f"| {human(plan.tokens)} | {_days(plan.days)} | {plan.gpu_hours:,.0f} |"
        )
    return "\n".join(lines) + "\n\n"


def _days(days: float) -> str:
    return "< 0.1" if days < 0.1 else f"{days:,.1f}"


def main() -> None:
    """Rewrite the table.

    Raises:
        ValueError: the page has no place for it.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    quiet_libraries()
    text, table = PAGE.read_text(encoding="utf-8"), render()
    text, count = TABLE.subn(lambda mark: mark[1] + table + mark[2], text)
    if count != 1:
        raise ValueError(f"{PAGE} must hold the comments around the table once, not {count} times")
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
