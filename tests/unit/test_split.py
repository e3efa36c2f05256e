"""Cutting windows into shorter ones: nothing is read twice, nothing but the remainder is lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from megatron_dna.data.loader import Batch
from megatron_dna.data.split import split_windows, take_windows

SIZE, C, K = 2, 6, 3


def make_batch(num_segments: int, first: int = 0, padded_from: int | None = None) -> Batch:
    """Every entry different; segments from `padded_from` on have padding."""
    rows = (num_segments, SIZE)
    mask = torch.ones(*rows, C, dtype=torch.bool)
    if padded_from is not None:
        mask[padded_from:, 0, 4:] = False
    return Batch(
        input_ids=torch.arange(num_segments * SIZE * C).view(*rows, C) + 1000 * first,
        attention_mask=None if padded_from is None else mask,
        masked_positions=torch.arange(num_segments * SIZE * K).view(*rows, K),
        labels=torch.arange(num_segments * SIZE * K).view(*rows, K) + 500,
        loss_mask=torch.rand(*rows, K),
        num_tokens=torch.arange(num_segments * SIZE).view(rows),
        num_bases=torch.arange(num_segments * SIZE).view(rows) * 6,
        samples=torch.arange(first, first + SIZE),
    )


@pytest.mark.parametrize(("available", "wanted"), [(7, 1), (7, 2), (7, 3), (6, 3), (5, 4), (4, 4)])
@pytest.mark.parametrize("constant_tokens", [True, False])
def test_parts_joined_are_the_window(available: int, wanted: int, constant_tokens: bool):
    batch = make_batch(available, padded_from=available - 1)
    parts = split_windows(batch, wanted, constant_tokens)
    count = available // wanted if constant_tokens else 1
    assert len(parts) == count
    kept = count * wanted
    for name in ("input_ids", "masked_positions", "labels", "loss_mask", "num_tokens", "num_bases"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(batch, name)[:kept]), name
        assert all(len(getattr(part, name)) == wanted for part in parts)
    assert [part.first_segment for part in parts] == [i * wanted for i in range(count)]
    assert all(torch.equal(part.samples, batch.samples) for part in parts)


def test_only_padded_parts_have_a_mask():
    """A mask of ones would cost the fast attention path."""
    parts = split_windows(make_batch(6, padded_from=4), 2)
    assert [part.attention_mask is None for part in parts] == [True, True, False]
    assert torch.equal(parts[2].attention_mask, make_batch(6, padded_from=4).attention_mask[4:])


def test_parts_of_parts_keep_their_place():
    (_, second) = split_windows(make_batch(4), 2)
    assert [part.first_segment for part in split_windows(second, 1)] == [2, 3]


@pytest.mark.parametrize("wanted", [0, 5])
def test_impossible_lengths_are_refused(wanted: int):
    with pytest.raises(ValueError, match="between 1 and 4"):
        split_windows(make_batch(4), wanted)


def test_as_many_micro_batches_are_taken_whatever_their_length():
    """The data position of a run must not depend on its curriculum."""
    batches = (make_batch(5, first) for first in itertools.count(step=SIZE))
    taken = take_windows(batches, 3, 2, True)
    assert [part.samples[0].item() for part in taken] == [0, 0, 2, 2, 4, 4]
    assert next(batches).samples[0] == 6


def test_a_source_of_any_length_makes_the_windows_itself():
    class Source(Iterator[Batch]):
        def __init__(self) -> None:
            self.firsts = itertools.count()

        def __next__(self) -> Batch:
            return next(self.with_segments(5))

        def with_segments(self, num_segments: int) -> Iterator[Batch]:
            return (make_batch(num_segments, first) for first in self.firsts)

    source = Source()
    taken = take_windows(source, 3, 2, True)
    assert [len(batch.input_ids) for batch in taken] == [2, 2, 2]
    assert [batch.samples[0].item() for batch in taken] == [0, 1, 2]
    assert next(source).samples[0] == 3
