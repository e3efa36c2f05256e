#!/usr/bin/env python3
"""Score the variants of a VCF file, or all of a region, with a model: how likely, how disruptive.

For each ALT allele the masked log-likelihood ratio against REF and the distance of the embeddings
around it, as INFO fields MDNA_LLR and MDNA_DIST; docs/variants.md defines them. The same command
again goes on where it was killed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_dna.training.logs import quiet_libraries, setup_logging

EXAMPLE = """\
example:
  python tools/score_variants.py --model models/tiny --fasta genome.fa --vcf variants.vcf.gz \\
      --output scored.vcf.gz
  bcftools query -f '%CHROM %POS %REF %ALT %MDNA_LLR %MDNA_DIST\\n' scored.vcf.gz

  python tools/score_variants.py --model models/tiny --fasta genome.fa \\
      --in-silico-mutagenesis 20:3000001-3000120 --output mutations.tsv   # and mutations.png
"""


def main() -> int:
    """Parse the command line and score; returns the exit status."""
    args = _parse()
    setup_logging("INFO", rank=0)
    quiet_libraries()
    try:
        print(_score(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder, plain or RMT")
    parser.add_argument("--fasta", type=Path, required=True, help="plain or bgzipped")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--vcf", type=Path, help="VCF or BCF file, of the FASTA's assembly")
    what.add_argument(
        "--in-silico-mutagenesis",
        metavar="REGION",
        help="every other base at every position: CONTIG:START-END, 1-based and inclusive",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help=".vcf.gz, indexed if sorted; of a region a .tsv, and a .png beside it",
    )
    parser.add_argument(
        "--segment-size", type=int, help="tokens of an input (default: the model's, the most)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="inputs (default: 16)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), help="default: bf16 on cuda, fp32 on cpu"
    )
    return parser.parse_args()


def _score(args: argparse.Namespace) -> str:
    from tqdm import tqdm

    from megatron_dna.hf.command_line import find_device_and_dtype, quiet_transformers
    from megatron_dna.inference.masked import MaskedModel
    from megatron_dna.inference.mutagenesis import mutate_region
    from megatron_dna.inference.scored_vcf import score_vcf

    quiet_transformers()
    if args.batch_size < 1:
        raise ValueError(f"--batch-size ({args.batch_size}) must be at least 1")
    model = MaskedModel(args.model, *find_device_and_dtype(args), args.segment_size)
    with tqdm(unit=" variants", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        source = args.vcf or args.in_silico_mutagenesis
        common = (args.fasta, source, args.output, args.batch_size, show)
        if args.vcf is None:
            return f"scored {mutate_region(model, *common)} variants: {args.output}"
        counts = score_vcf(model, *common)
    rest = ", ".join(f"{number} {name}" for name, number in counts.items() if name != "scored")
    return f"scored {counts['scored']} alternatives: {args.output}; without a score: {rest}"


if __name__ == "__main__":
    sys.exit(main())
