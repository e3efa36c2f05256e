"""What memory carries: held-out scores with it, without it, and with another sample's.

One chain of segments runs as in training. Each segment with masked tokens is scored three times:
with the memory that the chain brings (`kept`), with the initial memory (`reset`), and with what the
chain of the sample before it in the micro-batch brings (`swapped`). The controls read one
segment and leave nothing behind, so all three score the same tokens of the same chain. Segments are
computed one after another and nothing of the past is held but the memory: chains may be of any
length. A model without memory is scored on the same windows, alike three times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_dna.config import Config
from megatron_dna.data.loader import Batch, RecallBatches, build_loader, to_batch
from megatron_dna.data.recall import RecallTask
from megatron_dna.data.split import split_windows
from megatron_dna.parallel.engine import SegmentEngine, StageResult
from megatron_dna.parallel.schedule import SegmentSchedule, Task
from megatron_dna.parallel.topology import sum_over_world
from megatron_dna.parallel.wrap import whole_parameters
from megatron_dna.training.session import Session

CONTROLS = ("kept", "reset", "swapped")
_LOSS, _MASKED, _CORRECT, _DONOR = range(4)


@dataclass(frozen=True)
class MemoryScores:
    """Scores of windows of one length, the same on every process."""

    sums: npt.NDArray[np.float64]
    """[3 controls, S, 4]: loss in nats, masked tokens, right answers, answers of the donor."""
    has_donor: bool
    """Whether the donor's answer is known: recall data, with memory that was swapped."""

    @property
    def num_segments(self) -> int:
        """S."""
        return self.sums.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """Means a masked token, for JSON.

        Returns:
            `num_segments`, `num_masked`, and for each control `loss` (nats), `accuracy`, and
            `by_segment`: the same for each segment index that has masked tokens. For recall data
            `swapped` has `donor_accuracy`, the share of answers that are the donor's barcode.
        """
        result: dict[str, Any] = {
            "num_segments": self.num_segments,
            "num_masked": round(self.sums[0, :, _MASKED].sum()),
        }
        for name, sums in zip(CONTROLS, self.sums, strict=True):
            scored = np.flatnonzero(sums[:, _MASKED])
            by_segment = [{"segment": int(s), **_means(sums[s])} for s in scored]
            result[name] = {**_means(sums.sum(0)), "by_segment": by_segment}
            if self.has_donor and name == "swapped":
                result[name]["donor_accuracy"] = sums[:, _DONOR].sum() / sums[:, _MASKED].sum()
        return result


def _means(sums: npt.NDArray[np.float64]) -> dict[str, float]:
    num_masked = max(1.0, sums[_MASKED])
    return {"loss": float(sums[_LOSS] / num_masked), "accuracy": float(sums[_CORRECT] / num_masked)}


def evaluate_memory(session: Session, num_segments: int) -> MemoryScores:
    """Score `train.eval_iters` global batches of held-out windows of `num_segments` segments.

    Raises:
        ValueError: num_segments does not suit the model, or there is no sample to swap with.
    """
    config, place, model = session.config, session.place, session.model
    check_lengths(config, [num_segments])
    windows = _Windows(session, num_segments)
    scorer = _Scorer(session, num_segments)
    left = session.num_microbatches * config.train.eval_iters
    model.eval()
    model.set_is_first_microbatch()  # FP8 copies of the weights are made anew
    try:
        with torch.no_grad(), whole_parameters(model):
            while left:  # as many micro-batches at once as keep every stage busy
                count = min(left, place.pp_size)
                scorer.run(windows.take(count), count)
                left -= count
    finally:
        model.train()
    sums = scorer.sums if place.counts_loss else torch.zeros_like(scorer.sums)
    has_donor = config.data.kind == "recall" and num_segments > 1
    return MemoryScores(
        sum_over_world(sums).cpu().numpy(), has_donor and config.memory.num_mem_tokens > 0
    )


def check_lengths(config: Config, lengths: Sequence[int]) -> None:
    """Whether windows of so many segments can be scored; needs no process group.

    Raises:
        ValueError: a number does not suit the model, or there is no sample to swap memory with.
    """
    has_memory = config.memory.num_mem_tokens > 0
    for number in lengths:
        if number < 1:
            raise ValueError(f"--num-segments ({number}) must be positive")
    size = config.train.micro_batch_size
    if max(lengths) > 1 and has_memory and size < 2:
        raise ValueError(
            f"train.micro_batch_size ({size}) must be at least 2: memory is swapped within it"
        )


class _Segments(Protocol):
    """The segments of some micro-batches, each made when it is asked for."""

    def segment(self, task: Task) -> Batch:
        """One segment of a micro-batch, as a window of one segment."""

    def has_masks(self, task: Task) -> bool:
        """Whether the segment has masked tokens."""


@dataclass(frozen=True)
class _LoadedSegments:
    """Of windows in memory, cut."""

    windows: list[list[Batch]]

    def segment(self, task: Task) -> Batch:
        return self.windows[task.micro_batch][task.segment]

    def has_masks(self, task: Task) -> bool:
        return bool(self.segment(task).loss_mask.any())


@dataclass(frozen=True)
class _RecallSegments:
    """Of recall windows that are never there as a whole."""

    recall: RecallTask
    samples: list[npt.NDArray[np.int64]]
    num_segments: int

    def segment(self, task: Task) -> Batch:
        only = range(task.segment, task.segment + 1)
        return to_batch(self.recall.make(self.samples[task.micro_batch], self.num_segments, only))

    def has_masks(self, task: Task) -> bool:
        return task.segment == self.num_segments - 1


class _Windows:
    """Held-out windows of a number of segments, from the first sample on."""

    def __init__(self, session: Session, num_segments: int) -> None:
        memory = dataclasses.replace(session.config.memory, max_n_segments=num_segments)
        config = dataclasses.replace(session.config, memory=memory)
        place = session.place
        self._loader: Iterator[Batch] = build_loader(
            config, "valid", 0, place.dp_rank, place.dp_size, log=False
        )
        self._num_segments = num_segments

    def take(self, count: int) -> _Segments:
        """The next `count` micro-batches of this data-parallel rank."""
        if isinstance(self._loader, RecallBatches):
            numbers = self._loader.sample_numbers()
            samples = [next(numbers) for _ in range(count)]
            return _RecallSegments(self._loader.task, samples, self._num_segments)
        return _LoadedSegments([split_windows(next(self._loader), 1) for _ in range(count)])


class _Scorer:
    """Runs chains on this pipeline stage and adds up what its head says."""

    def __init__(self, session: Session, num_segments: int) -> None:
        self.session = session
        self.num_segments = num_segments
        self.device = session.token_lengths.device
        self.sums = torch.zeros(
            len(CONTROLS), num_segments, 4, dtype=torch.float64, device=self.device
        )

    def run(self, segments: _Segments, num_microbatches: int) -> None:
        """Score all segments of some micro-batches."""
        config, place = self.session.config, self.session.place
        length = config.residual_length
        size, width = config.train.micro_batch_size, config.model.hidden_size
        SegmentEngine(
            SegmentSchedule(self.num_segments, -1, num_microbatches),
            place.ring,
            lambda task, hidden, memory: self._forward(segments, task, hidden, memory),
            hidden_shape=lambda task: (length, self._num_copies(segments, task) * size, width),
            memory_shape=(config.memory.num_mem_tokens, size, width),
            dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
            device=self.device,
        ).run(forward_only=True)

    def _num_copies(self, segments: _Segments, task: Task) -> int:
        """Times that the micro-batch is computed: with the controls only where they can differ."""
        has_memory = self.session.config.memory.num_mem_tokens > 0 and task.segment > 0
        return len(CONTROLS) if has_memory and segments.has_masks(task) else 1

    def _forward(
        self, segments: _Segments, task: Task, hidden: Tensor | None, memory: Tensor | None
    ) -> StageResult:
        batch, copies = segments.segment(task), self._num_copies(segments, task)
        model, mask = self.session.model, batch.attention_mask
        if hidden is not None:
            model.module.set_input_tensor(hidden)
        if memory is not None and copies > 1:
            initial = model.module.embedding.initial_memory[:, None].expand_as(memory)
            memory = torch.cat((memory, initial, memory.roll(1, dims=1)), dim=1)
        output = model(
            batch.input_ids[0].to(self.device).repeat(copies, 1),
            None if mask is None else mask[0].to(self.device).repeat(copies, 1),
            batch.masked_positions[0].to(self.device).repeat(copies, 1),
            memory=memory,
        )
        if output.logits is None:
            return StageResult(output.hidden, None, None)
        self._score(output.logits.unflatten(0, (copies, -1)), batch, task.segment)
        new_memory = output.new_memory
        if new_memory is not None:
            new_memory = new_memory[:, : batch.input_ids.shape[1]]  # the chain's, of the first copy
        return StageResult(None, None, new_memory)

    def _score(self, logits: Tensor, batch: Batch, segment: int) -> None:
        """Add up a segment; [copies, micro_batch, k, vocab]. One copy counts for all controls."""
        labels, seen = batch.labels[0].to(self.device), batch.loss_mask[0].to(self.device)
        best = logits.argmax(-1)
        losses = F.cross_entropy(
            logits.float().flatten(0, 2), labels.repeat(len(logits), 1).flatten(), reduction="none"
        ).view(best.shape)
        donor = labels.roll(1, dims=0)  # as the memory was
        values = torch.stack((losses, torch.ones_like(losses), best == labels, best == donor))
        self.sums[:, segment] += (values * seen).sum((2, 3)).double().T
