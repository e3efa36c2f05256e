"""Regions of a genome, as users write them and as the code holds them."""

from __future__ import annotations

import gzip
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

Interval = tuple[int, int]
"""(start, end), 0-based half-open."""

_REGION = re.compile(r"(.+):([0-9]+)-([0-9]+)")


@dataclass(frozen=True, order=True)
class Region:
    """A part of a contig; `start` and `end` are 0-based half-open."""

    contig: str
    start: int
    end: int


def parse_region(text: str, lengths: Mapping[str, int]) -> Region:
    """Reads a region in samtools' syntax: `20:3000001-4000000` is 1-based and inclusive.

    `20` is the whole contig.

    Args:
        text: the region.
        lengths: bases of every contig there is.

    Raises:
        ValueError: the contig is not there, or the region is not inside it.
    """
    match = _REGION.fullmatch(text)
    if text in lengths:
        if match and match[1] in lengths:
            raise ValueError(f"region {text!r} is a contig's name and a part of {match[1]!r}")
        return Region(text, 0, lengths[text])
    name = match[1] if match else text.rpartition(":")[0] or text
    if name not in lengths:
        known = ", ".join(list(lengths)[:5]) + (", ..." if len(lengths) > 5 else "")
        raise ValueError(
            f"region {text!r}: there is no contig {name!r} in the FASTA files; they have {known}"
        )
    start, end = (int(digits) for digits in match.groups()[1:]) if match else (0, 0)
    if not 1 <= start <= end:
        raise ValueError(
            f"region {text!r} must be CONTIG:START-END with 1 <= START <= END (1-based, inclusive)"
        )
    if end > lengths[name]:
        raise ValueError(
            f"region {text!r} ends beyond contig {name!r}, which has {lengths[name]} bases"
        )
    return Region(name, start - 1, end)


def is_bed(text: str) -> bool:
    """Whether a held-out region, as users give it, is a BED file: by its name."""
    return text.endswith((".bed", ".bed.gz"))


def read_bed(path: Path, lengths: Mapping[str, int]) -> list[Region]:
    """The regions of a BED file, plain or gzipped (0-based half-open; three columns are read).

    Args:
        path: the file. Blank lines and lines of `#`, `track` and `browser` are left out.
        lengths: bases of every contig there is.

    Raises:
        ValueError: a line is not BED, a contig is not there, a region is not inside it, or there
            is none. Names the line.
        OSError: the file cannot be read.
    """
    regions = []
    for where, region in _parse_bed(path):
        if region.contig not in lengths:
            raise ValueError(f"{where}: there is no contig {region.contig!r} in the FASTA files")
        if region.end > lengths[region.contig]:
            raise ValueError(
                f"{where} must have 0 <= START < END <= {lengths[region.contig]}, the contig's "
                "length"
            )
        regions.append(region)
    return regions


def _parse_bed(path: Path) -> Iterator[tuple[str, Region]]:
    """Each region, and the words that name its line; no contig is known."""
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode().splitlines()
    except (EOFError, zlib.error, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise ValueError(f"BED file {path} is damaged or no text: {error}") from error
    is_empty = True
    for number, line in enumerate(lines, 1):
        columns = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        where = f"BED file {path}, line {number} ({line[:60]!r})"
        if len(columns) < 3 or not (columns[1].isdecimal() and columns[2].strip().isdecimal()):
            raise ValueError(f"{where} must be CONTIG, START and END, parted by tabs")
        region = Region(columns[0], int(columns[1]), int(columns[2]))
        if region.start >= region.end:
            raise ValueError(f"{where} must have 0 <= START < END")
        is_empty = False
        yield where, region
    if is_empty:
        raise ValueError(f"BED file {path} has no region")


def read_unresolved(regions: Iterable[str]) -> dict[str, list[Interval]]:
    """The bases that regions and BED files name, by contig, while no contig is known yet.

    Equal for the same regions, however they are written; but `20` is not the same as all bases of
    20, as its length is not known.

    Raises:
        ValueError, OSError: see `read_bed`.
    """
    found: dict[str, list[Interval]] = {}
    for text in regions:
        if is_bed(text):
            named = [region for _, region in _parse_bed(Path(text))]
        elif match := _REGION.fullmatch(text):
            named = [Region(match[1], int(match[2]) - 1, int(match[3]))]
        else:
            named = [Region(text, 0, sys.maxsize)]
        for region in named:
            found.setdefault(region.contig, []).append((region.start, region.end))
    return {contig: merge_intervals(intervals) for contig, intervals in found.items()}


def is_excluded(contig: str, patterns: Sequence[str]) -> bool:
    """Whether a contig is one of those named: by name, or by a shell pattern such as `*_alt`."""
    return any(contig == pattern or fnmatchcase(contig, pattern) for pattern in patterns)


def merge_intervals(intervals: Iterable[Interval]) -> list[Interval]:
    """The same bases as sorted intervals that neither overlap nor touch."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def split_interval(interval: Interval, cuts: Iterable[Interval]) -> list[tuple[Interval, bool]]:
    """The parts of an interval outside and inside of `cuts` (as from `merge_intervals`).

    Returns:
        (part, whether it lies inside a cut), in order, none empty; together they are the interval.
    """
    position, end = interval
    parts: list[tuple[Interval, bool]] = []
    for cut_start, cut_end in cuts:
        inside_start, inside_end = max(cut_start, position), min(cut_end, end)
        if inside_start >= inside_end:
            continue
        if position < inside_start:
            parts.append(((position, inside_start), False))
        parts.append(((inside_start, inside_end), True))
        position = inside_end
    if position < end:
        parts.append(((position, end), False))
    return parts
