"""A whole genome through a plain or RMT model folder, in memory that does not grow with it.

Contigs share the batch, so that the device is full. A contig that is being read is a lane. With
memory a lane has one row of the batch, and memory is carried on within a stretch. Without memory
segments do not depend on each other, and a lane takes all rows that it can fill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ModernBertForMaskedLM, ModernBertModel

from megatron_dna.hf.folder import folder_sha256, load_model, open_folder
from megatron_dna.hf.modeling_rmt import RmtConfig, RmtForMaskedLM, RmtModel
from megatron_dna.inference.genome import Genome, Ids, Position, Segment, read_segments

_MIN_SPARED = 0.1
"""Share of a batch's tokens, padding included, that a second pass must spare."""

Reader = Callable[[list["Segment"], list["Tensor | None"]], tuple[Tensor, list["Tensor | None"]]]
"""Reads a batch: its segments and each row's memory [M, hidden] (None starts afresh) to fp32
[batch, longest, width] on the CPU ([CLS] first) and each row's new memory."""


class StreamModel:
    """A model folder, plain or RMT, that reads batches of segments.

    Attributes:
        tokenizer: of the folder.
        segment_size: C.
        hidden_size: width of the states.
        has_memory: whether states depend on the segments before.
    """

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, masked_lm: bool = False
    ) -> None:
        """Load the encoder, with `masked_lm` also the head that predicts tokens.

        Raises:
            ValueError: not a model folder that this package makes or trains, or not all of one.
        """
        config, self.tokenizer = open_folder(folder)
        self._folder = folder
        self.has_memory = isinstance(config, RmtConfig)
        kinds: tuple[Any, Any] = (ModernBertModel, RmtModel)
        if masked_lm:
            kinds = ModernBertForMaskedLM, RmtForMaskedLM
        need = "a masked language model with its head" if masked_lm else "an encoder"
        model = load_model(kinds[self.has_memory], folder, dtype, need)
        self.model = model.to(device).eval()
        self.encoder = self.model.model if masked_lm else self.model
        self.device = device
        self.hidden_size: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        self.segment_size: int = (
            config.segment_size if isinstance(config, RmtConfig) else config.max_position_embeddings
        )

    def sha256(self) -> str:
        """Of the folder's options, tokenizer and weights and the precision."""
        return folder_sha256(self._folder, str(self.model.dtype))

    @torch.inference_mode()
    def __call__(
        self, segments: list[Segment], memory: list[Tensor | None], layer: int | None = None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """States of a batch of segments; a `Reader`.

        Args:
            segments: one a row.
            memory: of each row.
            layer: 0 is the embedding, i what layer i leaves; None the final norm's states.
        """
        ids = self.pad([segment.ids for segment in segments])
        states, new_memory = self.encode(ids, memory, layer)
        return states.float().cpu(), new_memory

    def pad(self, rows: Sequence[Ids]) -> Tensor:
        """Ids on the device, [rows, longest], with padding behind the shorter ones."""
        return pad_rows(rows, self.tokenizer.pad_id).to(self.device)

    def encode(
        self, ids: Tensor, memory: list[Tensor | None], layer: int | None = None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """States [batch, length, hidden] on the device, and each row's new memory on the CPU.

        States of padding mean nothing.
        """
        parts = split_rows((ids != self.tokenizer.pad_id).sum(1).tolist())
        if len(parts) == 1:
            return self._encode(ids, memory, layer)
        states = torch.empty(0)
        new_memory = list(memory)
        for rows, length in parts:
            found, found_memory = self._encode(
                ids[rows, :length], [memory[row] for row in rows], layer
            )
            if not len(states):
                states = found.new_zeros(*ids.shape, found.shape[-1])
            states[rows, :length] = found
            for row, row_memory in zip(rows, found_memory, strict=True):
                new_memory[row] = row_memory
        return states, new_memory

    def _encode(
        self, ids: Tensor, memory: list[Tensor | None], layer: int | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """As `encode`, in one pass."""
        is_token = ids != self.tokenizer.pad_id
        # Without a mask attention is faster, and most batches have no padding.
        inputs = {"attention_mask": None if bool(is_token.all()) else is_token.long()}
        if self.has_memory:
            fresh = self.encoder.initial_memory
            rows = [fresh if row is None else row for row in memory]
            inputs["memory"] = torch.stack([row.to(fresh) for row in rows])
        output = self.encoder(ids, **inputs, output_hidden_states=layer is not None)
        states = output.last_hidden_state if layer is None else output.hidden_states[layer]
        new_memory: list[Tensor | None] = [None] * len(ids)
        if self.has_memory:
            new_memory = list(output.memory.float().cpu())
        return states, new_memory

    def logits(self, states: Tensor) -> Tensor:
        """What the head of a model with `masked_lm` says to states [tokens, hidden]: fp32."""
        logits: Tensor = self.model.decoder(self.model.head(states))
        return logits.float()


def pad_rows(rows: Sequence[Ids], pad_id: int) -> Tensor:
    """int64 [rows, longest], with padding behind the shorter ones."""
    ids = np.full((len(rows), max(map(len, rows))), pad_id)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    return torch.from_numpy(ids)


def split_rows(lengths: Sequence[int]) -> list[tuple[list[int], int]]:
    """A batch's rows in one pass, or long and short ones in two if that spares enough padding.

    Args:
        lengths: tokens of each row.

    Returns:
        Rows of each pass and the tokens of its longest one.
    """
    rows = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
    longest = [lengths[row] for row in rows]
    costs = [longest[0] * k + longest[k] * (len(rows) - k) for k in range(1, len(rows))]
    if not costs or min(costs) > (1 - _MIN_SPARED) * longest[0] * len(rows):
        return [(list(range(len(lengths))), longest[0])]
    at = costs.index(min(costs)) + 1
    return [(rows[:at], longest[0]), (rows[at:], longest[at])]


@dataclass
class Lane:
    """A contig that is being read."""

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
    values: Tensor
    """fp32 [tokens, width] that the reader gave, without [CLS] and [SEP]."""


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
        reader: Reader | None = None,
        waiting: list[str] | None = None,
        lanes: list[Lane] | None = None,
    ) -> None:
        """Start, or go on with the `waiting` and `lanes` of a run that is taken up again.

        Args:
            model: says how to cut segments.
            genome: the contigs.
            batch_size: segments that are read at once.
            reader: reads them; default the model itself.
            waiting: see above.
            lanes: see above.
        """
        self.model, self.genome, self.batch_size = model, genome, batch_size
        self.reader = reader or model
        # The longest first: the batch stays full to the end, of segments of about one length.
        longest_first = sorted(genome.lengths, key=genome.lengths.__getitem__, reverse=True)
        self.waiting = deque(longest_first if waiting is None else waiting)
        self.lanes = lanes or []
        self.ended: list[str] = []

    def __iter__(self) -> Iterator[list[Read]]:
        """Batches until all contigs are read; a contig's segments come in order."""
        while True:
            batch = self._next_batch()
            if not batch:
                return
            values, memory = self.reader(
                [segment for _, segment in batch],
                [None if segment.is_first else lane.memory for lane, segment in batch],
            )
            for (lane, segment), new_memory in zip(batch, memory, strict=True):
                lane.position, lane.memory = segment.following, new_memory
            yield [
                Read(lane.contig, segment, values[row, 1 : len(segment.ids) - 1])
                for row, (lane, segment) in enumerate(batch)
            ]

    def _next_batch(self) -> list[tuple[Lane, Segment]]:
        self.ended = []
        batch: list[tuple[Lane, Segment]] = []
        for lane in list(self.lanes):
            batch += self._take(lane, self.batch_size - len(batch))
        while len(batch) < self.batch_size and self.waiting:
            lane = Lane(self.waiting.popleft())
            self.lanes.append(lane)
            batch += self._take(lane, self.batch_size - len(batch))
        return batch

    def _take(self, lane: Lane, room: int) -> list[tuple[Lane, Segment]]:
        """The lane's next segments; a lane that has none left is taken away."""
        model = self.model
        if lane.segments is None:
            lane.segments = read_segments(
                self.genome, lane.contig, model.tokenizer, model.segment_size, lane.position
            )
        taken = [(lane, s) for s in islice(lane.segments, 1 if model.has_memory else room)]
        if not taken:
            self.lanes.remove(lane)
            self.ended.append(lane.contig)
        return taken
