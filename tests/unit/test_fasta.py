"""FASTA reading: the same contigs from every file format, and no sequence lost without an error."""

from __future__ import annotations

import gzip
import random
import re
import tempfile
from pathlib import Path

import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dna.genome import compressed
from megatron_dna.genome.fasta import read_fasta, read_pieces, sha256_of
from tests.unit.genome_files import EXAMPLE


def write(path: Path, content: bytes, kind: str = "plain") -> Path:
    """Writes a file; `bgzip` as htslib does, in small blocks so that there are several."""
    if kind == "plain":
        path.write_bytes(content)
    elif kind == "gzip":
        path.write_bytes(gzip.compress(content))
    else:
        with pysam.BGZFile(str(path), "wb") as stream:
            for start in range(0, len(content), 100):
                stream.write(content[start : start + 100])
                stream.flush()
    return path


def contents(path: Path) -> list[tuple[str, bytes]]:
    return [(contig.name, bytes(contig.sequence)) for contig in read_fasta(path)]


lines = st.lists(st.text("ACGTNacgtn", max_size=12), min_size=1, max_size=6).filter("".join)


@settings(deadline=None)
@given(
    st.lists(lines, min_size=1, max_size=8),
    st.sampled_from(["plain", "gzip", "bgzip"]),
    st.sampled_from(["\n", "\r\n", "\n\n", " \n", "\n\t\r\n"]),
    st.booleans(),
    st.integers(1, 40),
)
def test_contigs_do_not_depend_on_the_layout(
    records: list[list[str]], kind: str, line_end: str, closed: bool, chunk_bytes: int
) -> None:
    """A failure would lose or move bases for some line length, line end, format or chunk border."""
    text = "".join(
        line + line_end
        for i, record in enumerate(records)
        for line in (f">contig{i} a > b", *record)
    )
    text = line_end.lstrip() + (text if closed else text.rstrip())
    expected = [(f"contig{i}", "".join(r).upper().encode()) for i, r in enumerate(records)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "CHUNK_BYTES", chunk_bytes)
        path = write(Path(folder) / "x", text.encode(), kind)
        assert contents(path) == expected
        assert list(read_pieces([path], ahead=True)) == list(read_pieces([path]))


def test_the_example_reads_as_htslib_reads_it() -> None:
    [contig] = read_fasta(EXAMPLE)
    with pysam.FastaFile(str(EXAMPLE)) as reference:
        assert contig.name == "20"
        assert contig.sequence.decode() == reference.fetch("20")
    assert contig.num_ambiguous == 0
    assert sha256_of(EXAMPLE) in (EXAMPLE.parent / "README.md").read_text()


def test_ambiguity_codes_become_n_and_are_counted(tmp_path: Path) -> None:
    [contig] = read_fasta(write(tmp_path / "x.fa", b">a\nACRyn\nsT\n"))
    assert (bytes(contig.sequence), contig.num_ambiguous) == (b"ACNNNNT", 3)


@pytest.mark.parametrize("kind", ["gzip", "bgzip"])
def test_a_compressed_file_cut_anywhere_is_an_error(tmp_path: Path, kind: str) -> None:
    """A failure would train on half a genome without a word, as htslib lets one do."""
    bases = "".join(random.Random(0).choices("ACGT", k=500))
    path = write(tmp_path / "x.fa.gz", f">a\n{bases[:250]}\n>b\n{bases[250:]}\n".encode(), kind)
    content = path.read_bytes()
    assert len(contents(path)) == 2
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"x\.fa\.gz"):
            contents(path)
    path.write_bytes(content[:-200])
    with pytest.raises(ValueError, match="truncated"):
        contents(path)


def test_a_damaged_gzip_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa.gz", b">a\n" + b"ACGT" * 20, "gzip")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.fa\.gz: the gzip content is damaged"):
        contents(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no sequence in it"),
        (b"\n \n", "no sequence in it"),
        (b">a\n>b\nACGT\n", "contig 'a' has no sequence"),
        (b">a\nACGT\n>b", "contig 'b' has no sequence"),
        (b">a\nACGT\n>b\n\n", "contig 'b' has no sequence"),
        (b">\nACGT\n", "no contig name"),
        (b"> a\nACGT\n", "no contig name"),
        (b">\xff\xfe\nACGT\n", "not UTF-8"),
        (b"ACGT\n", "does not start with '>' but with b'ACGT'"),
        (b"@read\nACGT\n+\nIIII\n", "does not start with '>'"),
        (b">a\nAC\n>b\nAC\n>a x\nAC\n", "contig 'a' comes twice"),
        (b">a\nACGT\n>p\nMKV\nLEPS\n", "contig 'p': byte 'L' at position 4 .* protein or RNA"),
        (b">a\nACGU\n", "byte 'U' at position 4 "),
        (b">a\nAC-T\n", "byte '-' at position 3 "),
        (b">" + b"a" * 3_000_000, "header is longer"),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "gzip"])
def test_bad_content_is_one_clear_error(
    tmp_path: Path, content: bytes, message: str, kind: str
) -> None:
    path = write(tmp_path / "bad.fa", content, kind)
    with pytest.raises(ValueError, match=message) as error:
        contents(path)
    assert "bad.fa" in str(error.value)
    with pytest.raises(ValueError, match=re.escape(str(error.value))):
        list(read_pieces([path], ahead=True))


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.fa is not there"):
        contents(tmp_path / "none.fa")
    with pytest.raises(ValueError, match="must be a regular file"):
        contents(tmp_path)


def test_a_name_in_two_files_is_an_error(tmp_path: Path) -> None:
    first = write(tmp_path / "a.fa", b">1\nA\n>2\nC\n")
    second = write(tmp_path / "b.fa", b">3\nA\n>2\nC\n")
    with pytest.raises(ValueError, match=r"contig '2' is in .*a\.fa and again in .*b\.fa"):
        list(read_pieces([first, second]))
    with pytest.raises(ValueError, match="contig '1' is in"):
        list(read_pieces([first, first]))
