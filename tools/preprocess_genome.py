#!/usr/bin/env python3
"""Turns genomes into token ids for training: FASTA in, Megatron .bin/.idx and a manifest out.

Writes PREFIX_train.{bin,idx}, with --holdout PREFIX_valid.{bin,idx}, and the manifest PREFIX.json;
beside each .bin a .coordinates.npz, which takes every token back to the reference. With --vcf the
haplotypes of its samples follow the reference.
A document is a contig's whole stretch between runs of 10 or more N. Lower case becomes upper case,
IUPAC ambiguity codes become N. Older output of the same prefix is replaced, all of it or nothing.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from megatron_dna.data.haplotypes import HaplotypeOptions
from megatron_dna.data.preprocess import PreprocessOptions, preprocess
from megatron_dna.genome.variants import VariantOptions
from megatron_dna.genome.vcf import SampleChoice, read_sample_names

EXAMPLE = """\
example:
  python tools/preprocess_genome.py --fasta examples/data/human_chr20_1-4000000.fa.gz \\
      --holdout 20:3000001-4000000 --tokenizer runs/tokenizer.json --output-prefix runs/chr20

  ... and 500 bases around each variant of both haplotypes of 12 of the people in a VCF file:
      --vcf examples/data/human_kgp_chr20_20samples.vcf.gz --num-samples 12 --variant-context 500
"""
VARIANT_ARGUMENTS = (
    "vcf",
    "samples",
    "samples_file",
    "num_samples",
    "seed",
    "haplotypes",
    "unphased",
    "on_ref_mismatch",
    "variant_context",
)


def parse_args() -> argparse.Namespace:
    """The command line; its names are those of `PreprocessOptions`."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fasta",
        nargs="+",
        required=True,
        type=Path,
        metavar="FASTA",
        help="genomes, plain, gzipped or bgzipped; contig names must be unique",
    )
    parser.add_argument(
        "--tokenizer", required=True, type=Path, help="tokenizer.json (tools/train_tokenizer.py)"
    )
    parser.add_argument(
        "--output-prefix", required=True, type=Path, help="path that every output begins with"
    )
    parser.add_argument(
        "--reverse-complement",
        action="store_true",
        help="add the reverse complement of each document, encoded from sequence, as a document",
    )
    parser.add_argument(
        "--holdout",
        nargs="+",
        action="extend",
        default=[],
        metavar="REGION",
        help="regions for PREFIX_valid, of which PREFIX_train has no base on either strand: "
        "20 or 20:3000001-4000000 (1-based, inclusive)",
    )
    parser.add_argument(
        "--min-length", type=int, default=0, metavar="BP", help="drop shorter stretches"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="threads that encode; the output does not depend on it (default: %(default)s)",
    )
    add_variant_arguments(parser)
    return parser.parse_args()


def add_variant_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked about VCF files."""
    group = parser.add_argument_group("haplotypes")
    group.add_argument(
        "--vcf",
        nargs="+",
        default=[],
        type=Path,
        metavar="VCF",
        help="phased variants, VCF (plain or compressed) or BCF; no index is needed",
    )
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument("--samples", metavar="A,B", help="samples to read (default: all)")
    chosen.add_argument("--samples-file", type=Path, help="the same, one a line")
    group.add_argument("--num-samples", type=int, metavar="N", help="draw N of them at random")
    group.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    group.add_argument(
        "--haplotypes",
        choices=["both", "1", "2"],
        default="both",
        help="the first, second or both alleles of the genotypes (default: %(default)s)",
    )
    group.add_argument(
        "--unphased",
        choices=["error", "skip", "random"],
        default="error",
        help="genotypes like 0/1: refuse, leave as reference, or draw a phase "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--on-ref-mismatch",
        choices=["error", "skip"],
        default="error",
        help="records whose REF is not in the FASTA: refuse, or leave out (default: %(default)s)",
    )
    group.add_argument(
        "--variant-context",
        default="all",
        metavar="BP",
        help="write BP bases on both sides of each variant, or all: whole contigs "
        "(default: %(default)s)",
    )


def take_haplotype_options(args: dict[str, Any]) -> HaplotypeOptions | None:
    """Takes what is about VCF files out of the arguments."""
    taken = {key: args.pop(key) for key in VARIANT_ARGUMENTS}
    if not taken["vcf"]:
        return None
    context = taken["variant_context"]
    if context != "all" and not context.isdecimal():
        raise ValueError(f"--variant-context ({context}) must be a number of bases, or all")
    names = tuple(taken["samples"].split(",")) if taken["samples"] else ()
    if taken["samples_file"]:
        names = read_sample_names(taken["samples_file"])
    seed = taken["seed"]
    return HaplotypeOptions(
        vcf=tuple(taken["vcf"]),
        samples=SampleChoice(names, taken["num_samples"], seed),
        variants=VariantOptions(
            taken["haplotypes"], taken["unphased"], taken["on_ref_mismatch"], seed
        ),
        context=None if context == "all" else int(context),
    )


def print_summary(prefix: Path, manifest: dict[str, Any]) -> None:
    """Says what was made and what to do with it."""
    for split, total in manifest["totals"].items():
        if total["documents"]:
            print(
                f"{prefix}_{split}.bin, .idx: {total['documents']:,} documents, "
                f"{total['bases']:,} bases, {total['tokens']:,} tokens "
                f"({total['bases_per_token']:.2f} bases a token)"
            )
        else:
            print(f"{prefix}_{split}: not written; name regions with --holdout to have one")
    contigs = manifest["contigs"]
    print(
        f"{prefix}.json: manifest of {len(contigs):,} contigs; left out: "
        f"{sum(contig['bases_in_runs_of_n_dropped'] for contig in contigs):,} bases in runs of N, "
        f"{sum(contig['short_stretches_dropped'] for contig in contigs):,} short stretches"
    )
    if "haplotypes" in manifest:
        print_haplotypes(manifest["haplotypes"])
    valid = f" 'data.valid=[{{prefix: {prefix}_valid}}]'" if manifest["holdout"] else ""
    print(
        "next: torchrun --nproc_per_node 2 pretrain_dna_bert.py --config examples/tiny.yaml "
        f"data.tokenizer={manifest['tokenizer']['path']} "
        f"'data.train=[{{prefix: {prefix}_train}}]'{valid}"
    )


def print_haplotypes(manifest: dict[str, Any]) -> None:
    """Says what the alleles other than the reference's have become."""
    rows = manifest["haplotypes"]
    alleles = {key: sum(row["alleles"][key] for row in rows) for key in rows[0]["alleles"]}
    left_out = sum(contig["records_left_out_for_their_ref"] for contig in manifest["contigs"])
    print(
        f"haplotypes: {len(rows):,} of {len(manifest['samples']):,} samples; alleles: "
        + ", ".join(f"{count:,} {name}" for name, count in alleles.items())
        + f"; {left_out:,} records with another REF left out"
    )


def main() -> int:
    """Preprocesses, then says what was made; returns the exit status."""
    args = vars(parse_args())
    args["fasta"], args["holdout"] = tuple(args["fasta"]), tuple(args["holdout"])
    # A batch system's first signal should clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(fail("terminated", 128 + signal.SIGTERM)))
    try:
        args["haplotypes"] = take_haplotype_options(args)
        options = PreprocessOptions(**args, command=tuple(sys.argv))
        manifest = preprocess(options)
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return fail("interrupted", 128 + signal.SIGINT)
    print_summary(options.output_prefix, manifest)
    return 0


def fail(reason: object, status: int = 2) -> int:
    """Says what is wrong; returns the exit status."""
    print(f"error: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
