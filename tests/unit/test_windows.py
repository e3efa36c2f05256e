"""Windows over documents: a failure means lost, doubled or misplaced training sequence."""

from collections import Counter
from math import isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dna.data.windows import WindowIndex
from tests.unit.data_files import below, philox

PHASE, ORDER = 1, 2


def slow_permute(index, size, epoch, source, seed):
    """Feistel with addition on a grid of isqrt + 1 rows, walked until it lies in [0, size)."""
    rows = isqrt(size) + 1
    columns = -(-size // rows)
    while True:
        row, column = divmod(index, columns)
        for i in range(0, 8, 2):
            word = philox((column, i, epoch, source), (seed, ORDER))[0]
            row = (row + below(word, rows)) % rows
            word = philox((row, i + 1, epoch, source), (seed, ORDER))[0]
            column = (column + below(word, columns)) % columns
        index = row * columns + column
        if index < size:
            return index


def slow_starts(length, window, phase):
    """All starts of a document's windows, in order."""
    if length <= window:
        return [0]
    inner = list(range(phase, length - window + 1, window))
    extra = -(-length // window) - len(inner)
    tail = length - (inner[-1] + window if inner else phase)
    head = [0] if extra == 2 or (extra == 1 and phase > tail) else []
    return head + inner + [length - window] * (extra - len(head))


def slow_locate(lengths, window, seed, source, random_phase, sample):
    size = sum(-(-length // window) for length in lengths)
    epoch, index = divmod(sample, size)
    number = slow_permute(index, size, epoch, source, seed)
    for document, length in enumerate(lengths):
        count = -(-length // window)
        if number < count:
            word = philox((document, epoch, 0, source), (seed, PHASE))[0]
            phase = below(word, window) if random_phase else 0
            return document, slow_starts(length, window, phase)[number], min(length, window)
        number -= count
    raise AssertionError


def make_index(lengths, window, **options):
    return WindowIndex(np.array(lengths, np.int32), window, **{"seed": 7, **options})


def locate(index, samples):
    """[(document, start, length)] of samples."""
    return list(zip(*(a.tolist() for a in index.locate(np.asarray(samples))), strict=True))


def epoch_of(index, epoch):
    return locate(index, np.arange(epoch * len(index), (epoch + 1) * len(index)))


documents = st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any)


@settings(max_examples=60, deadline=None)
@given(
    lengths=documents, window=st.integers(1, 25), seed=st.integers(0, 2**64 - 1),
    source=st.integers(0, 3), random_phase=st.booleans(),
    samples=st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 300), min_size=1, max_size=5),
)  # fmt: skip
def test_every_sample_is_where_the_slow_oracle_puts_it(
    lengths, window, seed, source, random_phase, samples
):
    index = make_index(lengths, window, seed=seed, source=source, random_phase=random_phase)
    expected = [slow_locate(lengths, window, seed, source, random_phase, n) for n in samples]
    assert locate(index, np.array(samples, np.int64)) == expected


@settings(max_examples=100, deadline=None)
@given(lengths=documents, window=st.integers(1, 25), seed=st.integers(0, 99))
def test_validation_windows_start_at_multiples_and_cover_every_token(lengths, window, seed):
    index = make_index(lengths, window, seed=seed, random_phase=False)
    expected = []
    for document, length in enumerate(lengths):
        starts = [min(start, max(length - window, 0)) for start in range(0, length, window)]
        expected += [(document, start, min(length, window)) for start in starts]
    for epoch in (0, 3):
        assert sorted(epoch_of(index, epoch)) == expected


@settings(max_examples=200, deadline=None)
@given(lengths=documents, window=st.integers(1, 25), epoch=st.integers(0, 1000))
def test_training_windows_are_full_distinct_and_miss_at_most_half_a_window(lengths, window, epoch):
    index = make_index(lengths, window)
    windows = epoch_of(index, epoch)
    assert len(windows) == len(set(windows)) == sum(-(-length // window) for length in lengths)
    for document, length in enumerate(lengths):
        mine = [(start, size) for d, start, size in windows if d == document]
        covered = np.zeros(length, int)
        for start, size in mine:
            assert size == min(length, window)
            assert 0 <= start <= length - size
            covered[start : start + size] += 1
        missed = np.flatnonzero(covered == 0)
        assert 2 * len(missed) <= window
        if len(missed):  # one piece, at one end
            assert len(missed) == missed[-1] - missed[0] + 1
            assert missed[0] == 0 or missed[-1] == length - 1


@pytest.mark.parametrize("length", [1000, 1001, 1049, 1099])
def test_coverage_is_uniform_away_from_the_ends(length):
    """Every token at least one window from an end is seen exactly once in almost every epoch."""
    window, epochs = 100, 2000
    index = make_index([length], window)
    _, starts, _ = index.locate(np.arange(epochs * len(index)))
    steps = np.bincount(starts, minlength=length + 1) - np.bincount(
        starts + window, minlength=length + 1
    )
    coverage = np.cumsum(steps)[:length] / epochs
    np.testing.assert_array_equal(coverage[window:-window], 1)
    assert coverage.min() > 0.45
    assert coverage.max() < 2.05
    np.testing.assert_allclose(coverage, coverage[::-1], atol=0.06)
    phases = np.bincount(starts % window, minlength=window)
    assert phases.min() > 0


def test_an_epoch_is_a_permutation_of_its_windows():
    for size in [*range(1, 40), 1000, 4096, 10_007]:
        index = make_index([size], 1)
        for epoch in (0, 1):
            starts = [start for _, start, _ in epoch_of(index, epoch)]
            assert sorted(starts) == list(range(size))


def test_order_depends_on_seed_epoch_and_source():
    lengths = [500]
    orders = [
        tuple(epoch_of(make_index(lengths, 1, seed=seed, source=source), epoch))
        for seed in (1, 2)
        for source in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert len(set(orders)) == len(orders)
    assert orders[0] == tuple(epoch_of(make_index(lengths, 1, seed=1), 0))


@pytest.mark.parametrize("size", [2, 3, 6, 50])
def test_order_is_uniform(size):
    """Over epochs each window comes first, second, ... equally often (chi-square, 5 sigma)."""
    epochs = 4000
    index = make_index([size], 1)
    _, starts, _ = index.locate(np.arange(epochs * size))
    table = np.zeros((size, size))
    np.add.at(table, (np.tile(np.arange(size), epochs), starts), 1)
    chi_square = ((table - epochs / size) ** 2 / (epochs / size)).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom) + 5


def test_neighbours_in_order_are_not_neighbours_in_the_genome():
    index = make_index([100_000], 10, random_phase=False)
    starts = np.array([start for _, start, _ in epoch_of(index, 0)])
    distance = np.abs(np.diff(starts))
    assert abs(distance.mean() / 100_000 - 1 / 3) < 0.01
    assert Counter((distance == 10).tolist())[True] < 10


def test_a_genome_of_many_billion_tokens_does_not_overflow():
    lengths = [2**31 - 1] * 40
    index = make_index(lengths, 3)
    assert len(index) == 40 * -(-(2**31 - 1) // 3)
    samples = np.array([0, len(index) - 1, 2**63 - 1])
    for document, start, size in locate(index, samples):
        assert 0 <= document < 40
        assert size == 3
        assert 0 <= start <= 2**31 - 1 - 3


def test_short_documents_are_skipped():
    index = make_index([4, 0, 5, 9], 5, min_tokens=5)
    assert len(index) == 3
    assert {document for document, _, _ in epoch_of(index, 0)} == {2, 3}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"window_tokens \(0\) must be positive"):
        make_index([5], 0)
    with pytest.raises(ValueError, match=r"min_tokens \(0\) must be positive"):
        make_index([5], 5, min_tokens=0)
    with pytest.raises(ValueError, match=r"document length \(-1\) must not be negative"):
        make_index([5, -1], 5)
    with pytest.raises(ValueError, match=r"sample \(-3\) must not be negative"):
        locate(make_index([5], 5), [-3])
    with pytest.raises(ValueError, match="no document"):
        locate(make_index([0], 5), [0])
