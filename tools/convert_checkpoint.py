#!/usr/bin/env python3
"""Convert checkpoints between Megatron-Core and Hugging Face."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from megatron_dna.training.logs import quiet_libraries

EXAMPLE = """\
example:
  python tools/convert_checkpoint.py to-hf --checkpoint runs/tiny --output models/tiny
  python -c "from transformers import AutoModelForMaskedLM as A; A.from_pretrained('models/tiny')"
"""


def main() -> int:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    to_hf = commands.add_parser(
        "to-hf", help="to a folder for AutoModelForMaskedLM (ModernBERT, no remote code)"
    )
    to_hf.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="an iter_... folder, or a run's output folder for its newest checkpoint",
    )
    to_hf.add_argument("--output", type=Path, required=True, help="folder to make")
    to_hf.add_argument("--dtype", choices=("bf16", "fp32"), default="fp32")
    to_hf.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json (default: the one the run was given)"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    from megatron_dna.checkpoint.folders import resolve
    from megatron_dna.hf.convert import to_hugging_face

    try:
        checkpoint = resolve(args.checkpoint)
        to_hugging_face(checkpoint, args.output, args.dtype, args.tokenizer)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"converted {checkpoint} to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
