"""Values along a genome as a BigWig file, to open in a genome browser.

    <output>/
        loss.bw           when all is done; or entropy.bw
        loss.partial/     until then
            about.json    what the run computes
            0.values ...  of each contig, by number: (start, end, value) of every token, in order
            state.npz     where the stream stands
        genome.fai        index of the FASTA file

BigWig wants contigs one after the other, and they are read side by side: hence a file for each.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_dna.genome.folders import claim_folder, output_folder
from megatron_dna.inference.genome import Genome
from megatron_dna.inference.masked_passes import MaskedReader, Track
from megatron_dna.inference.run import Arrays, Progress, describe, no_progress, read_genome
from megatron_dna.inference.stream import Read, StreamModel

_RECORD = np.dtype([("start", "<u4"), ("end", "<u4"), ("value", "<f4")])
_FLUSH_RECORDS = 1 << 14
"""Held in memory for a contig before they are written."""


@dataclass(frozen=True)
class TrackOptions:
    """What a track holds; a run is only taken up again with the same."""

    track: Track
    """`loss` or `entropy`."""
    num_passes: int
    """Passes in which each token is masked once."""
    batch_size: int
    """Segments that go through the model at once."""


def write_track(
    model: StreamModel,
    fasta: Path,
    output: Path,
    options: TrackOptions,
    save_interval_s: float = 60.0,
    progress: Progress = no_progress,
) -> Path:
    """Write a track of all contigs of a FASTA file; returns the BigWig file.

    Args:
        model: with its head (`masked_lm`).
        fasta: plain or bgzipped.
        output: folder; an unfinished run in it is gone on with.
        options: what to compute.
        save_interval_s: seconds between two saved states.
        progress: is told how far it is.

    Raises:
        ValueError: a bad option or file, a folder of another run or a finished one, or a genome
            without a base to predict.
    """
    if options.batch_size < 1:
        raise ValueError(f"--batch-size ({options.batch_size}) must be at least 1")
    reader = MaskedReader(model, options.track, options.num_passes)
    final = output / f"{options.track}.bw"
    if final.exists():
        raise ValueError(f"{final} is there already; choose another --output or remove it")
    with output_folder(output):
        genome = Genome(fasta, output)
        partial = output / f"{options.track}.partial"
        partial.mkdir(exist_ok=True)
        claim_folder(partial, describe(model, genome, options))
        values = _Values(genome, partial)
        state = partial / "state.npz"
        read_genome(
            model, genome, options.batch_size, reader, values, state, save_interval_s, progress
        )
        _write_bigwig(partial / final.name, genome.lengths, values)
        (partial / final.name).replace(final)
        shutil.rmtree(partial)
    return final


class _Values:
    """The values of each contig in a file of its own; a `Sink`."""

    def __init__(self, genome: Genome, folder: Path) -> None:
        self._paths = {
            contig: folder / f"{number}.values" for number, contig in enumerate(genome.lengths)
        }
        self._held: dict[str, list[npt.NDArray[np.void]]] = {}
        self._written: dict[str, int] = {}

    def add(self, read: Read) -> None:
        values = read.values.numpy()[:, 0]
        known = ~np.isnan(values)
        records = np.empty(int(known.sum()), _RECORD)
        records["start"] = read.segment.starts[known]
        records["end"] = read.segment.ends[known]
        records["value"] = values[known]
        held = self._held.setdefault(read.contig, [])
        held.append(records)
        if sum(map(len, held)) >= _FLUSH_RECORDS:
            self._write(read.contig)

    def end(self, contig: str) -> None:
        self._write(contig)

    def flush(self) -> None:
        for contig in list(self._held):
            self._write(contig)

    def open_state(self, contig: str) -> Arrays:
        return {"written": np.array(self._written.get(contig, 0))}

    def restore(self, contig: str, state: Arrays) -> None:
        self._written[contig] = int(state["written"])

    def _write(self, contig: str) -> None:
        """Append what is held, in place of what a killed run wrote after its last state."""
        held = self._held.pop(contig, [])
        written = self._written.get(contig, 0)
        path = self._paths[contig]
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(written * _RECORD.itemsize)
            file.seek(0, 2)
            for records in held:
                file.write(records.tobytes())
                written += len(records)
        self._written[contig] = written

    def read(self, contig: str) -> Iterator[npt.NDArray[np.void]]:
        """All records of a contig, some at a time."""
        path = self._paths[contig]
        if not path.exists():
            return
        with path.open("rb") as file:
            while len(records := np.fromfile(file, _RECORD, _FLUSH_RECORDS)):
                yield records


def _write_bigwig(path: Path, lengths: dict[str, int], values: _Values) -> None:
    """All contigs in the file's order, in memory that does not grow with them.

    Raises:
        ValueError: there is no value.
        OSError: the file could not be written.
    """
    import pybigtools

    num_bases = 0

    def intervals() -> Iterator[tuple[str, int, int, float]]:
        nonlocal num_bases
        for contig in lengths:
            for records in values.read(contig):
                num_bases += int((records["end"] - records["start"]).sum(dtype=np.int64))
                for start, end, value in records.tolist():
                    yield contig, start, end, value

    if not any(len(records) for contig in lengths for records in values.read(contig)):
        raise ValueError("no base of the genome has a value: it is all N")
    pybigtools.open(str(path), "w").write(lengths, intervals())
    # The library tells of errors on the terminal only.
    try:
        found = pybigtools.open(str(path)).info()["summary"]["basesCovered"]
    except pybigtools.BBIReadError:
        found = None
    if found != num_bases:
        raise OSError(f"{path} could not be written in full; is the disk full?")
