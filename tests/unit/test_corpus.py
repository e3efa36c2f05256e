"""Regions and documents: every base in exactly one place, checked base by base."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_dna.genome.corpus import (
    ContigSummary,
    Document,
    keep_new,
    plan_documents,
    scan,
)
from megatron_dna.genome.regions import Region, merge_intervals, parse_region, split_interval
from megatron_dna.genome.sequence import find_stretches

LENGTHS = {"20": 100, "HLA:1-9": 50, "HLA": 20, "a:b": 10}


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("20", Region("20", 0, 100)),
        ("20:1-1", Region("20", 0, 1)),
        ("20:31-100", Region("20", 30, 100)),
        ("a:b", Region("a:b", 0, 10)),
        ("a:b:2-10", Region("a:b", 1, 10)),
        ("HLA:1-9:2-3", Region("HLA:1-9", 1, 3)),
    ],
)
def test_regions_are_read_as_samtools_reads_them(text: str, region: Region) -> None:
    """A failure would hold out other bases than those asked for."""
    assert parse_region(text, LENGTHS) == region


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr20", "no contig 'chr20' in the FASTA files; they have 20, HLA:1-9, HLA, a:b"),
        ("chr20:1-2", "no contig 'chr20'"),
        ("20:0-10", "1 <= START <= END"),
        ("20:10-9", "1 <= START <= END"),
        ("20:10", "must be CONTIG:START-END"),
        ("20:10-", "must be CONTIG:START-END"),
        ("20:x-y", "must be CONTIG:START-END"),
        ("20:1-101", "ends beyond contig '20', which has 100 bases"),
        ("HLA:1-9", "is a contig's name and a part of 'HLA'"),
        ("", "no contig ''"),
    ],
)
def test_a_region_that_is_not_there_is_an_error(text: str, message: str) -> None:
    """A failure would hold out nothing, and the leak would never show."""
    with pytest.raises(ValueError, match=message):
        parse_region(text, LENGTHS)


def intervals(max_end: int) -> st.SearchStrategy[tuple[int, int]]:
    bounds = st.integers(0, max_end)
    return st.tuples(bounds, bounds).filter(lambda ends: ends[0] < ends[1])


@settings(deadline=None)
@given(st.lists(intervals(60), max_size=6), intervals(60))
@example([(9, 12), (3, 5), (5, 9)], (0, 20))
def test_cutting_keeps_every_base_once(
    cuts: list[tuple[int, int]], interval: tuple[int, int]
) -> None:
    merged = merge_intervals(cuts)
    inside = {base for start, end in cuts for base in range(start, end)}
    assert {base for start, end in merged for base in range(start, end)} == inside
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))
    parts = split_interval(interval, merged)
    bases = [(base, cut) for (start, end), cut in parts for base in range(start, end)]
    assert bases == [(base, base in inside) for base in range(*interval)]
    assert all(a[1] != b[1] for a, b in itertools.pairwise(parts))


@settings(deadline=None)
@given(
    st.text("AN", min_size=1, max_size=80).map(lambda s: s.replace("NNN", "N" * 10)),
    st.lists(intervals(100), max_size=3),
    st.integers(0, 8),
    st.booleans(),
)
def test_documents_are_the_stretches_without_what_is_held_out(
    sequence: str, cuts: list[tuple[int, int]], min_length: int, both_strands: bool
) -> None:
    """A failure would put held-out bases into training, or lose bases."""
    cuts = [(start, min(end, len(sequence))) for start, end in cuts if start < len(sequence)]
    labels = ["train"] * len(sequence)
    for start, end in cuts:
        labels[start:end] = ["valid"] * (end - start)
    for run in re.finditer("N{10,}", sequence):
        labels[run.start() : run.end()] = ["gap"] * len(run[0])
    bases = itertools.groupby(range(len(sequence)), key=labels.__getitem__)
    runs = [(label, min(run := list(group)), max(run) + 1) for label, group in bases]
    expected = [run for run in runs if run[0] != "gap"]
    long = [run for run in expected if run[2] - run[1] >= min_length]

    contig = ContigSummary(
        "c", Path("c.fa"), len(sequence), 0, tuple(find_stretches(sequence.encode()))
    )
    holdout = [f"c:{start + 1}-{end}" for start, end in cuts]
    if {label for label, *_ in long} != {"train", *(["valid"] if cuts else [])}:
        with pytest.raises(ValueError, match="there is no document for"):
            plan_documents([contig], holdout, min_length, both_strands)
        return
    plan = plan_documents([contig], holdout, min_length, both_strands)
    strands = "+-" if both_strands else "+"
    assert list(plan.documents) == [
        Document("c", start, end, strand, label) for label, start, end in long for strand in strands
    ]
    assert list(plan.dropped) == [
        Document("c", start, end, "+", label)
        for label, start, end in expected
        if end - start < min_length
    ]


@pytest.mark.parametrize(
    ("sequence", "holdout", "min_length", "message"),
    [
        ("N" * 50, [], 0, "for train: the contigs have runs of N only"),
        ("ACGT", ["a"], 0, "for train: .* or all is held out"),
        ("ACGT", [], 5, r"for train: every stretch for it is shorter than min_length \(5\)"),
        ("A" * 9 + "N" * 20, ["a:10-29"], 0, "for valid: the held-out regions have runs of N"),
        ("A" * 9, ["a:8-9"], 3, r"for valid: every stretch .* min_length \(3\)"),
    ],
)
def test_a_split_without_documents_is_an_error(
    tmp_path: Path, sequence: str, holdout: list[str], min_length: int, message: str
) -> None:
    """A failure would write an empty file, which no reader can map."""
    (tmp_path / "a.fa").write_text(f">a\n{sequence}\n")
    contigs = scan([tmp_path / "a.fa"], lambda num_bases: None)
    with pytest.raises(ValueError, match=message):
        plan_documents(contigs, holdout, min_length)


def test_runs_of_n_are_counted(tmp_path: Path) -> None:
    gap = "N" * 10
    for sequence, num_gaps in [
        (f"{gap}A{gap}C{gap}", 3),
        (f"A{gap}C", 1),
        ("ANNNC", 0),
        (gap, 1),
        (f"{gap}A", 1),
    ]:
        (tmp_path / "a.fa").write_text(f">a\n{sequence}\n")
        [contig] = scan([tmp_path / "a.fa"], lambda num_bases: None)
        assert [end - start for start, end in contig.gaps] == [10] * num_gaps


def test_new_parts_that_are_too_short_are_dropped() -> None:
    document = Document("c", 100, 200, "+", "train")
    held_out = Document("c", 300, 320, "+", "valid")
    parts = [(0, 30), (50, 70), (80, 99)]
    found = list(keep_new([document, held_out], iter([parts]), 20, both_strands=True))
    assert found == [
        Document("c", start, end, strand, split)
        for start, end, split in (
            (100, 130, "train"),
            (150, 170, "train"),
            (300, 320, "valid"),
        )
        for strand in "+-"
    ]
