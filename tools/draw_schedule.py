#!/usr/bin/env python3
"""Draw the order in which pipeline stages work through segments and micro-batches.

Each row is a stage, each box a forward (blue) or backward (orange) task: its number is the
micro-batch, darker boxes are later segments, white is waiting. See docs/memory.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_dna.training.logs import quiet_libraries

EXAMPLE = """\
example:
  python tools/draw_schedule.py --num-stages 4 --num-microbatches 4 --num-segments 3 \\
      --output schedule.png
"""
MAX_TASKS = 5000


def main() -> int:
    """Draw; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-stages", type=int, default=4, metavar="P")
    parser.add_argument("--num-microbatches", type=int, default=4, metavar="N")
    parser.add_argument("--num-segments", type=int, default=3, metavar="S")
    parser.add_argument(
        "--bptt-depth", type=int, default=-1, metavar="W", help="segments of a group; -1: all"
    )
    parser.add_argument("--output", type=Path, default=Path("schedule.png"), metavar="PNG")
    args = parser.parse_args()
    try:
        check(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    quiet_libraries()
    from megatron_dna.parallel.schedule import SegmentSchedule
    from megatron_dna.training.plots import plot_schedule

    schedule = SegmentSchedule(args.num_segments, args.bptt_depth, args.num_microbatches)
    plot_schedule(schedule, args.num_stages, args.output)
    print(f"wrote {args.output}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be drawn.

    Raises:
        ValueError: names the option, its value and the rule.
    """
    for name in ("num_stages", "num_microbatches", "num_segments"):
        value = getattr(args, name)
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} ({value}) must be at least 1")
    depth = args.bptt_depth
    if depth != -1 and not 1 <= depth <= args.num_segments:
        raise ValueError(f"--bptt-depth ({depth}) must be -1 or lie between 1 and --num-segments")
    tasks = 2 * args.num_stages * args.num_microbatches * args.num_segments
    if tasks > MAX_TASKS:
        raise ValueError(f"{tasks} boxes are too many to see; lower the numbers ({MAX_TASKS})")
    if not args.output.parent.is_dir():
        raise ValueError(f"--output ({args.output}): its folder is not there")


if __name__ == "__main__":
    sys.exit(main())
