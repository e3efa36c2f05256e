"""Duplicate windows: each one found and nothing else, on both strands and after insertions."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from megatron_dna.genome import duplicates
from megatron_dna.genome.duplicates import KMER, MAX_LENGTHS, DuplicateWindows, find_cuts
from tests.unit.genome_files import EXAMPLE, files, read, reverse_complement


@dataclass(frozen=True)
class Text:
    """A sequence in memory."""

    text: str

    @property
    def length(self) -> int:
        return len(self.text)

    def read(self, start: int, end: int) -> bytes:
        return self.text[start:end].encode()


def real(start: int, end: int) -> str:
    with pysam.FastaFile(str(EXAMPLE)) as example:
        return example.fetch("20", start, end)


def cuts_by_definition(text: str, window_length: int) -> list[int]:
    """Slowly: positions whose hash is below every other within half a window; then the caps."""
    half, reach = KMER // 2, window_length // 2
    hashes = {
        i + half: int(duplicates._hash_kmers(memoryview_of(text[i : i + KMER]))[0])
        for i in range(len(text) - KMER + 1)
    }
    cuts = [
        p
        for p, own in hashes.items()
        if all(own < hashes.get(q, 2**64 - 1) for q in range(p - reach, p + reach + 1) if q != p)
    ]
    found, last = [], 0
    for cut in [*cuts, len(text)]:
        while cut - last > MAX_LENGTHS * window_length:
            last += MAX_LENGTHS * window_length
            found.append(last)
        found += [cut] * (cut > last)
        last = max(last, cut)
    return found


def memoryview_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([64, 100, 201]), st.integers(40, 700))
def test_cuts_are_those_of_the_definition(seed: int, window_length: int, chunk: int) -> None:
    rng = random.Random(seed)
    text = real(2_000_000 + seed, 2_000_000 + seed + rng.randrange(800))
    text += rng.choice(["", "A" * 200, "NNN", "ACT" * 100]) + text[: rng.randrange(400)]
    text = text or "ACGT"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "CHUNK_LENGTH", chunk)
        assert list(find_cuts(Text(text), window_length)) == cuts_by_definition(text, window_length)


def test_cuts_are_the_same_on_both_strands() -> None:
    """Also around N, which stand for no base; a failure would keep copies on the other strand."""
    text = real(1_000_000, 1_020_000)
    text = "".join(text[i : i + 150] + "N" * (1 + i % 7) for i in range(0, len(text), 150))
    cuts, others = (set(find_cuts(Text(strand), 64)) for strand in (text, reverse_complement(text)))
    assert len(cuts) > 200
    assert cuts - {len(text)} == {len(text) - cut for cut in others} - {0}


def test_a_long_repeat_is_cut_all_the_same() -> None:
    cuts = list(find_cuts(Text("A" * 20_000), 100))
    assert cuts == [6_400, 12_800, 19_200, 20_000]


def test_windows_are_as_long_as_asked_for() -> None:
    text = real(1_000_000, 2_000_000)
    for window_length in (100, 1_000):
        assert len(list(find_cuts(Text(text), window_length))) == pytest.approx(
            len(text) / window_length, rel=0.06
        )


def new_parts(folder: Path, texts: list[str], window_length: int) -> tuple[list[str], int]:
    with DuplicateWindows(folder, window_length) as windows:
        for text in texts:
            windows.add(Text(text))
        windows.find()
        parts = [
            text[start:end]
            for text, intervals in zip(texts, windows.new_parts(), strict=True)
            for start, end in intervals
        ]
        assert sum(map(len, parts)) + windows.num_bases_dropped == sum(map(len, texts))
        return parts, windows.num_dropped


@pytest.mark.parametrize("change", ["same", "insertion", "reverse", "substitutions"])
def test_other_copies_leave_only_what_differs(tmp_path: Path, change: str) -> None:
    """A failure would keep haplotypes that are equal but for a shift, or on the other strand."""
    first = real(1_000_000, 1_200_000)
    sites = [20_000, 90_000, 170_000]
    second = {
        "same": first,
        "insertion": first[:50_000] + "ACGTTGCA" + first[50_000:],
        "reverse": reverse_complement(first),
        "substitutions": "".join(
            ("C" if base == "A" else "A") if i in sites else base for i, base in enumerate(first)
        ),
    }[change]
    parts, num_dropped = new_parts(tmp_path, [first, second], 1_000)
    left = sum(map(len, parts)) - len(first)
    assert num_dropped > 180
    assert (
        0
        <= left
        < {"same": 1, "insertion": 4_000, "reverse": 4_000, "substitutions": 9_000}[change]
    )
    if change == "substitutions":  # what differs is still there
        assert all(any(second[i - 40 : i + 40] in part for part in parts) for i in sites)
    if change == "insertion":
        assert any(second[49_980:50_030] in part for part in parts)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_exactly_the_windows_that_came_before_are_dropped(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Against a set of whole windows: no false match, and no missed one."""
    rng = random.Random(seed)
    pool = [real(1_000_000 + 7_000 * i, 1_000_000 + 7_000 * i + 3_000) for i in range(4)]
    texts = [
        "".join(
            piece if rng.random() < 0.5 else reverse_complement(piece)
            for piece in rng.choices(pool, k=rng.randrange(1, 4))
        )
        for _ in range(5)
    ]
    seen, kept, dropped = set(), [], 0
    for text in texts:
        last = 0
        for cut in find_cuts(Text(text), 200):
            window = min(text[last:cut], reverse_complement(text[last:cut]))
            if window in seen:
                dropped += 1
            else:
                kept.append(text[last:cut])
            seen.add(window)
            last = cut
    parts, num_dropped = new_parts(tmp_path_factory.mktemp("d"), texts, 200)
    assert "".join(parts) == "".join(kept)
    assert num_dropped == dropped


def test_training_has_each_window_once_and_the_manifest_counts_the_rest(
    options: Callable[..., PreprocessOptions], tmp_path: Path
) -> None:
    """Held-out documents stay whole; the other strand has what the first one has."""
    first = real(1_000_000, 1_050_000)
    records = {"x": first, "y": first[:30_000] + "T" + first[30_000:], "held": first}
    path = tmp_path / "twice.fa"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in records.items()))
    changes = {"fasta": (path,), "holdout": ("held",), "drop_duplicate_windows": 500}
    manifest = preprocess(options(**changes))
    counted = manifest["duplicate_windows"]
    assert counted["windows_dropped"] == pytest.approx(counted["windows"] / 2, rel=0.1)
    train = manifest["documents"]["train"]
    assert all(
        (a["contig"], a["start"], a["end"]) == (b["contig"], b["start"], b["end"])
        for a, b in zip(train[::2], train[1::2], strict=True)
    )
    forward = sum(row["end"] - row["start"] for row in train[::2])
    assert forward + counted["bases_dropped"] == len(records["x"]) + len(records["y"])
    assert forward - len(first) < 3_000
    assert [row["start"] for row in manifest["documents"]["valid"]] == [0, 0]
    prefix = options().output_prefix
    assert [len(ids) for ids in read(Path(f"{prefix}_train"))] == [row["tokens"] for row in train]
    assert json.loads(Path(f"{prefix}.json").read_text()) == manifest
    assert all(".partial" not in name for name in files(prefix.parent))
    with pytest.raises(ValueError, match=r"duplicates \(63\) has at least 64 bases"):
        preprocess(options(**changes | {"drop_duplicate_windows": 63}))
