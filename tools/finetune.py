#!/usr/bin/env python3
"""Fine-tune a model folder, plain or with memory, on a task.

All weights or, with training.lora_rank above 0, low-rank adapters. The same command again goes on
from the last epoch of a run that was stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from megatron_dna.training.logs import quiet_libraries, setup_logging

EXAMPLE = """\
example:
  python tools/finetune.py --model models/tiny --task examples/benchmarks/shuffled_dna.yaml \\
      --output runs/shuffled
  python tools/finetune.py --model models/tiny --task examples/benchmarks/splice_sites.yaml \\
      --data-root data --output runs/splice training.lora_rank=8 training.learning_rate=1e-3

docs/finetuning.md lists the options of a task; any of them can be overridden here.
"""


def main() -> int:
    """Parse the command line and fine-tune; returns the exit status."""
    args = _parse()
    setup_logging("INFO", rank=0)
    quiet_libraries()
    try:
        summary = _finetune(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for part, scores in summary["scores"].items():
        print(f"{part:6}" + "".join(f"{name} {value:.4f}  " for name, value in scores.items()))
    print(f"wrote {args.output}; the model is in {args.output / 'model'}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder, plain or RMT")
    parser.add_argument("--task", type=Path, required=True, help="YAML of the task")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--data-root", type=Path, help="replaces ${data_root} in the task's paths")
    parser.add_argument("--fold", type=int, default=0, help="the fold to test on (default: 0)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args()


def _finetune(args: argparse.Namespace) -> dict[str, Any]:
    from megatron_dna.hf.command_line import check_installed, find_device, quiet_transformers

    check_installed("finetune", "accelerate", "peft", "sklearn")

    from megatron_dna.finetune.models import ModelFolder
    from megatron_dna.finetune.run import run_finetune
    from megatron_dna.finetune.tasks import load_task

    quiet_transformers()
    task = load_task(args.task, args.overrides, args.data_root)
    model = ModelFolder(args.model, find_device(args.device))
    return run_finetune(task, model, args.output, args.fold)


if __name__ == "__main__":
    sys.exit(main())
