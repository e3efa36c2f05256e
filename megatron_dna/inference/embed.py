"""One embedding vector a bin of a genome, in a Zarr store; killed and started again, it goes on.

<output>/
    embeddings.zarr/
        embedding     float32 [bins, hidden], NaN where a bin has no token (runs of N)
        contig        int32 [bins], number in the attribute `contigs`
        start         int64 [bins], first base of the bin, 0-based
    state.npz         where the stream stands; gone when all is done
    genome.fai        index of the FASTA file
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_dna.genome.folders import output_folder
from megatron_dna.inference.bins import Bins, Open
from megatron_dna.inference.genome import Genome
from megatron_dna.inference.run import Arrays, Progress, describe, no_progress, read_genome
from megatron_dna.inference.stream import Read, StreamModel

STORE, STATE = "embeddings.zarr", "state.npz"
_ROWS_A_CHUNK = 1024
_COORDINATES_A_CHUNK = 1 << 18


@dataclass(frozen=True)
class EmbedOptions:
    """What a store holds; a run is only taken up again with the same."""

    resolution: int
    """Bases of a bin."""
    pool: str
    """`mean` or `max`."""
    layer: int | None
    """0: embedding, i: after layer i, None: final states."""
    batch_size: int
    """Segments that go through the model at once."""


def embed_genome(
    model: StreamModel,
    fasta: Path,
    output: Path,
    options: EmbedOptions,
    save_interval_s: float = 60.0,
    progress: Progress = no_progress,
) -> None:
    """Embed all contigs of a FASTA file.

    Args:
        model: the encoder.
        fasta: plain or bgzipped.
        output: folder; one of an unfinished run is gone on with.
        options: what to compute.
        save_interval_s: seconds between two saved states.
        progress: is told how far it is.

    Raises:
        ValueError: a bad option or file, or a folder of another run or a finished one.
    """
    if options.resolution < 1 or options.batch_size < 1:
        raise ValueError(
            f"--resolution ({options.resolution}) and --batch-size ({options.batch_size}) must be "
            "at least 1"
        )
    if options.layer is not None and not 0 <= options.layer <= model.num_layers:
        raise ValueError(
            f"--layer ({options.layer}) must be between 0 (embedding) and {model.num_layers}"
        )
    reader = partial(model, layer=options.layer)
    with output_folder(output):
        genome = Genome(fasta, output)
        about = describe(model, genome, options)
        store = _Store(genome, output / STORE, options, about, model.hidden_size)
        state = output / STATE
        read_genome(
            model, genome, options.batch_size, reader, store, state, save_interval_s, progress
        )
        store.complete()


class _Store:
    """A store that is being filled; a `Sink`."""

    def __init__(
        self,
        genome: Genome,
        path: Path,
        options: EmbedOptions,
        about: dict[str, Any],
        hidden_size: int,
    ) -> None:
        self.lengths, self.options, self.hidden_size = genome.lengths, options, hidden_size
        self.first_bin: dict[str, int] = {}
        num_bins = 0
        for contig, length in genome.lengths.items():
            self.first_bin[contig] = num_bins
            num_bins += -(-length // options.resolution)
        self.bins: dict[str, Bins] = {}
        self.rows: dict[str, list[npt.NDArray[np.float32]]] = {}
        self.next_row: dict[str, int] = {}
        self.blocks: list[tuple[int, npt.NDArray[np.float32]]] = []  # first row of the store, rows
        self._open(path, num_bins, about)

    def add(self, read: Read) -> None:
        segment = read.segment
        numbers, vectors = self._bins_of(read.contig).add(
            segment.starts, segment.ends, read.values.numpy()
        )
        self._put(read.contig, numbers, vectors)

    def end(self, contig: str) -> None:
        if contig in self.bins:
            self._put(contig, *self.bins.pop(contig).flush())
            self._write(contig)

    def flush(self) -> None:
        for contig in list(self.rows):
            self._write(contig)
        self._write_blocks()

    def open_state(self, contig: str) -> Arrays:
        opened = self._bins_of(contig).open
        return {"total": opened.total, "bin": np.array([opened.number, opened.weight])}

    def restore(self, contig: str, state: Arrays) -> None:
        number, weight = state["bin"].tolist()
        self._bins_of(contig).open = Open(int(number), state["total"], weight)

    def complete(self) -> None:
        """Mark it as finished."""
        self.store.attrs["complete"] = True

    def _bins_of(self, contig: str) -> Bins:
        options = self.options
        if contig not in self.bins:
            self.bins[contig] = Bins(options.resolution, self.hidden_size, options.pool)
        return self.bins[contig]

    def _put(
        self, contig: str, numbers: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32]
    ) -> None:
        """Keep finished bins until there are enough for a chunk; NaN where some are left out."""
        if not len(numbers):
            return
        start = self.next_row.setdefault(contig, int(numbers[0]))
        rows = self.rows.setdefault(contig, [])
        held = sum(len(part) for part in rows)
        if numbers[-1] - start >= 16 * _ROWS_A_CHUNK:  # behind a long gap: write what is there
            self._write(contig)
            start, held = int(numbers[0]), 0
            self.next_row[contig] = start
            rows = self.rows.setdefault(contig, [])
        length = int(numbers[-1]) - start - held + 1
        part = np.full((length, self.hidden_size), np.nan, np.float32)
        part[numbers - start - held] = vectors
        rows.append(part)
        if held + length >= _ROWS_A_CHUNK:
            self._write(contig)

    def _write(self, contig: str) -> None:
        """Write a contig's rows, together with those of others until there are enough."""
        rows = self.rows.pop(contig, [])
        if rows:
            self.blocks.append(
                (self.first_bin[contig] + self.next_row.pop(contig), np.concatenate(rows))
            )
            if sum(len(block) for _, block in self.blocks) >= _ROWS_A_CHUNK:
                self._write_blocks()

    def _write_blocks(self) -> None:
        if self.blocks:
            self.blocks.sort(key=itemgetter(0))
            rows = [np.arange(start, start + len(block)) for start, block in self.blocks]
            vectors = np.concatenate([block for _, block in self.blocks])
            self.store["embedding"].oindex[np.concatenate(rows), :] = vectors
            self.blocks.clear()

    def _open(self, path: Path, num_bins: int, about: dict[str, Any]) -> None:
        """Make the store, or open that of an unfinished run."""
        import zarr

        if path.exists():
            self.store: Any = zarr.open_group(path, mode="r+")
            if self.store.attrs.get("about") != about or self.store.attrs.get("complete"):
                raise ValueError(
                    f"--output ({path.parent}) holds a finished store, or one of another model, "
                    "genome or option; choose another folder or remove it"
                )
            return
        self.store = zarr.open_group(path, mode="w")
        rows = min(max(1, num_bins), _ROWS_A_CHUNK)
        self.store.create_array(
            "embedding", shape=(num_bins, self.hidden_size), chunks=(rows, self.hidden_size),
            dtype="float32", fill_value=float("nan"), compressors=None,
        )  # fmt: skip
        for name, dtype in (("contig", "int32"), ("start", "int64")):
            self.store.create_array(
                name, shape=(num_bins,), chunks=(min(max(1, num_bins), _COORDINATES_A_CHUNK),),
                dtype=dtype,
            )  # fmt: skip
        firsts = np.array(list(self.first_bin.values()))
        for at in range(0, num_bins, _COORDINATES_A_CHUNK):
            until = min(num_bins, at + _COORDINATES_A_CHUNK)
            numbers = np.arange(at, until)
            contig = np.searchsorted(firsts, numbers, side="right") - 1
            self.store["contig"][at:until] = contig
            self.store["start"][at:until] = (numbers - firsts[contig]) * self.options.resolution
        self.store.attrs["about"] = about
