"""A genome read to its end into a sink, whatever number of runs it takes.

Where the stream stands is saved now and then, after the sink has written all that lies before it.
A later run goes on from there and writes what came after once more, the same.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from megatron_dna.genome.fasta import sha256_of
from megatron_dna.inference.genome import Genome, Position
from megatron_dna.inference.stream import GenomeStream, Lane, Read, Reader, StreamModel

logger = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]
Progress = Callable[[int, int], None]
"""Told the bases that are done since its last call, and those of the genome."""


def no_progress(bases: int, total: int) -> None:
    """For who does not want to know."""


def describe(model: StreamModel, genome: Genome, options: Any) -> dict[str, Any]:
    """All that a run's output depends on, as JSON has it; `options` is a dataclass."""
    about = {**asdict(options), "contigs": list(genome.lengths), "hidden_size": model.hidden_size}
    return about | {"model_sha256": model.sha256(), "fasta_sha256": sha256_of(genome.path)}


class Sink(Protocol):
    """Where the values of a genome go."""

    def add(self, read: Read) -> None:
        """Take a contig's next segment."""

    def end(self, contig: str) -> None:
        """The contig has no more segments."""

    def flush(self) -> None:
        """Put on the disk all that is finished."""

    def open_state(self, contig: str) -> Arrays:
        """What a later run needs of a contig that is being read, after `flush`."""

    def restore(self, contig: str, state: Arrays) -> None:
        """Go on with that state."""


def read_genome(
    model: StreamModel,
    genome: Genome,
    batch_size: int,
    reader: Reader,
    sink: Sink,
    state_file: Path,
    save_interval_s: float,
    progress: Progress,
) -> None:
    """Read all contigs, from `state_file` on if it is there; it is gone when all is done."""
    lanes, waiting = _restore(state_file, sink) if state_file.is_file() else (None, None)
    stream = GenomeStream(model, genome, batch_size, reader, waiting, lanes)
    lengths = genome.lengths
    total = sum(lengths.values())
    ahead = sum(lengths[contig] for contig in stream.waiting)
    ahead += sum(lengths[lane.contig] - lane.position.base for lane in stream.lanes)
    progress(total - ahead, total)
    saved_at = time.monotonic()
    for batch in stream:
        for contig in stream.ended:
            sink.end(contig)
        for read in batch:
            sink.add(read)
            progress(int(read.segment.ends[-1] - read.segment.starts[0]), total)
        if time.monotonic() - saved_at >= save_interval_s:
            _save(state_file, sink, stream)
            saved_at = time.monotonic()
    for contig in stream.ended:
        sink.end(contig)
    sink.flush()
    state_file.unlink(missing_ok=True)


def _save(path: Path, sink: Sink, stream: GenomeStream) -> None:
    sink.flush()
    arrays: dict[str, Any] = {}
    for i, lane in enumerate(stream.lanes):
        arrays |= {f"{i} {key}": array for key, array in sink.open_state(lane.contig).items()}
        if lane.memory is not None:
            arrays[f"{i} memory"] = lane.memory.numpy()
    lanes = [[lane.contig, asdict(lane.position)] for lane in stream.lanes]
    text = json.dumps({"lanes": lanes, "waiting": list(stream.waiting)})
    temporary = path.with_name(f".tmp_{path.name}")
    with temporary.open("wb") as file:
        np.savez(file, text=np.array(text), **arrays)
    temporary.replace(path)


def _restore(path: Path, sink: Sink) -> tuple[list[Lane], list[str]]:
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    saved = json.loads(str(arrays.pop("text")))
    lanes = []
    for i, (contig, position) in enumerate(saved["lanes"]):
        memory = arrays.pop(f"{i} memory", None)
        lanes.append(
            Lane(contig, Position(**position), None if memory is None else torch.from_numpy(memory))
        )
        prefix = f"{i} "
        sink.restore(
            contig,
            {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)},
        )
    logger.info("going on where the last run stopped: %d contigs wait", len(saved["waiting"]))
    return lanes, saved["waiting"]
