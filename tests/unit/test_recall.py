"""Recall data: what a window holds, and that any part of it can be made alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_dna.config import ConfigError, load_config
from megatron_dna.data.loader import Batch, RecallBatches, build_loader
from megatron_dna.data.recall import RecallTask
from megatron_dna.data.vocabulary import open_vocabulary
from megatron_dna.validation import validate

RECALL = [
    "data.kind=recall", "data.segment_size=16", "data.recall_vocab_size=20",
    "memory.num_mem_tokens=2", "memory.max_n_segments=3",
    "train.micro_batch_size=2", "train.global_batch_size=8",
]  # fmt: skip
WORD = 2**64


def mix(state: int) -> int:
    """SplitMix64's finaliser on Python's integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % WORD
    return state ^ (state >> 31)


def symbol(task: RecallTask, sample: int, place: int, position: int) -> int:
    """The definition of a random symbol, one at a time."""
    state = task.seed % WORD
    for number in (task.stream, sample, place, position):
        state = mix((state + 0x9E3779B97F4A7C15 * (number + 1)) % WORD)
    return 8 + state % (task.vocab_size - 8)


def slow_window(task: RecallTask, sample: int, num_segments: int) -> tuple[list[list[int]], list]:
    """Segments of ids and the barcode, symbol by symbol."""
    barcode = [symbol(task, sample, 0, i) for i in range(4)]
    window = []
    for s in range(num_segments):
        noise = [symbol(task, sample, s + 1, i) for i in range(task.segment_size - 2)]
        if s == 0:
            noise[:5] = [6, *barcode]
        if s == num_segments - 1:
            noise[-5:] = [7, 4, 4, 4, 4]
        window.append([1, *noise, 2])
    return window, barcode


@given(
    st.integers(-5, 2**70), st.integers(0, 3), st.integers(12, 20), st.integers(10, 70),
    st.integers(1, 4), st.lists(st.integers(0, 2**40), min_size=1, max_size=3),
)  # fmt: skip
def test_windows_equal_the_definition(seed, stream, size, vocab, num_segments, samples):
    """A difference means that a run cannot be repeated elsewhere."""
    task = RecallTask(vocab, size, seed, stream)
    made = task.make(np.array(samples, np.int64), num_segments)
    for i, sample in enumerate(samples):
        window, barcode = slow_window(task, sample, num_segments)
        assert made.input_ids[:, i].tolist() == window
        assert made.labels[-1, i].tolist() == barcode
    assert made.masked_positions[-1].tolist() == [list(range(size - 5, size - 1))] * len(samples)
    assert (made.loss_mask[-1] == 1).all()
    assert not made.loss_mask[:-1].any(), "only the last segment asks"
    content = (made.input_ids >= 8) | (made.input_ids == 4)
    assert (made.num_bases == content.sum(-1)).all()
    assert made.samples.tolist() == samples


def test_segments_can_be_made_one_by_one():
    """Long chains are evaluated without being held: parts must equal those of the whole."""
    task = RecallTask(64, 56, 1, 0)
    samples = np.arange(5, dtype=np.int64)
    whole = task.make(samples, 4)
    for s in range(4):
        part = task.make(samples, 4, range(s, s + 1))
        for name in ("input_ids", "masked_positions", "labels", "loss_mask"):
            assert (getattr(part, name)[0] == getattr(whole, name)[s]).all()
    longer = task.make(samples, 6)
    assert (longer.input_ids[:3] == whole.input_ids[:3]).all(), "the past depends on the future"


def test_symbols_are_uniform_and_splits_differ():
    """Were some symbols likelier, chance would not be one in num_symbols."""
    task = RecallTask(64, 56, 1, 0)
    codes = task.barcodes(np.arange(10000, dtype=np.int64))
    counts = np.bincount(codes.ravel(), minlength=64)[8:]
    expected = codes.size / task.num_symbols
    assert ((counts - expected) ** 2 / expected).sum() < 110, "chi-square, 55 degrees of freedom"
    other = RecallTask(64, 56, 1, 1).barcodes(np.arange(10000, dtype=np.int64))
    assert (codes == other).mean() < 0.03


def numbers_of(batch: Batch) -> list[int]:
    """Which samples a batch holds, by their barcodes."""
    task = RecallTask(20, 16, 1234, 0)
    known = {tuple(task.barcodes(np.array([n]))[0]): n for n in range(64)}
    return [known[tuple(row)] for row in batch.labels[-1].tolist()]


def test_loader_deals_samples_by_rank_and_resumes():
    """The global batch must not depend on the layout, nor on where a run was stopped."""
    config = load_config(None, RECALL)
    one = build_loader(config, "train", 0, 0, 1)
    whole = list(itertools.chain(*(numbers_of(batch) for batch in itertools.islice(one, 4))))
    assert whole == list(range(8))
    split = [build_loader(config, "train", 8, rank, 2) for rank in range(2)]
    assert [numbers_of(next(split[j % 2])) for j in range(4)] == [
        [8, 9],
        [10, 11],
        [12, 13],
        [14, 15],
    ]
    batch = next(one)
    assert batch.input_ids.shape == (3, 2, 16)
    assert batch.masked_positions.shape == (3, 2, 4)
    assert batch.attention_mask is None
    assert batch.input_ids.dtype == torch.int64
    assert batch.samples.tolist() == [8, 9]
    assert batch.num_tokens.tolist() == [[14, 14]] * 3


def test_loader_makes_windows_of_any_number_of_segments():
    """A curriculum asks for n segments batch by batch; the samples go on all the same."""
    loader = build_loader(load_config(None, RECALL), "train", 0, 0, 1)
    assert isinstance(loader, RecallBatches)
    batches = [next(loader.with_segments(n)) for n in (1, 5, 2)] + [next(loader)]
    assert [len(batch.input_ids) for batch in batches] == [1, 5, 2, 3]
    assert [numbers_of(batch) for batch in batches] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_vocabulary_of_recall_data():
    """The model's embedding and bits a symbol follow from it."""
    vocabulary = open_vocabulary(load_config(None, RECALL))
    assert vocabulary.vocab_size == 20
    assert vocabulary.token_lengths.tolist() == [0] * 8 + [1] * 12
    other = open_vocabulary(load_config(None, [*RECALL, "data.recall_vocab_size=21"]))
    assert vocabulary.sha256 != other.sha256
    assert len(vocabulary.sha256) == 64


def test_good_recall_options_pass_without_any_file():
    config = load_config(None, RECALL)
    validate(config, world_size=1)
    assert config.num_masked_tokens == 4
    # The control that has no memory to use: trained on the same windows.
    validate(load_config(None, [*RECALL, "memory.num_mem_tokens=0"]), world_size=1)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.recall_vocab_size=9", "data.recall_vocab_size (9) must be at least 10"),
        ("data.segment_size=11", "data.segment_size (11) must be at least 12"),
        ("data.kind=noise", "data.kind (noise) must be one of genome, recall"),
    ],
)
def test_bad_recall_options_are_refused(override: str, words: str):
    """Without room for markers, symbols or question the task would be something else."""
    with pytest.raises(ConfigError) as error:
        validate(load_config(None, [*RECALL, override]), world_size=1)
    assert words in str(error.value)
