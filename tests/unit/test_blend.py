"""Blends: a failure means a source gets more or less than its weight, or repeats samples."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dna.data.blend import Blend

weights = st.lists(
    st.floats(1e-3, 1e3) | st.integers(1, 100).map(float) | st.sampled_from([1.0, 0.5, 0.1]),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(weights=weights)
def test_shares_are_exact_at_every_length(weights):
    """At no length is a source more than 1.5 samples off its share; its samples come in order."""
    blend = Blend(weights)
    counts = [0] * len(weights)
    for n in range(600):
        source, number = blend.locate(n)
        assert number == counts[source]
        counts[source] += 1
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - (n + 1) * weight / sum(weights)) < 1.5


@settings(max_examples=100, deadline=None)
@given(weights=weights, start=st.integers(0, 10**15))
def test_a_sample_late_in_training_needs_no_history(weights, start):
    blend = Blend(weights)
    next_number = {}
    for n in range(start, start + 50):
        source, number = blend.locate(n)
        share = n * weights[source] / sum(weights)
        assert number == pytest.approx(share, abs=2, rel=1e-12)
        assert next_number.get(source, number) == number
        next_number[source] = number + 1


def test_one_source_is_the_identity():
    blend = Blend([0.3])
    assert [blend.locate(n) for n in (0, 1, 10**18)] == [(0, 0), (0, 1), (0, 10**18)]


def test_equal_weights_take_turns_and_small_ones_are_spread():
    assert [Blend([50, 50]).locate(n)[0] for n in range(6)] == [0, 1, 0, 1, 0, 1]
    rare = [n for n in range(400) if Blend([99, 1]).locate(n)[0] == 1]
    assert [b - a for a, b in itertools.pairwise(rare)] == [100, 100, 100]


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("nan")], [float("inf")]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        Blend(weights)
