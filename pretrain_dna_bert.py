#!/usr/bin/env python3
"""Pretrain a DNA BERT with Megatron-Core.

    torchrun --nproc_per_node 2 pretrain_dna_bert.py --config examples/tiny.yaml \\
        parallel.tensor_model_parallel_size=2 train.output_dir=runs/tiny

Without torchrun it is one process. The same command again continues from the newest complete
checkpoint. Every option is described in docs/configuration.md.

Exit status: 0 done, 2 a bad option or file, 3 training diverged, 75 asked to stop (SIGTERM or
SIGUSR1) and saved: start it again; 1 a crash, or a checkpoint that could not be written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_dna.checkpoint.manifest import CheckpointError
from megatron_dna.config import ConfigError, load_config
from megatron_dna.training.logs import quiet_libraries
from megatron_dna.training.processes import die_with_torchrun
from megatron_dna.training.signals import REQUEUE_EXIT_STATUS
from megatron_dna.validation import validate

if TYPE_CHECKING:
    from megatron_dna.training.trainer import Trainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the options, build the run, train, close. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="RECIPE.yaml", help="options that are not the defaults")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="options that have the last word"
    )
    args = parser.parse_intermixed_args(arguments)
    die_with_torchrun()
    quiet_libraries()
    try:
        trainer = build(args.config, args.overrides)
    except (ValueError, OSError, ArithmeticError) as error:
        report(error)
        return 3 if isinstance(error, ArithmeticError) else 2
    try:
        is_done = trainer.train()
    except (CheckpointError, ArithmeticError) as error:  # all else is a crash, with its stack
        report(error)
        return 3 if isinstance(error, ArithmeticError) else 1
    trainer.close()
    return 0 if is_done else REQUEUE_EXIT_STATUS


def build(recipe: str | None, overrides: Sequence[str]) -> Trainer:
    """The run, ready to train. The options are checked before anything slow is imported."""
    config = load_config(recipe, overrides)
    validate(config, int(os.environ.get("WORLD_SIZE", "1")))
    from megatron_dna.training.trainer import Trainer

    return Trainer(config)


def report(error: Exception) -> None:
    """One line that names what is wrong; from one process if all of them find it."""
    rank = os.environ.get("RANK", "0")
    is_shared = isinstance(error, ConfigError | CheckpointError | ArithmeticError)
    is_shared |= os.environ.get("WORLD_SIZE", "1") == "1"
    if not is_shared:
        sys.stderr.write(f"error (rank {rank}): {error}\n")
    elif os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(f"error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
