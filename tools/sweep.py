#!/usr/bin/env python3
"""Try options of a run: learning rates, shapes, mixtures of data sets.

Each trial is a run of its own in TRAIN.OUTPUT_DIR/trial_NNNN, as a child process here or as a Slurm
job. What comes of it is kept in TRAIN.OUTPUT_DIR/sweep.db; the same command again goes on, whatever
ended it. At the end report.md, trials.csv, loss.png and parameters.png are written there. See
docs/sweeps.md.

Exit status: 0 done, 1 no trial is complete, 2 a bad option or file, 75 asked to stop (SIGTERM,
SIGUSR1 or ^C): start it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_dna.training.logs import quiet_libraries, setup_logging

if TYPE_CHECKING:
    from megatron_dna.sweep.runners import Runner
    from megatron_dna.sweep.spec import Sweep

EXAMPLE = """\
examples (`make quickstart` makes the data of the first):
  python tools/sweep.py --config examples/tiny.yaml \\
      --sweep examples/sweeps/learning_rate_x_width.yaml train.output_dir=runs/lr_x_width
  python tools/sweep.py --config examples/base.yaml --sweep examples/sweeps/mixture.yaml \\
      --jobs 2 --gpus 0-7 --nproc-per-node 4 train.output_dir=runs/mixture
  python tools/sweep.py --config examples/base.yaml --sweep examples/sweeps/mixture.yaml \\
      --slurm --jobs 4 --nproc-per-node 8 train.output_dir=/scratch/mixture
  python tools/sweep.py --report train.output_dir=runs/lr_x_width
"""
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path("slurm/pretrain.sbatch")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, metavar, text in (
        ("--config", "RECIPE.yaml", "options of every trial"),
        ("--sweep", "SWEEP.yaml", "what to vary"),
        ("--cores", "LIST", "share these cores equally among the trials at once, such as 0-7"),
        ("--gpus", "LIST", "share these GPUs equally among the trials at once, such as 0-3"),
    ):
        parser.add_argument(option, metavar=metavar, help=text)
    for option, text in (
        ("--jobs", "trials at once"),
        ("--nproc-per-node", "processes of a trial on a node"),
        ("--nodes", "nodes of a trial, with --slurm"),
    ):
        parser.add_argument(
            option, type=int, default=1, metavar="N", help=f"{text} (default: %(default)s)"
        )
    parser.add_argument("--slurm", action="store_true", help=f"make each trial a job of {SCRIPT}")
    parser.add_argument(
        "--sbatch",
        default="",
        metavar="OPTIONS",
        help="more options of sbatch: --sbatch='--gpus-per-node=1 --time=2:00:00'",
    )
    parser.add_argument(
        "--report", action="store_true", help="only write tables and pictures of what there is"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="options of every trial that have the last word",
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep, or report on it; returns the exit status."""
    args = parse_arguments(arguments)
    quiet_libraries()
    try:
        if importlib.util.find_spec("optuna") is None:
            raise ValueError("sweeps need optuna; pip install 'megatron_dna[sweep]'")
        check(args)
        from megatron_dna.sweep.control import TrialError

        try:
            return run(args)
        except TrialError as error:
            raise ValueError(f"{error}; put it right, and the same command goes on") from error
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def check(args: argparse.Namespace) -> None:
    """Refuse options that mean nothing together.

    Raises:
        ValueError: names the option, its value and the rule.
    """
    for name in ("jobs", "nproc_per_node", "nodes"):
        if getattr(args, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} ({getattr(args, name)}) must be at least 1")
    if args.sweep is None and not args.report:
        raise ValueError("--sweep is missing; pass the path of a sweep file (YAML)")
    if args.slurm:
        for name in ("cores", "gpus"):
            if getattr(args, name) is not None:
                raise ValueError(
                    f"--{name} ({getattr(args, name)}) does not go with --slurm; ask for them in "
                    "--sbatch"
                )
        if not SCRIPT.is_file():
            raise ValueError(f"--slurm: {SCRIPT} is not there; start it in the repository's root")
    elif args.nodes != 1 or args.sbatch:
        raise ValueError("--nodes and --sbatch go with --slurm")


def run(args: argparse.Namespace) -> int:
    """Make the trials that are left, then report.

    Raises:
        ValueError: names the option, its value and the rule.
        TrialError: a trial was refused.
    """
    from megatron_dna.config import load_config
    from megatron_dna.finetune.report import text_table
    from megatron_dna.sweep.control import Controller
    from megatron_dna.sweep.report import table, write_report
    from megatron_dna.sweep.spec import read_sweep
    from megatron_dna.sweep.store import TrialStore, load_study
    from megatron_dna.training.lock import OutputLock
    from megatron_dna.training.signals import REQUEUE_EXIT_STATUS, STOP_SIGNALS, StopRequest

    base = load_config(args.config, args.overrides)
    folder = Path(base.train.output_dir)
    is_done = True
    if not args.report:
        sweep = read_sweep(Path(args.sweep), base, args.nproc_per_node * args.nodes)
        runner = make_runner(args, sweep)
        setup_logging(base.logging.level, 0)
        lock = OutputLock(folder)
        lock.claim()
        stop = StopRequest((*STOP_SIGNALS, signal.SIGINT))
        is_done = Controller(sweep, TrialStore(sweep), runner, args.jobs, stop).run()
    study = load_study(folder)
    write_report(study, folder)
    print(text_table(table(study)))
    print(f"report.md, trials.csv and pictures are in {folder}")
    if not is_done:
        return REQUEUE_EXIT_STATUS
    return 0 if args.report or any(trial.value is not None for trial in study.trials) else 1


def make_runner(args: argparse.Namespace, sweep: Sweep) -> Runner:
    """Child processes or Slurm jobs."""
    from megatron_dna.sweep.runners import (
        LocalRunner,
        SlurmRunner,
        divide,
        parse_numbers,
    )

    if args.slurm:
        options = [f"--nodes={args.nodes}", *shlex.split(args.sbatch)]
        environment = {"NPROC": str(args.nproc_per_node)}
        return SlurmRunner(SCRIPT, sweep.options.name, options, environment)
    numbers = [
        None if text is None else parse_numbers(option, text)
        for option, text in (("--cores", args.cores), ("--gpus", args.gpus))
    ]
    command = [
        sys.executable, str(ROOT / "tools/launch.py"), "--standalone", "--nproc-per-node",
        str(args.nproc_per_node), str(ROOT / "pretrain_dna_bert.py"),
    ]  # fmt: skip
    return LocalRunner(command, divide(args.jobs, *numbers))


if __name__ == "__main__":
    sys.exit(main())
