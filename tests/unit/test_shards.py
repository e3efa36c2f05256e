"""Boxes of a flat range, against numpy's own order of elements."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_dna.checkpoint.shards import boxes


@given(st.data())
def test_boxes_are_the_range_in_order(data: st.DataObject):
    """An element out of place would be another weight's moment after a resume."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    numel = math.prod(shape)
    start = data.draw(st.integers(0, numel))
    stop = data.draw(st.integers(start, numel))
    elements = np.arange(numel).reshape(shape)
    cut = [
        elements[tuple(slice(offset, offset + size) for offset, size in zip(*box, strict=True))]
        for box in boxes(shape, start, stop)
    ]
    assert len(cut) <= 2 * len(shape) - 1
    assert [n for box in cut for n in box.flatten()] == list(range(start, stop))
