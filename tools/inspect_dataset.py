#!/usr/bin/env python3
"""Shows what is in a .bin/.idx pair: documents, tokens, bases, GC, where it comes from.

With --window or --document it decodes tokens back to bases, with their reference coordinates
(0-based half-open, on the forward strand; "-" means that the bases are the other strand's). Of a
haplotype they are those of the reference that its bases take the place of.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_dna.training.logs import quiet_libraries

if TYPE_CHECKING:
    from megatron_dna.data.inspect import Dataset, Share, Window

EXAMPLE = """\
example:
  python tools/inspect_dataset.py runs/chr20_train --plot runs/chr20.png
  python tools/inspect_dataset.py runs/chr20_train --window 7 --length 510
  python tools/inspect_dataset.py runs/chr20_train --document 1 --start 40000 --length 20
"""

MAX_ROWS = 10
"""Contigs and files that are listed."""
LINE_LENGTH = 100


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", help="of the pair, without extension: runs/chr20_train")
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json (default: the one the manifest names)"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw a report")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--window", type=int, metavar="N", help="decode window N of the file, from 0, instead"
    )
    what.add_argument("--document", type=int, metavar="D", help="decode tokens of document D")
    parser.add_argument(
        "--start", type=int, default=0, metavar="T", help="first token in the document"
    )
    parser.add_argument(
        "--length", type=int, default=510, metavar="L", help="tokens (default: %(default)s)"
    )
    return parser.parse_args()


def print_summary(dataset: Dataset) -> None:
    """What is in the pair."""
    tokens, counts = dataset.tokens, dataset.base_counts
    longest = int(tokens.lengths.argmax())
    special = int(sum(dataset.token_counts[i] for i in dataset.tokenizer.special_ids))
    used = int((dataset.token_counts > 0).sum())
    lines = {
        "documents": f"{len(tokens):,}",
        "tokens": f"{tokens.num_tokens:,} ({special:,} special)",
        "bases": f"{dataset.num_bases:,}",
        "bases a token": f"{dataset.num_bases / tokens.num_tokens:.3f}",
        "GC": "no bases" if dataset.gc is None else f"{dataset.gc:.2%} of A, C, G and T",
        "N": f"{counts['N']:,} ({counts['N'] / max(dataset.num_bases, 1):.4%})",
        "longest": f"document {longest}, {tokens.lengths[longest]:,} tokens"
        + (f", {dataset.origin(longest)}" if dataset.contigs is not None else ""),
        "shortest": f"{tokens.lengths.min():,} tokens",
        "vocabulary": f"{used:,} of {dataset.tokenizer.vocab_size:,} tokens occur",
    }
    for name, value in lines.items():
        print(f"{name:14}{value}")
    if dataset.contigs is None:
        print("no manifest beside the pair: neither sources nor coordinates are known")
        return
    print_shares("file", dataset.sources, tokens.num_tokens)
    contigs = sorted(dataset.contigs, key=lambda contig: -contig.tokens)
    print_shares("contig", contigs, tokens.num_tokens)
    if len(dataset.samples) > 1:
        samples = sorted(dataset.samples, key=lambda sample: -sample.tokens)
        print_shares("sample", samples, tokens.num_tokens)


def print_shares(what: str, shares: list[Share], num_tokens: int) -> None:
    """A table of the largest shares."""
    print(f"\n{'documents':>12}{'bases':>16}{'tokens':>16}{'share':>9}  {what}")
    for share in shares[:MAX_ROWS]:
        print(
            f"{share.documents:12,}{share.bases:16,}{share.tokens:16,}"
            f"{share.tokens / num_tokens:9.2%}  {share.name}"
        )
    if len(shares) > MAX_ROWS:
        print(f"{len(shares) - MAX_ROWS:12,} more")


def print_window(window: Window) -> None:
    """Where it lies, then its bases."""
    end = window.start + len(window.ids)
    print(f">document {window.document} tokens {window.start}-{end} {window.origin or ''}".rstrip())
    for start in range(0, len(window.bases), LINE_LENGTH):
        print(window.bases[start : start + LINE_LENGTH])


def inspect(args: argparse.Namespace) -> None:
    """Prints what was asked for."""
    quiet_libraries()
    from megatron_dna.data.inspect import Dataset
    from megatron_dna.data.pictures import plot_dataset

    dataset = Dataset(args.prefix, args.tokenizer)
    if args.window is not None:
        print_window(dataset.window(args.window, args.length))
    elif args.document is not None:
        print_window(dataset.decode(args.document, args.start, args.length))
    else:
        print_summary(dataset)
    if args.plot:
        plot_dataset(dataset, args.plot)


def main() -> int:
    """Inspects; returns the exit status."""
    try:
        inspect(parse_args())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
