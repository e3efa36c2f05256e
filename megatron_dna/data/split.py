"""Windows of S segments as windows of fewer segments: what a curriculum trains on.

The loader's windows always have `memory.max_n_segments` segments, so that sample n is the same
stretch of sequence in every stage. A batch of n segments is made by cutting windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol, runtime_checkable

from megatron_dna.data.loader import Batch


@runtime_checkable
class AnyLength(Protocol):
    """Batches whose source makes windows of any number of segments itself."""

    def with_segments(self, num_segments: int) -> Iterator[Batch]:
        """The same micro-batches from here on, of `num_segments` segments."""


def take_windows(
    batches: Iterator[Batch], count: int, num_segments: int, constant_tokens: bool
) -> list[Batch]:
    """Take `count` micro-batches as windows of `num_segments` segments.

    Args:
        batches: an endless loader.
        count: micro-batches to take from it.
        num_segments: n, segments of a window.
        constant_tokens: see `split_windows`; a source of any length makes `count` windows.
    """
    if isinstance(batches, AnyLength):
        return list(itertools.islice(batches.with_segments(num_segments), count))
    return [
        part
        for batch in itertools.islice(batches, count)
        for part in split_windows(batch, num_segments, constant_tokens)
    ]


def split_windows(batch: Batch, num_segments: int, constant_tokens: bool = True) -> list[Batch]:
    """Cut windows of S segments into windows of n.

    Args:
        batch: S-segment windows.
        num_segments: n, at most S.
        constant_tokens: make floor(S / n) micro-batches, so that only the remainder of S / n is
            left out; else only the one of the first n segments.

    Raises:
        ValueError: n does not lie between 1 and S.
    """
    available = len(batch.input_ids)
    if not 1 <= num_segments <= available:
        raise ValueError(f"num_segments ({num_segments}) must lie between 1 and {available}")
    if num_segments == available:
        return [batch]
    count = available // num_segments if constant_tokens else 1
    return [_part(batch, i * num_segments, num_segments) for i in range(count)]


def _part(batch: Batch, first: int, count: int) -> Batch:
    part = slice(first, first + count)
    mask = None if batch.attention_mask is None else batch.attention_mask[part]
    return replace(
        batch,
        input_ids=batch.input_ids[part],
        attention_mask=None if mask is None or bool(mask.all()) else mask,
        masked_positions=batch.masked_positions[part],
        labels=batch.labels[part],
        loss_mask=batch.loss_mask[part],
        num_tokens=batch.num_tokens[part],
        num_bases=batch.num_bases[part],
        first_segment=batch.first_segment + first,
    )
