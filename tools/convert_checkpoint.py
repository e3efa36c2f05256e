#!/usr/bin/env python3
"""Convert checkpoints between Megatron-Core and Hugging Face."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_dna.training.logs import quiet_libraries, setup_logging

EXAMPLE = """\
example:
  python tools/convert_checkpoint.py to-hf --checkpoint runs/tiny --output models/tiny
  python -c "from transformers import AutoModelForMaskedLM as A; A.from_pretrained('models/tiny')"

  python tools/convert_checkpoint.py from-hf --model models/tiny --output runs/start
  torchrun pretrain_dna_bert.py --config runs/start/config.yaml train.output_dir=runs/more \\
      'data.train=[{prefix: data/genome_train}]' memory.num_mem_tokens=8
"""


def main() -> int:
    """Parse the command line and convert."""
    args = _parse()
    setup_logging("WARNING", rank=0)
    quiet_libraries()
    try:
        print(_to_hf(args) if args.command == "to-hf" else _from_hf(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _to_hf(args: argparse.Namespace) -> str:
    from megatron_dna.checkpoint.folders import resolve
    from megatron_dna.hf.convert import to_hugging_face

    checkpoint = resolve(args.checkpoint)
    to_hugging_face(
        checkpoint, args.output, args.dtype, args.tokenizer, args.max_shard_size, args.vocab_size
    )
    return f"converted {checkpoint} to {args.output}"


def _from_hf(args: argparse.Namespace) -> str:
    from megatron_dna.hf.convert import from_hugging_face

    from_hugging_face(args.model, args.output, args.tokenizer)
    return (
        f"converted {args.model} to {args.output}; go on with\n"
        f"  pretrain_dna_bert.py --config {args.output}/config.yaml train.output_dir=... "
        "data.train=..."
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    to_hf = commands.add_parser(
        "to-hf", help="to a folder for AutoModelForMaskedLM (with memory: trust_remote_code=True)"
    )
    to_hf.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="an iter_... folder, or a run's output folder for its newest checkpoint",
    )
    to_hf.add_argument("--dtype", choices=("bf16", "fp32"), default="fp32")
    to_hf.add_argument("--max-shard-size", default="5GB", help="of one file (default: 5GB)")
    to_hf.add_argument(
        "--vocab-size",
        type=int,
        help="rows of the embedding, those of ids without a token too (default: one a token)",
    )
    from_hf = commands.add_parser(
        "from-hf", help="a ModernBERT or exported folder to the start of a run, at any TP and PP"
    )
    from_hf.add_argument(
        "--model", type=Path, required=True, help="folder with config.json and safetensors"
    )
    origins = {to_hf: "the one the run was given", from_hf: "the model folder's"}
    for command, origin in origins.items():
        command.add_argument("--output", type=Path, required=True, help="folder to make")
        command.add_argument("--tokenizer", type=Path, help=f"tokenizer.json (default: {origin})")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
