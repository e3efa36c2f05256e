#!/usr/bin/env python3
"""Read a whole genome with a model: one vector a bin of bases, or a track for a genome browser.

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
  python tools/embed_genome.py --model models/tiny --fasta genome.fa --output tracks --track loss
"""

_DEFAULT_RESOLUTION = 128
_DEFAULT_PASSES = 7  # 14% of the tokens masked at a time, about as in training


def main() -> int:
    """Parse the command line and embed; returns the exit status."""
    args = _parse()
    setup_logging("INFO", rank=0)
    quiet_libraries()
    try:
        _check(args)
        done = _run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(done)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder, plain or RMT")
    parser.add_argument("--fasta", type=Path, required=True, help="plain or bgzipped")
    parser.add_argument("--output", type=Path, required=True, help="folder of what is written")
    bins = parser.add_argument_group("vectors (Zarr store)")
    bins.add_argument("--resolution", type=int, help="bases of a bin (default: 128)")
    bins.add_argument("--pool", choices=("mean", "max"), help="default: mean")
    bins.add_argument(
        "--layer", type=int, help="0: embedding, i: after layer i (default: final states)"
    )
    tracks = parser.add_argument_group("a track instead (values per base)")
    tracks.add_argument("--track", choices=("loss", "entropy"), help="of masked tokens, in nats")
    tracks.add_argument("--format", choices=("bigwig",), help="of the track (default: bigwig)")
    tracks.add_argument(
        "--passes", type=int, metavar="K",
        help="a pass masks every K-th token, K passes mask each once (default: 7)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=16, help="segments (default: 16)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), help="default: bf16 on cuda, fp32 on cpu"
    )
    return parser.parse_args()


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError where options of one kind of output are given for the other."""
    from megatron_dna.hf.command_line import check_installed

    vectors, track = ("resolution", "pool", "layer"), ("format", "passes")
    wrong = [name for name in (vectors if args.track else track) if getattr(args, name) is not None]
    if wrong:
        raise ValueError(
            f"--{wrong[0]} is for {'vectors' if args.track else 'a track'}: "
            f"{'leave it out' if args.track else 'add --track loss or --track entropy'}"
        )
    check_installed("inference", "pybigtools" if args.track else "zarr")


def _run(args: argparse.Namespace) -> str:
    """Do it; returns what was done."""
    from tqdm import tqdm

    from megatron_dna.hf.command_line import find_device_and_dtype, quiet_transformers
    from megatron_dna.inference.embed import EmbedOptions, embed_genome
    from megatron_dna.inference.stream import StreamModel
    from megatron_dna.inference.tracks import TrackOptions, write_track

    quiet_transformers()
    model = StreamModel(args.model, *find_device_and_dtype(args), masked_lm=bool(args.track))
    with tqdm(unit="bp", unit_scale=True, disable=None) as bar:

        def show(bases: int, total: int) -> None:
            bar.total = total
            bar.update(bases)

        if args.track:
            passes = _DEFAULT_PASSES if args.passes is None else args.passes
            options = TrackOptions(args.track, passes, args.batch_size)
            path = write_track(model, args.fasta, args.output, options, progress=show)
            return f"wrote {path}"
        resolution = _DEFAULT_RESOLUTION if args.resolution is None else args.resolution
        bins = EmbedOptions(resolution, args.pool or "mean", args.layer, args.batch_size)
        embed_genome(model, args.fasta, args.output, bins, progress=show)
    return f"embedded {args.fasta} to {args.output}"


if __name__ == "__main__":
    sys.exit(main())
