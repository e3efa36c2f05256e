#!/usr/bin/env python3
"""Turns genomes into token ids for training: FASTA in, Megatron .bin/.idx and a manifest out.

Writes PREFIX_train.{bin,idx}, with --holdout PREFIX_valid.{bin,idx}, and the manifest PREFIX.json.
A document is a contig's whole stretch between runs of 10 or more N. Lower case becomes upper case,
IUPAC ambiguity codes become N. Older output of the same prefix is replaced, all of it or nothing.
A killed run goes on where it stopped when the same command is given again.

Beside each .bin lies a .coordinates.npz, which takes every token back to the reference.

With --vcf, the haplotypes of samples follow the reference: whole contigs, or windows around their
variants.

With --corpus, a YAML file names the sources (docs/data.md). Each has its files in --output-dir, and
blend.yaml there has the data section of a training recipe. --shard I/N makes the I-th of N parts
of all files, for a batch system; --merge then joins them.
"""

import argparse
import re
import signal
import sys
from pathlib import Path
from typing import Any

from megatron_dna.data.corpora import (
    BLEND_FILE,
    merge_corpus,
    preprocess_corpus,
    read_corpus,
    write_blend,
)
from megatron_dna.data.haplotypes import HAPLOTYPE_KEYS, parse_haplotype_options
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess

EXAMPLE = """\
examples:
  python tools/preprocess_genome.py --fasta examples/data/human_chr20_1-4000000.fa.gz \\
      --holdout 20:3000001-4000000 --tokenizer runs/tokenizer.json --output-prefix runs/chr20
  python tools/preprocess_genome.py --fasta examples/data/human_chr20_1-4000000.fa.gz \\
      --vcf examples/data/human_kgp_chr20_20samples.vcf.gz --num-samples 12 --variant-context 500 \\
      --tokenizer runs/tokenizer.json --output-prefix runs/chr20_variants
  python tools/preprocess_genome.py --corpus examples/corpora/example.yaml \\
      --output-dir runs/corpus --workers 2
"""


def parse_args() -> argparse.Namespace:
    """The command line; its names are those of `PreprocessOptions`."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--fasta",
        nargs="+",
        type=Path,
        metavar="FASTA",
        help="genomes, plain, gzipped or bgzipped; contig names must be unique",
    )
    what.add_argument("--corpus", type=Path, metavar="YAML", help="a file that names sources")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="threads that encode; the output does not depend on it (default: %(default)s)",
    )
    _add_options_of_fasta(parser.add_argument_group("with --fasta"))
    _add_options_of_vcf(parser.add_argument_group("with --fasta and --vcf"))
    corpus = parser.add_argument_group("with --corpus")
    corpus.add_argument("--output-dir", type=Path, help="folder of all output")
    corpus.add_argument(
        "--data-dir",
        type=Path,
        help="what paths in the corpus file are relative to (default: its folder)",
    )
    step = corpus.add_mutually_exclusive_group()
    step.add_argument("--shard", metavar="I/N", help="make the I-th of N parts, I from 1 on")
    step.add_argument("--merge", action="store_true", help="join the parts, when all are there")
    args = parser.parse_args()
    needed, other = ("fasta", "corpus") if args.fasta else ("corpus", "fasta")
    for name in NEEDED[needed]:
        if getattr(args, name) is None:
            parser.error(f"--{needed} needs --{name.replace('_', '-')}")
    for name in (*NEEDED[other], *OPTIONAL[other]):
        value = getattr(args, name)
        if value is not None and value is not False:  # 0 is given
            parser.error(f"--{name.replace('_', '-')} goes with --{other}, not with --{needed}")
    return args


NEEDED = {"fasta": ("tokenizer", "output_prefix"), "corpus": ("output_dir",)}
OPTIONAL = {
    "fasta": (
        "reverse_complement",
        "holdout",
        "exclude",
        "min_length",
        "drop_duplicate_windows",
        *HAPLOTYPE_KEYS,
    ),
    "corpus": ("data_dir", "shard", "merge"),
}


def _add_options_of_fasta(group: Any) -> None:
    group.add_argument("--tokenizer", type=Path, help="tokenizer.json (tools/train_tokenizer.py)")
    group.add_argument("--output-prefix", type=Path, help="path that every output begins with")
    group.add_argument(
        "--reverse-complement",
        action="store_true",
        help="add the reverse complement of each document, encoded from sequence, as a document",
    )
    group.add_argument(
        "--holdout",
        nargs="+",
        action="extend",
        metavar="REGION",
        help="regions for PREFIX_valid, of which PREFIX_train has no base on either strand: "
        "20, 20:3000001-4000000 (1-based, inclusive) or a BED file",
    )
    group.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        metavar="CONTIG",
        help="contigs for neither file, by name or shell pattern, such as '*_alt' 'chrUn_*', which "
        "would bring copies of what is held out into training",
    )
    group.add_argument("--min-length", type=int, metavar="BP", help="drop shorter stretches")
    group.add_argument(
        "--drop-duplicate-windows",
        type=int,
        metavar="BP",
        help="leave windows of about BP bases out of training that it has already, on either "
        "strand: of haplotypes, repeats or other files",
    )


def _add_options_of_vcf(group: Any) -> None:
    group.add_argument(
        "--vcf",
        nargs="+",
        type=Path,
        help="phased variants: VCF, plain or compressed, or BCF; sorted, no index is needed",
    )
    group.add_argument("--samples", metavar="A,B", type=lambda text: text.split(","))
    group.add_argument("--samples-file", type=Path, help="samples, one a line (default: all)")
    group.add_argument("--num-samples", type=int, metavar="N", help="draw N of the samples")
    group.add_argument("--seed", type=int, help="of all draws (default: 0)")
    group.add_argument(
        "--haplotypes", metavar="both|1|2", help="which alleles of the genotypes (default: both)"
    )
    group.add_argument(
        "--unphased",
        metavar="error|skip|random",
        help="genotypes like 0/1: refuse, leave as reference, or draw a phase (default: error)",
    )
    group.add_argument(
        "--on-ref-mismatch",
        metavar="error|skip",
        help="records whose REF is not in the FASTA: refuse, or leave out (default: error)",
    )
    group.add_argument(
        "--variant-context",
        metavar="BP|all",
        help="write BP bases on both sides of each variant, or whole contigs (default: all)",
    )
    group.add_argument(
        "--no-reference",
        action="store_true",
        help="write haplotypes alone, to be blended by weight with a prefix of the reference",
    )


def print_summary(prefix: Path, manifest: dict[str, Any]) -> None:
    """Says what was made."""
    for split, total in manifest["totals"].items():
        if total["documents"]:
            print(
                f"{prefix}_{split}.bin, .idx: {total['documents']:,} documents, "
                f"{total['bases']:,} bases, {total['tokens']:,} tokens "
                f"({total['bases_per_token']:.2f} bases a token)"
            )
        else:
            print(
                f"{prefix}_{split}: not written; "
                + (
                    "no document is for it"
                    if manifest["holdout"]
                    else "name regions with --holdout to have one"
                )
            )
    contigs = manifest["contigs"]
    print(
        f"{prefix}.json: manifest of {len(contigs):,} contigs; left out: "
        f"{sum(contig['bases_in_runs_of_n_dropped'] for contig in contigs):,} bases in runs of N, "
        f"{sum(contig['short_stretches_dropped'] for contig in contigs):,} short stretches"
    )
    if "excluded" in manifest:
        excluded = manifest["excluded"]
        print(
            f"excluded: {len(excluded):,} contigs, "
            f"{sum(contig['bases'] for contig in excluded):,} bases"
        )
    if "duplicate_windows" in manifest:
        dropped = manifest["duplicate_windows"]
        print(
            f"duplicates: {dropped['windows_dropped']:,} of {dropped['windows']:,} windows of "
            f"training, {dropped['bases_dropped']:,} bases, left out"
        )
    if "haplotypes" in manifest:
        print_haplotypes(manifest["haplotypes"])


def print_haplotypes(manifest: dict[str, Any]) -> None:
    """Says what has become of the alleles other than the reference's."""
    rows = manifest["haplotypes"]
    alleles = {key: sum(row["alleles"][key] for row in rows) for key in rows[0]["alleles"]}
    left_out = sum(contig["records_left_out_for_their_ref"] for contig in manifest["contigs"])
    print(
        f"haplotypes: {len(rows):,} of {len(manifest['samples']):,} samples; alleles: "
        + ", ".join(f"{count:,} {name}" for name, count in alleles.items())
        + f"; {left_out:,} records with another REF left out"
    )


def print_next(data: dict[str, Any]) -> None:
    """Says what to do with it; `data` is the section of a recipe."""
    blends = []
    for split in ("train", "valid"):
        sources = [
            "{" + ", ".join(f"{key}: {value}" for key, value in source.items()) + "}"
            for source in data[split]
        ]
        if sources:
            blends.append(f"'data.{split}=[{', '.join(sources)}]'")
    print(
        "next: torchrun --nproc_per_node 2 pretrain_dna_bert.py --config examples/tiny.yaml "
        f"data.tokenizer={data['tokenizer']} {' '.join(blends)}"
    )


def recorded_command() -> tuple[str, ...]:
    """The command line for the manifest, without the options that do not change the output."""
    how = argparse.ArgumentParser(add_help=False)
    how.add_argument("--workers")
    how.add_argument("--shard")
    how.add_argument("--merge", action="store_true")
    return (sys.argv[0], *how.parse_known_args()[1])


def run_fasta(args: argparse.Namespace) -> None:
    """Makes the files of one prefix."""
    options = PreprocessOptions(
        fasta=tuple(args.fasta),
        tokenizer=args.tokenizer,
        output_prefix=args.output_prefix,
        reverse_complement=args.reverse_complement,
        holdout=tuple(args.holdout or ()),
        exclude=tuple(args.exclude or ()),
        min_length=args.min_length or 0,
        haplotypes=parse_haplotype_options({key: getattr(args, key) for key in HAPLOTYPE_KEYS}),
        drop_duplicate_windows=args.drop_duplicate_windows or 0,
        workers=args.workers,
        command=recorded_command(),
    )
    manifest = preprocess(options)
    print_summary(args.output_prefix, manifest)
    print_next(
        {
            "tokenizer": args.tokenizer,
            "train": [{"prefix": f"{args.output_prefix}_train"}],
            "valid": [{"prefix": f"{args.output_prefix}_valid"}] if manifest["holdout"] else [],
        }
    )


def run_corpus(args: argparse.Namespace) -> None:
    """Makes the files of a corpus, of a shard of it, or joins the shards."""
    sources = read_corpus(
        args.corpus,
        args.output_dir,
        args.data_dir,
        workers=args.workers,
        command=recorded_command(),
    )
    shard = re.fullmatch(r"(\d+)/(\d+)", args.shard or "1/1")
    if shard is None:
        raise ValueError(f"shard ({args.shard}) must be I/N, such as 1/8")
    if args.merge:
        finished = merge_corpus(sources, args.output_dir)
    else:
        parts = (int(shard[1]), int(shard[2])) if args.shard else None
        finished = preprocess_corpus(sources, parts)
    done = []
    for source, manifest in finished:
        print_summary(source.options.output_prefix, manifest)
        done.append((source, manifest))
    if not args.shard:
        path = args.output_dir / BLEND_FILE
        data = write_blend(path, done)
        print(f"{path}: the data section of a training recipe")
        print_next(data)


def main() -> int:
    """Preprocesses, then says what was made; returns the exit status."""
    args = parse_args()
    # A batch system's first signal should clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(fail("terminated", 128 + signal.SIGTERM)))
    try:
        (run_fasta if args.fasta else run_corpus)(args)
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return fail("interrupted", 128 + signal.SIGINT)
    return 0


def fail(reason: object, status: int = 2) -> int:
    """Says what is wrong; returns the exit status."""
    print(f"error: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
