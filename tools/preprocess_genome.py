#!/usr/bin/env python
"""Turns genomes into token ids for training: FASTA in, Megatron .bin/.idx and a manifest out.

Writes PREFIX_train.{bin,idx}, with --holdout PREFIX_valid.{bin,idx}, and the manifest PREFIX.json.
A document is a contig's whole stretch between runs of 10 or more N. Lower case becomes upper case,
IUPAC ambiguity codes become N. Older output of the same prefix is replaced, all of it or nothing.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from megatron_dna.data.preprocess import PreprocessOptions, preprocess


def parse_args() -> argparse.Namespace:
    """The command line; its names are those of `PreprocessOptions`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    return parser.parse_args()


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
    valid = f" 'data.valid=[{{prefix: {prefix}_valid}}]'" if manifest["holdout"] else ""
    print(
        "next: torchrun --nproc_per_node 2 pretrain_dna_bert.py --config examples/tiny.yaml "
        f"data.tokenizer={manifest['tokenizer']['path']} "
        f"'data.train=[{{prefix: {prefix}_train}}]'{valid}"
    )


def main() -> None:
    """Preprocesses, then says what was made."""
    args = vars(parse_args())
    args["fasta"], args["holdout"] = tuple(args["fasta"]), tuple(args["holdout"])
    # A batch system's first signal should clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("preprocess_genome: terminated"))
    try:
        options = PreprocessOptions(**args, command=tuple(sys.argv))
        manifest = preprocess(options)
    except (ValueError, OSError) as error:
        sys.exit(f"preprocess_genome: {error}")
    except KeyboardInterrupt:
        sys.exit("preprocess_genome: interrupted")
    print_summary(options.output_prefix, manifest)


if __name__ == "__main__":
    main()
