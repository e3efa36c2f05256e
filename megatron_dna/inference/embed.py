"""One embedding vector a bin of a genome, in a Zarr store; killed and started again, it goes on.

    <output>/
        embeddings.zarr/
            embedding     float32 [bins, hidden], NaN where a bin has no token (runs of N)
            contig        int32 [bins], number in the attribute `contigs`
            start         int64 [bins], first base of the bin, 0-based
        state.npz         where the stream stands; gone when all is done
        genome.fai        index of the FASTA file

The state is saved after the bins before it: what is written twice is the same.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_dna.genome.fasta import sha256_of
from megatron_dna.inference.bins import Bins, Open
from megatron_dna.inference.genome import Genome, Position
from megatron_dna.inference.stream import GenomeStream, Lane, StreamModel

logger = logging.getLogger(__name__)

STORE, STATE = "embeddings.zarr", "state.npz"
_ROWS_A_CHUNK = 1024


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
    progress: Callable[[int, int], None] = lambda bases, total: None,
) -> None:
    """Embed all contigs of a FASTA file.

    Args:
        model: the encoder.
        fasta: plain or bgzipped.
        output: folder; one of an unfinished run is gone on with.
        options: what to compute.
        save_interval_s: seconds between two saved states.
        progress: told the bases that are done since its last call, and those of the genome.

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
    output.mkdir(parents=True, exist_ok=True)
    genome = Genome(fasta, output)
    about = {**asdict(options), "hidden_size": model.hidden_size, "contigs": list(genome.lengths)}
    about |= {"model_sha256": model.sha256(), "fasta_sha256": sha256_of(fasta)}
    _Run(model, genome, output, options, about).go(save_interval_s, progress)


class _Run:
    """A store that is being filled."""

    def __init__(
        self,
        model: StreamModel,
        genome: Genome,
        output: Path,
        options: EmbedOptions,
        about: dict[str, Any],
    ) -> None:
        self.genome, self.options, self.output = genome, options, output
        self.first_bin: dict[str, int] = {}
        num_bins = 0
        for contig, length in genome.lengths.items():
            self.first_bin[contig] = num_bins
            num_bins += -(-length // options.resolution)
        self.bins: dict[str, Bins] = {}
        self.rows: dict[str, list[npt.NDArray[np.float32]]] = {}
        self.next_row: dict[str, int] = {}
        self.hidden_size = model.hidden_size
        saved = self._open_store(num_bins, about)
        lanes, waiting = self._restore(saved) if saved else (None, None)
        self.stream = GenomeStream(model, genome, options.batch_size, options.layer, waiting, lanes)

    def go(self, save_interval_s: float, progress: Callable[[int, int], None]) -> None:
        """Read on to the end."""
        saved_at = time.monotonic()
        lengths = self.genome.lengths
        total = sum(lengths.values())
        ahead = sum(lengths[contig] for contig in self.stream.waiting)
        ahead += sum(lengths[lane.contig] - lane.position.base for lane in self.stream.lanes)
        progress(total - ahead, total)
        for batch in self.stream:
            self._finish_contigs()
            for read in batch:
                segment = read.segment
                self._put(
                    read.contig,
                    *self._bins_of(read.contig).add(
                        segment.starts, segment.ends, read.states.numpy()
                    ),
                )
                progress(int(segment.ends[-1] - segment.starts[0]), total)
            if time.monotonic() - saved_at >= save_interval_s:
                self._save()
                saved_at = time.monotonic()
        self._finish_contigs()
        (self.output / STATE).unlink(missing_ok=True)
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
        rows = self.rows.pop(contig, [])
        if rows:
            block = np.concatenate(rows)
            start = self.first_bin[contig] + self.next_row.pop(contig)
            self.store["embedding"][start : start + len(block)] = block

    def _finish_contigs(self) -> None:
        for contig in self.stream.ended:
            if contig in self.bins:
                self._put(contig, *self.bins.pop(contig).flush())
                self._write(contig)

    def _save(self) -> None:
        """Write all finished bins, then where the stream stands."""
        for contig in list(self.rows):
            self._write(contig)
        arrays: dict[str, Any] = {}
        lanes = []
        for i, lane in enumerate(self.stream.lanes):
            opened = self._bins_of(lane.contig).open
            lanes.append([lane.contig, asdict(lane.position), opened.number, opened.weight])
            arrays[f"total_{i}"] = opened.total
            if lane.memory is not None:
                arrays[f"memory_{i}"] = lane.memory.numpy()
        text = json.dumps({"lanes": lanes, "waiting": self.stream.waiting})
        temporary = self.output / f".tmp_{STATE}"
        with temporary.open("wb") as stream:
            np.savez(stream, text=np.array(text), **arrays)
        temporary.replace(self.output / STATE)

    def _restore(self, saved: dict[str, Any]) -> tuple[list[Lane], list[str]]:
        state = json.loads(str(saved["text"]))
        lanes = []
        for i, (contig, position, number, weight) in enumerate(state["lanes"]):
            memory = saved.get(f"memory_{i}")
            lanes.append(
                Lane(contig, Position(**position), None if memory is None else torch.tensor(memory))
            )
            self._bins_of(contig).open = Open(number, saved[f"total_{i}"], weight)
        logger.info("going on where the last run stopped: %d contigs wait", len(state["waiting"]))
        return lanes, state["waiting"]

    def _open_store(self, num_bins: int, about: dict[str, Any]) -> dict[str, Any] | None:
        """Make the store, or open that of an unfinished run and return its state."""
        import zarr

        path = self.output / STORE
        if path.exists():
            self.store: Any = zarr.open_group(path, mode="r+")
            if self.store.attrs.get("about") != about or self.store.attrs.get("complete"):
                raise ValueError(
                    f"--output ({self.output}) holds a finished store, or one of another model, "
                    "genome or option; choose another folder or remove it"
                )
            state = self.output / STATE
            if not state.is_file():
                return None
            with np.load(state, allow_pickle=False) as stored:
                return dict(stored)
        self.store = zarr.open_group(path, mode="w")
        rows = min(max(1, num_bins), _ROWS_A_CHUNK)
        self.store.create_array(
            "embedding", shape=(num_bins, self.hidden_size), chunks=(rows, self.hidden_size),
            dtype="float32", fill_value=float("nan"),
        )  # fmt: skip
        for name, dtype in (("contig", "int32"), ("start", "int64")):
            self.store.create_array(name, shape=(num_bins,), chunks=(1 << 18,), dtype=dtype)
        for number, (contig, first) in enumerate(self.first_bin.items()):
            count = -(-self.genome.lengths[contig] // self.options.resolution)
            for at in range(0, count, 1 << 18):
                until = min(count, at + (1 << 18))
                self.store["contig"][first + at : first + until] = number
                self.store["start"][first + at : first + until] = (
                    np.arange(at, until) * self.options.resolution
                )
        self.store.attrs["about"] = about
        return None
