#!/usr/bin/env python3
"""Pretrain a DNA BERT with Megatron-Core.

    torchrun --nproc_per_node 2 pretrain_dna_bert.py --config examples/tiny.yaml \\
        parallel.tensor_model_parallel_size=2 train.output_dir=runs/tiny

Without torchrun it is one process. The same command again continues from the newest complete
checkpoint. Every option is described in docs/configuration.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from megatron_dna.checkpoint.folders import CheckpointError
from megatron_dna.config import ConfigError, load_config
from megatron_dna.training.logs import quiet_libraries
from megatron_dna.validation import validate


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
    quiet_libraries()
    try:
        run(args.config, args.overrides)
    except (ValueError, ArithmeticError) as error:
        report(error)
        return 2 if isinstance(error, ValueError) else 3
    return 0


def run(recipe: str | None, overrides: Sequence[str]) -> None:
    """Train to the end; the options are checked before anything slow is imported."""
    config = load_config(recipe, overrides)
    validate(config, int(os.environ.get("WORLD_SIZE", "1")))
    from megatron_dna.training.trainer import Trainer

    trainer = Trainer(config)
    trainer.train()
    trainer.close()


def report(error: Exception) -> None:
    """One line that names what is wrong; from one process if all of them find it."""
    rank = os.environ.get("RANK", "0")
    is_shared = isinstance(error, ConfigError | CheckpointError | ArithmeticError)
    if not is_shared:
        sys.stderr.write(f"error (rank {rank}): {error}\n")
    elif os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(f"error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
