"""Coordinate maps are written, joined and opened in memory that does not grow with their size."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron_dna.data import columns, coordinates
from megatron_dna.data.columns import Table, open_npz, write_npz
from megatron_dna.data.coordinates import CoordinateWriter, DocumentCoordinates, coordinates_path
from megatron_dna.genome.coordinates import CoordinateMap
from megatron_dna.genome.corpus import Document
from megatron_dna.genome.haplotype_documents import HaplotypeDocument

NUM_EDITS = 5_000
NUM_DOCUMENTS = 200


def haplotype_edits(number: int, num_edits: int = NUM_EDITS) -> CoordinateMap:
    """Other ones for every haplotype."""
    starts = np.arange(num_edits, dtype=np.int64) * 1000 + number
    return CoordinateMap(starts, np.ones_like(starts), np.full_like(starts, 2 + number % 7))


def documents(
    num_haplotypes: int, num_edits: int = NUM_EDITS, num_documents: int = NUM_DOCUMENTS
) -> Iterator[Document]:
    """A contig, then haplotypes of it."""
    yield Document("c", 0, num_edits * 1000, "+", "train")
    for number in range(num_haplotypes):
        haplotype: Any = SimpleNamespace(
            sample=f"s{number // 2}",
            number=1 + number % 2,
            coordinates=lambda number=number: haplotype_edits(number, num_edits),
        )
        for start in range(num_documents):
            strand = "+-"[start % 2]
            yield HaplotypeDocument("c", start, start + 9 + number, strand, "train", haplotype)


def write(prefix: Path, rows: Iterator[Document]) -> None:
    writer = CoordinateWriter(prefix)
    for document in rows:
        writer.add_document(document)
    writer.prepare()
    writer.publish()


def join(prefix: Path, parts: list[Path]) -> None:
    writer = CoordinateWriter(prefix)
    for part in parts:
        writer.add_all(DocumentCoordinates.open(part))
    writer.prepare()
    writer.publish()


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy held at most."""
    tracemalloc.start()
    work()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small tables fill them."""
    for module in (columns, coordinates):
        monkeypatch.setattr(module, "ROWS_A_CHUNK", 256)


@pytest.mark.usefixtures("small_chunks")
def test_memory_does_not_grow_with_haplotypes_times_indels(tmp_path: Path) -> None:
    """To write and to join; growth would end a run on thousands of samples out of memory."""
    peaks = {}
    for num_haplotypes in (2, 10, 60):
        prefix = tmp_path / f"p{num_haplotypes}"
        written = peak_of(lambda n=num_haplotypes, p=prefix: write(p, documents(n)))
        joined = peak_of(lambda p=prefix: join(tmp_path / "joined", [p]))
        peaks[num_haplotypes] = (written, joined)
        content = coordinates_path(prefix).read_bytes()
        assert coordinates_path(tmp_path / "joined").read_bytes() == content
        assert len(content) > 16 * NUM_EDITS * num_haplotypes
    for few, many in zip(peaks[10], peaks[60], strict=True):
        assert many - few < 200_000, peaks  # one byte an edit would add 250,000


@pytest.mark.usefixtures("small_chunks")
def test_documents_cost_no_memory(tmp_path: Path) -> None:
    """Those of a shard are tens of millions, and those of all shards more than a billion."""

    def peak(num_documents: int) -> int:
        return peak_of(lambda: write(tmp_path / "p", documents(2, 10, num_documents)))

    peak(10)
    assert peak(12_000) - peak(2_000) < 40_000  # 2 bytes for each of 20,000 documents more


def test_parts_of_a_haplotype_join_to_the_whole(tmp_path: Path) -> None:
    """Its edits are there once, wherever a shard begins."""
    whole = list(documents(5, 50, 30))
    write(tmp_path / "whole", iter(whole))
    write(tmp_path / "1", iter(whole[:70]))
    write(tmp_path / "2", iter(whole[70:75]))
    write(tmp_path / "3", iter(whole[75:]))
    join(tmp_path / "joined", [tmp_path / name for name in "123"])
    expected = coordinates_path(tmp_path / "whole").read_bytes()
    assert coordinates_path(tmp_path / "joined").read_bytes() == expected
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.coordinates.npz" for name in ("whole", "1", "2", "3", "joined")
    }


def test_the_file_is_that_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte; and what is opened is mapped, not read."""
    monkeypatch.setattr(columns, "ROWS_A_CHUNK", 7)
    dtype = np.dtype([("a", np.int64), ("b", np.bool_), ("c", np.uint32)])
    rows = np.zeros(50, dtype)
    rows["a"], rows["b"], rows["c"] = np.arange(50) - 9, np.arange(50) % 3 == 0, np.arange(50) ** 3
    table, empty = Table(tmp_path, dtype), Table(tmp_path, dtype)
    table.append(rows[:20])
    assert np.array_equal(np.concatenate(list(table.column("a"))), rows["a"][:20])
    table.append(rows[20:])
    names = np.array(["", "one", "three"])
    path, expected = tmp_path / "x.npz", tmp_path / "y.npz"
    write_npz(
        path,
        {"names": names, "none": (empty, "c"), **{name: (table, name) for name in "abc"}},
    )
    np.savez(expected, names=names, none=np.zeros(0, np.uint32), **{n: rows[n] for n in "abc"})
    assert path.read_bytes() == expected.read_bytes()
    arrays = open_npz(path)
    with np.load(path) as file:
        assert list(arrays) == file.files
        for name in file.files:
            assert np.array_equal(arrays[name], file[name])
            assert arrays[name].dtype == file[name].dtype
    assert all(isinstance(arrays[name], np.memmap) for name in "abc")


def test_a_damaged_map_is_named(tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    write(prefix, documents(2, 50, 30))
    path = coordinates_path(prefix)
    good = path.read_bytes()
    for bad in (b"", good[:-1], good[:1000], good[:200] + good[300:], b"PK" + bytes(100)):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=f"{path} is no coordinate map, or is damaged"):
            DocumentCoordinates.open(prefix)
    np.savez(path, format=np.array("megatron_dna coordinates 0"))
    with pytest.raises(ValueError, match="no coordinate map of this version"):
        DocumentCoordinates.open(prefix)


class Name(str):
    """A name that counts how often it is compared."""

    num_comparisons = 0
    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.num_comparisons += 1
        return str.__eq__(self, other)


def test_scaffolds_are_not_searched_one_by_one(tmp_path: Path) -> None:
    """A draft assembly has a million: to look each up in a list of them takes days."""
    names = [Name(f"scaffold{number}") for number in range(500)]
    write(tmp_path / "p", (Document(name, 0, 5, "+", "train") for name in names))
    assert Name.num_comparisons < 5_000
    arrays = DocumentCoordinates.open(tmp_path / "p").arrays
    assert arrays["sequence_contig"].tolist() == list(range(500))
