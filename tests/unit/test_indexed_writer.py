"""The .bin/.idx writer, against Megatron-Core's own reader and writer, and under crashes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from megatron_dna.data.document_writer import DocumentWriter
from megatron_dna.data.writer import IndexedWriter
from megatron_dna.genome.corpus import Document


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def write(prefix: Path, documents: list[np.ndarray], vocab_size: int) -> None:
    with IndexedWriter(prefix, vocab_size) as writer:
        for document in documents:
            writer.add_document(document)
        writer.publish()


def read(prefix: Path) -> list[np.ndarray]:
    """Every document, by Megatron's reader; copies, for its arrays die with the data set."""
    dataset = IndexedDataset(str(prefix))
    return [dataset[i].copy() for i in range(len(dataset))]


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([1, 300, 65_499, 65_500, 65_536, 2**31]),
    st.lists(st.integers(1, 3_000), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_files_equal_those_of_megatron(vocab_size: int, lengths: list[int], seed: int) -> None:
    """A failure would mean that Megatron reads other tokens than were written."""
    generator = np.random.default_rng(seed)
    documents = [generator.integers(0, vocab_size, n).astype(np.int32) for n in lengths]
    documents[0][0] = vocab_size - 1
    dtype = DType.optimal_dtype(vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        write(ours, documents, vocab_size)
        builder = IndexedDatasetBuilder(f"{theirs}.bin", dtype=dtype)
        for document in documents:
            builder.add_document(torch.from_numpy(document), [len(document)])
        builder.finalize(f"{theirs}.idx")
        for suffix in ("bin", "idx"):
            expected = Path(f"{theirs}.{suffix}").read_bytes()
            assert Path(f"{ours}.{suffix}").read_bytes() == expected
        assert {found.dtype for found in read(ours)} == {np.dtype(dtype)}
        for found, document in zip(read(ours), documents, strict=True):
            np.testing.assert_array_equal(found, document)
        assert not list(Path(folder).glob("*.partial"))


def test_more_than_one_buffer_arrives_in_order(tmp_path: Path) -> None:
    """Blocks of the conversion and of the file's buffer have no common border."""
    documents = [np.arange(n, dtype=np.int32) % 60_000 for n in (1, 700_001, 4_095, 1_048_577)]
    write(tmp_path / "x", documents, 60_000)
    for found, document in zip(read(tmp_path / "x"), documents, strict=True):
        np.testing.assert_array_equal(found, document)


def test_counts(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", 10) as writer:
        writer.add_document(ids(1, 2))
        writer.add_document(ids(3))
        assert (writer.num_documents, writer.num_tokens, writer.dtype) == (2, 3, np.uint16)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (ids(0, 10), "token id 10 must be between 0 and 9"),
        (ids(-1), "token id -1 "),
        (ids(), "at least one token"),
    ],
)
def test_bad_documents_are_refused_and_nothing_is_left(
    tmp_path: Path, document: np.ndarray, message: str
) -> None:
    """A failure would wrap an id around to another token."""
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "x", [ids(1), document], 10)
    assert not list(tmp_path.iterdir())


def test_a_document_of_too_many_tokens_is_refused(tmp_path: Path) -> None:
    """A failure would write a negative length: the format has 32 bits for it."""
    zeros = np.memmap(tmp_path / "zeros", np.int32, "w+", shape=2**31)  # takes no space
    with IndexedWriter(tmp_path / "x", 10) as writer:
        writer.append(ids(1))
        with pytest.raises(ValueError, match="at most 2147483647 tokens"):
            writer.append(zeros[1:])


def test_an_open_document_is_not_published(tmp_path: Path) -> None:
    """A failure would leave tokens in the .bin that no document has."""
    with IndexedWriter(tmp_path / "x", 10) as writer:
        writer.add_document(ids(1))
        writer.append(ids(2))
        with pytest.raises(ValueError, match=r"x\.bin: a document is still open"):
            writer.publish()
    assert not list(tmp_path.iterdir())


def test_ids_of_another_type_are_refused(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", 10) as writer, pytest.raises(TypeError):
        writer.add_document(np.array([1], np.int64))


@pytest.mark.parametrize("vocab_size", [-1, 0, 2**31 + 1])
def test_a_vocabulary_must_fit(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(ValueError, match=rf"vocab_size \({vocab_size}\)"):
        IndexedWriter(tmp_path / "x", vocab_size)
    assert not list(tmp_path.iterdir())


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """NumPy cannot map an empty .bin, so no reader could open it."""
    with (
        IndexedWriter(tmp_path / "x", 10) as writer,
        pytest.raises(ValueError, match="no document"),
    ):
        writer.publish()
    assert not list(tmp_path.iterdir())


def test_nothing_has_its_name_before_publish(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", 10) as writer:
        writer.add_document(ids(1))
        writer.prepare()
        assert {path.suffix for path in tmp_path.iterdir()} == {".partial"}
        with pytest.raises(ValueError, match="already closed"):
            writer.add_document(ids(2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("end", "left"), [("abort", []), ("leave", ["x.bin.partial"])])
def test_documents_are_given_up_with_their_places(
    tmp_path: Path, end: str, left: list[str]
) -> None:
    """What a writer that goes on makes anew must not stay, and look like something."""
    writer = DocumentWriter(tmp_path / "x", 10)
    writer.add_document(ids(1))
    writer.coordinates.add_document(Document("c", 0, 1, "+", "train"))
    writer.prepare()
    assert len(list(tmp_path.iterdir())) == 3
    getattr(writer, end)()
    assert [path.name for path in tmp_path.iterdir()] == left


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none/x\.bin"):
        IndexedWriter(tmp_path / "none" / "x", 10)


def test_two_writers_of_one_prefix_do_not_mix(tmp_path: Path) -> None:
    """A failure would interleave two jobs' tokens in one file that looks complete."""
    with IndexedWriter(tmp_path / "x", 10) as writer:
        writer.add_document(ids(1))
        with pytest.raises(BlockingIOError, match="another process is writing"):
            IndexedWriter(tmp_path / "x", 10)
        writer.publish()
    assert [list(found) for found in read(tmp_path / "x")] == [[1]]


def test_a_writer_does_not_go_on_from_less_than_was_finished(tmp_path: Path) -> None:
    """A failure would fill documents with zeros."""
    (tmp_path / "x.bin.partial").write_bytes(bytes(9))
    with pytest.raises(ValueError, match=r"x\.bin\.partial is shorter than what is to be kept"):
        IndexedWriter(tmp_path / "x", 10, [3, 2])


def test_the_bin_file_stays_until_the_old_index_is_gone(tmp_path: Path) -> None:
    """A failure could leave an old index beside new tokens, which would read without an error."""
    (tmp_path / "x.idx").mkdir()  # cannot be removed as a file
    (tmp_path / "x.bin").write_bytes(b"old")
    with IndexedWriter(tmp_path / "x", 10) as writer:
        writer.add_document(ids(1))
        with pytest.raises(OSError, match="cannot replace"):
            writer.publish()
    assert (tmp_path / "x.bin").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]


KILLED = """
import sys
from pathlib import Path
import numpy as np
from megatron_dna.data.writer import IndexedWriter
writer = IndexedWriter(Path(sys.argv[1]), 10)
for _ in range(3):
    writer.add_document(np.ones(1_000_000, np.int32))
if sys.argv[2] == "prepared":
    writer.prepare()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("moment", ["writing", "prepared"])
def test_a_killed_writer_leaves_nothing_that_looks_complete(tmp_path: Path, moment: str) -> None:
    """A failure would let a run train on the start of a genome."""
    prefix = tmp_path / "x"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(prefix), moment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert (tmp_path / "x.bin.partial").stat().st_size > 1_000_000
        process.send_signal(signal.SIGKILL)
    assert {path.suffix for path in tmp_path.iterdir()} == {".partial"}
    assert not IndexedDataset.exists(str(prefix))
    write(prefix, [ids(1, 2, 3)], 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]
    assert [list(found) for found in read(prefix)] == [[1, 2, 3]]


def test_a_full_disk_is_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    """The limit on file size stands for the disk's: the write fails half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*x\.bin\.partial: File too large"):
            write(tmp_path / "x", [np.ones(200_000, np.int32)], 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
