"""A whole genome through a plain or RMT model folder, in memory that does not grow with it.

A row of the batch is a lane. With memory a lane reads one contig after another, segment by segment,
and carries memory on within a stretch; contigs share the batch so that the device is full. Without
memory segments do not depend on each other, and all lanes take the next ones of one contig.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import ModernBertModel

from megatron_dna.genome.fasta import sha256_of
from megatron_dna.hf.architecture import read_hf_config
from megatron_dna.hf.modeling_rmt import RmtConfig, RmtModel
from megatron_dna.inference.genome import Genome, Position, Segment, read_segments
from megatron_dna.tokenizer.bpe import DnaTokenizer


class StreamModel:
    """The encoder of a model folder, and its tokenizer.

    Attributes:
        tokenizer: of the folder.
        segment_size: C.
        hidden_size: width of the states.
        has_memory: whether states depend on the segments before.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Load it.

        Raises:
            ValueError: not a model folder that this package makes or trains.
        """
        config = read_hf_config(folder)
        self._folder = folder
        if not (folder / "tokenizer.json").is_file():
            raise ValueError(f"--model ({folder}) has no tokenizer.json")
        self.tokenizer = DnaTokenizer.from_file(folder / "tokenizer.json")
        self.has_memory = isinstance(config, RmtConfig)
        kind = RmtModel if self.has_memory else ModernBertModel
        self.model = cast(Any, kind.from_pretrained(folder, dtype=dtype))
        self.model.to(device).eval()
        self.device = device
        self.hidden_size: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        self.segment_size: int = (
            config.segment_size if isinstance(config, RmtConfig) else config.max_position_embeddings
        )

    def sha256(self) -> str:
        """Of the folder's options, tokenizer and weights, to tell models apart."""
        digest = hashlib.sha256(str(self.model.dtype).encode())
        for path in sorted(self._folder.glob("*")):
            if path.name in ("config.json", "tokenizer.json") or path.suffix == ".safetensors":
                digest.update(f"{path.name} {sha256_of(path)}".encode())
        return digest.hexdigest()

    @torch.inference_mode()
    def __call__(
        self, segments: list[Segment], memory: list[Tensor | None], layer: int | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """States of a batch of segments.

        Args:
            segments: one a row.
            memory: [M, hidden] for each row; None starts afresh.
            layer: 0 is the embedding, i what layer i leaves; None the final norm's states.

        Returns:
            fp32 [batch, longest, hidden] on the CPU ([CLS] first), and each row's new memory.
        """
        width = max(len(segment.ids) for segment in segments)
        ids = np.full((len(segments), width), self.tokenizer.pad_id)
        for row, segment in enumerate(segments):
            ids[row, : len(segment.ids)] = segment.ids
        lengths = torch.tensor([len(segment.ids) for segment in segments])
        inputs = {
            "input_ids": torch.from_numpy(ids).to(self.device),
            "attention_mask": (torch.arange(width) < lengths[:, None]).long().to(self.device),
        }
        if self.has_memory:
            fresh = self.model.initial_memory
            rows = [fresh if row is None else row for row in memory]
            inputs["memory"] = torch.stack([row.to(fresh) for row in rows])
        output = self.model(**inputs, output_hidden_states=layer is not None)
        states = output.last_hidden_state if layer is None else output.hidden_states[layer]
        new_memory: list[Tensor | None] = [None] * len(segments)
        if self.has_memory:
            new_memory = list(output.memory.float().cpu())
        return states.float().cpu(), new_memory


@dataclass
class Lane:
    """One row of the batch: a contig that is being read."""

    contig: str
    position: Position = field(default_factory=Position)
    memory: Tensor | None = None
    """[M, hidden], fp32 on the CPU."""
    segments: Iterator[Segment] | None = None
    """What is left of the contig; made where the lane is first used."""


@dataclass(frozen=True)
class Read:
    """A segment that has been through the model."""

    contig: str
    segment: Segment
    states: Tensor
    """fp32 [tokens, hidden], without [CLS] and [SEP]."""


class GenomeStream:
    """All contigs through a model. `lanes` and `waiting` are all that a later run needs.

    Attributes:
        lanes: contigs that are being read.
        waiting: contigs that have not begun.
        ended: contigs that ended with the last batch.
    """

    def __init__(
        self,
        model: StreamModel,
        genome: Genome,
        batch_size: int,
        layer: int | None = None,
        waiting: list[str] | None = None,
        lanes: list[Lane] | None = None,
    ) -> None:
        """`waiting` and `lanes`: of a run that is taken up again."""
        self.model, self.genome, self.layer = model, genome, layer
        self.num_lanes = batch_size if model.has_memory else 1
        self.segments_a_lane = 1 if model.has_memory else batch_size
        # The longest first: the batch stays full to the end.
        longest_first = sorted(genome.lengths, key=genome.lengths.__getitem__, reverse=True)
        self.waiting = longest_first if waiting is None else waiting
        self.lanes = lanes or []
        self.ended: list[str] = []

    def __iter__(self) -> Iterator[list[Read]]:
        """Batches until all contigs are read; a contig's segments come in order."""
        while True:
            batch = self._next_batch()
            if not batch:
                return
            states, memory = self.model(
                [segment for _, segment in batch],
                [None if segment.is_first else lane.memory for lane, segment in batch],
                self.layer,
            )
            for (lane, segment), new_memory in zip(batch, memory, strict=True):
                lane.position, lane.memory = segment.following, new_memory
            yield [
                Read(lane.contig, segment, states[row, 1 : len(segment.ids) - 1])
                for row, (lane, segment) in enumerate(batch)
            ]

    def _next_batch(self) -> list[tuple[Lane, Segment]]:
        self.ended = []
        batch: list[tuple[Lane, Segment]] = []
        for lane in list(self.lanes):
            batch += self._take(lane)
        while len(self.lanes) < self.num_lanes and self.waiting:
            lane = Lane(self.waiting.pop(0))
            self.lanes.append(lane)
            batch += self._take(lane)
        return batch

    def _take(self, lane: Lane) -> list[tuple[Lane, Segment]]:
        """The lane's next segments; a lane that has none left is taken away."""
        if lane.segments is None:
            model = self.model
            lane.segments = read_segments(
                self.genome, lane.contig, model.tokenizer, model.segment_size, lane.position
            )
        taken = []
        for segment in lane.segments:
            taken.append((lane, segment))
            if len(taken) == self.segments_a_lane:
                break
        if not taken:
            self.lanes.remove(lane)
            self.ended.append(lane.contig)
        return taken
