"""The scratch file of sequence: any part from any thread, and nothing left behind."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dna.genome import compressed
from megatron_dna.genome.corpus import scan
from megatron_dna.genome.sequence import StretchFinder, find_stretches
from megatron_dna.genome.store import ReverseComplement, SequenceStore
from tests.unit.genome_files import EXAMPLE, child_environment, clean, reverse_complement


@settings(deadline=None)
@given(
    st.text("AN", max_size=80).map(lambda s: s.replace("NNN", "N" * 9)),
    st.lists(st.integers(0, 400), max_size=6),
    st.integers(1, 12),
)
def test_stretches_do_not_depend_on_the_pieces(sequence: str, cuts: list[int], run: int) -> None:
    """A failure would cut documents where a file's buffer ends."""
    bounds = [0, *sorted(cut for cut in cuts if cut < len(sequence)), len(sequence)]
    finder = StretchFinder(run)
    for start, end in itertools.pairwise(bounds):
        finder.add(sequence[start:end].encode())
    assert finder.length == len(sequence)
    assert finder.stretches() == find_stretches(sequence.encode(), run)


def test_any_part_of_any_contig(
    tmp_path: Path,
    fastas: tuple[Path, ...],
    contigs: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compressed, "CHUNK_BYTES", 1_000)  # pieces of contigs, not whole ones
    with SequenceStore(tmp_path) as store:
        summaries = scan(fastas, lambda num_bases: None, store.append)
        assert [summary.name for summary in summaries] == list(contigs)
        for summary in summaries:
            sequence = clean(contigs[summary.name])
            assert summary.length == len(sequence)
            assert list(summary.stretches) == find_stretches(sequence.encode())
            assert summary.num_ambiguous == len(re.findall("[RYKM]", contigs[summary.name].upper()))
            assert store.stretch(summary.name).length == len(sequence)
            assert store.read(summary.name, 0, len(sequence)).decode() == sequence
        sequence = clean(contigs["a"])[3_000:44_000]
        stretch = store.stretch("a", 3_000, 44_000)
        reverse = ReverseComplement(stretch)
        bounds = [(start, start + 1_234) for start in range(0, 39_000, 777)]
        with ThreadPoolExecutor(4) as pool:
            for bases, (start, end) in zip(
                pool.map(lambda bound: stretch.read(*bound), bounds), bounds, strict=True
            ):
                assert bases.decode() == sequence[start:end]
        assert reverse.length == stretch.length
        assert reverse.read(5, 4_000).decode() == reverse_complement(sequence)[5:4_000]
        assert not list(tmp_path.iterdir())  # the file has no name, so a killed run leaves none
        with pytest.raises(ValueError, match="a:1-70011 is not inside its 70010 bases"):
            store.stretch("a", 1, 70_011)


def test_the_example_is_stored_as_htslib_reads_it(tmp_path: Path) -> None:
    with SequenceStore(tmp_path) as store, pysam.FastaFile(str(EXAMPLE)) as reference:
        scan([EXAMPLE], lambda num_bases: None, store.append)
        for start, end in [(0, 4_000_000), (1_048_570, 1_048_580), (3_999_999, 4_000_000)]:
            assert store.read("20", start, end).decode() == reference.fetch("20", start, end)


FULL = """
import sys
from pathlib import Path
from megatron_dna.genome.corpus import scan
from megatron_dna.genome.store import SequenceStore

with SequenceStore(Path(sys.argv[1])) as store:
    scan([Path(sys.argv[2])], lambda num_bases: None, store.append)
"""


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """The limit on file size stands for the disk's."""
    command = ["bash", "-c", 'ulimit -f 500; exec "$@"', "-", sys.executable, "-c", FULL]
    done = subprocess.run(
        [*command, str(tmp_path), str(EXAMPLE)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"cannot write the scratch file in {tmp_path}" in done.stderr
    assert "File too large" in done.stderr
    assert not list(tmp_path.iterdir())
