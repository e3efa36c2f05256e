"""The manifest of a preprocessed genome: what went in, what came out, and where each base went.

It is the last file to be written: where it is, the set of files is complete.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import megatron_dna
from megatron_dna.genome.corpus import SPLITS, ContigSummary, Document, Plan

FORMAT = "megatron_dna genome 1"

_JOINED = (
    "duplicate_windows",
    "totals",
    "holdout",
    "excluded",
    "contigs",
    "documents",
    "haplotypes",
)
"""What a manifest says of the output, in its order."""

Counted = tuple[Document, int]
"""A document and its tokens."""


def describe(plan: Plan, tokens: Sequence[int]) -> dict[str, Any]:
    """What the plan made of the contigs. Coordinates are 0-based half-open, on the forward strand.

    Row n of `documents[split]` is document n of the split's .idx. No interval of `documents.train`
    meets one of `holdout`: that is the proof that nothing held out is in training.

    Args:
        plan: of the documents.
        tokens: of each document of the plan.
    """
    counted = list(zip(plan.documents, tokens, strict=True))
    by_contig: dict[str, list[Counted]] = {contig.name: [] for contig in plan.contigs}
    dropped: dict[str, list[Document]] = {contig.name: [] for contig in plan.contigs}
    for document, count in counted:
        by_contig[document.contig].append((document, count))
    for document in plan.dropped:
        dropped[document.contig].append(document)
    return {
        "totals": _by_split(counted),
        "holdout": [
            {"contig": region.contig, "start": region.start, "end": region.end}
            for region in plan.holdout
        ],
        **({"excluded": _describe_excluded(plan.excluded)} if plan.excluded else {}),
        "contigs": [
            _describe_contig(contig, by_contig[contig.name], dropped[contig.name])
            for contig in plan.contigs
        ],
        "documents": {
            split: [
                {
                    "contig": document.contig,
                    "start": document.start,
                    "end": document.end,
                    "strand": document.strand,
                    "tokens": count,
                }
                for document, count in counted
                if document.split == split
            ]
            for split in SPLITS
        },
    }


def join(manifests: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What `describe` would say of the whole, from what it said of its parts, in order.

    Memory: that of the whole, and of no more than two parts at a time.
    """
    parts = iter(manifests)
    first = next(parts)
    whole = {key: first[key] for key in _JOINED if key in first}
    for part in parts:
        whole["totals"] = _join_counts([whole["totals"], part["totals"]])
        _add_rows(whole["contigs"], part["contigs"])
        for split in SPLITS:
            whole["documents"][split] += part["documents"][split]
        if "haplotypes" in whole:
            _add_rows(whole["haplotypes"]["haplotypes"], part["haplotypes"]["haplotypes"])
    return whole


def add_haplotypes(manifest: dict[str, Any], haplotypes: Mapping[str, Any]) -> None:
    """Adds `HaplotypeSource.describe` to what `describe` said of the reference."""
    rows = [row | _join_counts([row]) for row in haplotypes["haplotypes"]]
    manifest["totals"] = _join_counts([manifest["totals"], *rows])
    manifest["haplotypes"] = {**haplotypes, "haplotypes": rows}


def _add_rows(rows: Sequence[dict[str, Any]], others: Sequence[Mapping[str, Any]]) -> None:
    """Adds the counts of another part to rows of contigs or haplotypes."""
    for row, other in zip(rows, others, strict=True):
        row |= _join_counts([row, other])


def versions() -> dict[str, str]:
    """Of what can change the output."""
    return {
        "megatron_dna": megatron_dna.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def encode_manifest(manifest: Mapping[str, Any]) -> str:
    """JSON with one contig and one document a line, so that it can be read and searched by line."""
    return _encode(manifest, "", depth=3) + "\n"


def check_replaceable(path: Path) -> None:
    """Raises unless there is nothing at `path`, or an older manifest.

    Raises:
        ValueError: the file is something else.
    """
    if path.exists():
        with path.open("rb") as stream:
            if FORMAT.encode() not in stream.read(200):
                raise ValueError(f"{path} is there and is no manifest of this tool; move it away")


def write_durably(path: Path, text: str) -> None:
    """Writes a text file so that it is on the disk when this returns."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _describe_excluded(contigs: Sequence[ContigSummary]) -> list[dict[str, Any]]:
    return [
        {"name": contig.name, "fasta": str(contig.path), "bases": contig.length}
        for contig in contigs
    ]


def _describe_contig(
    contig: ContigSummary,
    documents: Sequence[Counted],
    dropped: Sequence[Document],
) -> dict[str, Any]:
    return {
        "name": contig.name,
        "fasta": str(contig.path),
        "bases": contig.length,
        "ambiguous_bases": contig.num_ambiguous,
        "runs_of_n_dropped": len(contig.gaps),
        "bases_in_runs_of_n_dropped": sum(end - start for start, end in contig.gaps),
        "short_stretches_dropped": len(dropped),
        "bases_in_short_stretches_dropped": sum(document.length for document in dropped),
        **_by_split(documents),
    }


def _by_split(documents: Sequence[Counted]) -> dict[str, Any]:
    return {
        split: _count(
            [(document, tokens) for document, tokens in documents if document.split == split]
        )
        for split in SPLITS
    }


def _count(documents: Sequence[Counted]) -> dict[str, Any]:
    """Documents, bases and tokens; both strands count where both are there."""
    num_bases = sum(document.length for document, _ in documents)
    return _totals(len(documents), num_bases, sum(tokens for _, tokens in documents))


def _totals(num_documents: int, num_bases: int, num_tokens: int) -> dict[str, Any]:
    return {
        "documents": num_documents,
        "bases": num_bases,
        "tokens": num_tokens,
        "bases_per_token": round(num_bases / num_tokens, 4) if num_tokens else None,
    }


def _join_counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        split: _totals(
            *(sum(row[split][key] for row in rows) for key in ("documents", "bases", "tokens"))
        )
        for split in SPLITS
    }


def _encode(value: Any, indent: str, depth: int) -> str:
    """JSON; `depth` levels of objects are spread over lines, what is in a list takes one line."""
    if depth == 0 or not value or not isinstance(value, (Mapping, list)):
        return json.dumps(value)
    inner = indent + "  "
    if isinstance(value, list):
        rows, (left, right) = [json.dumps(item) for item in value], "[]"
    else:
        rows = [f"{json.dumps(k)}: {_encode(v, inner, depth - 1)}" for k, v in value.items()]
        left, right = "{}"
    return left + ",".join(f"\n{inner}{row}" for row in rows) + f"\n{indent}{right}"
