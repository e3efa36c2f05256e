#!/usr/bin/env python3
"""Embed a whole genome: one vector a bin of bases, in a Zarr store.

Memory does not grow with the genome. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_dna.training.logs import quiet_libraries, setup_logging

EXAMPLE = """\
example:
  python tools/embed_genome.py --model models/tiny --fasta genome.fa --output embeddings
  python -c "import zarr; print(zarr.open_group('embeddings/embeddings.zarr')['embedding'])"
"""


def main() -> int:
    """Parse the command line and embed; returns the exit status."""
    args = _parse()
    setup_logging("INFO", rank=0)
    quiet_libraries()
    try:
        _embed(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"embedded {args.fasta} to {args.output}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder, plain or RMT")
    parser.add_argument("--fasta", type=Path, required=True, help="plain or bgzipped")
    parser.add_argument("--output", type=Path, required=True, help="folder of the store")
    parser.add_argument("--resolution", type=int, default=128, help="bases of a bin (default: 128)")
    parser.add_argument("--pool", choices=("mean", "max"), default="mean")
    parser.add_argument(
        "--layer", type=int, help="0: embedding, i: after layer i (default: final states)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="segments (default: 16)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), help="default: bf16 on cuda, fp32 on cpu"
    )
    return parser.parse_args()


def _embed(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise ValueError("Zarr is not installed; pip install megatron_dna[inference]") from error
    from megatron_dna.inference.embed import EmbedOptions, embed_genome
    from megatron_dna.inference.stream import StreamModel

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = args.precision or ("bf16" if device.type == "cuda" else "fp32")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = StreamModel(args.model, device, dtype)
    options = EmbedOptions(args.resolution, args.pool, args.layer, args.batch_size)
    with tqdm(unit="bp", unit_scale=True, disable=None) as bar:

        def show(bases: int, total: int) -> None:
            bar.total = total
            bar.update(bases)

        embed_genome(model, args.fasta, args.output, options, progress=show)


if __name__ == "__main__":
    sys.exit(main())
