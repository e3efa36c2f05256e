"""Masked segments: a failure means the model is trained on other tokens than it is told."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dna.config import load_config
from megatron_dna.data.masking import Masker, VocabularyError
from tests.unit.data_files import below, philox

UNK, CLS, SEP, PAD, MASK, GAP = range(6)
VOCAB_SIZE = 40
SEED = 11


def make_tokenizer(vocab_size=VOCAB_SIZE, special_ids=range(6)):
    """The part of DnaTokenizer that masking uses; token i spells i bases."""
    lengths = np.arange(vocab_size, dtype=np.int32)
    lengths[[i for i in special_ids if i < vocab_size]] = 0
    return SimpleNamespace(
        vocab_size=vocab_size, special_ids=frozenset(special_ids), token_lengths=lengths,
        unk_id=UNK, cls_id=CLS, sep_id=SEP, pad_id=PAD, mask_id=MASK, gap_id=GAP,
    )  # fmt: skip


def make_masker(segment_size=32, probability=0.15, span=1.0, segments=1, stream=0, **tokenizer):
    config = load_config(None, [
        f"data.segment_size={segment_size}", f"data.mlm_probability={probability}",
        f"data.mean_span_length={span}", f"memory.max_n_segments={segments}", f"data.seed={SEED}",
    ])  # fmt: skip
    return Masker(config, make_tokenizer(**tokenizer), stream=stream), config.num_masked_tokens


def draw_words(sample, segment, stream):
    block = 0
    while True:
        yield from philox((block, segment, sample, stream), (SEED % 2**64, 3))
        block += 1


def slow_mask(tokens, k, size, span, sample, segment, stream, vocab_size=VOCAB_SIZE):
    """One segment: framed input, positions and labels."""
    words = draw_words(sample, segment, stream)
    ids = [CLS, *tokens, SEP]
    maskable = [i for i, token in enumerate(ids) if token > GAP]
    if not maskable:
        return ids + [PAD] * (size - len(ids)), [], []
    count = (2 * k * len(tokens) + size - 2) // (2 * (size - 2))
    count = min(max(count, 1), len(maskable))
    spans = []
    while sum(spans) < count:
        left, length = count - sum(spans), 1
        while span > 1 and length < left and next(words) < int((1 - 1 / span) * 2**64):
            length += 1
        spans.append(length)
    items = list(range(len(maskable) - count + len(spans)))
    for i in range(len(spans)):
        j = i + below(next(words), len(items) - i)
        items[i], items[j] = items[j], items[i]
    length_at = dict(zip(items, spans, strict=False))
    circle = [flag for i in range(len(items)) for flag in [i in length_at] * length_at.get(i, 1)]
    cut = below(next(words), len(maskable))
    masked = circle[len(circle) - cut :] + circle[: len(circle) - cut]
    positions = [i for i, flag in zip(maskable, masked, strict=True) if flag]
    labels = [ids[i] for i in positions]
    for i in positions:
        kind = below(next(words), 10)
        if kind < 8:
            ids[i] = MASK
        elif kind == 8:
            ids[i] = GAP + 1 + below(next(words), vocab_size - GAP - 1)
    return ids + [PAD] * (size - len(ids)), positions, labels


@settings(max_examples=150, deadline=None)
@given(
    windows=st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=30), min_size=1, max_size=3),
    segment_size=st.integers(12, 14), probability=st.sampled_from([0.01, 0.15, 0.4, 0.95]),
    span=st.sampled_from([1, 1.5, 3, 8]), stream=st.integers(0, 1), dtype=st.sampled_from("Hi"),
    first=st.integers(0, 2**62),
)  # fmt: skip
def test_masks_equal_the_slow_oracle(
    windows, segment_size, probability, span, stream, dtype, first
):
    masker, k = make_masker(segment_size, probability, span, segments=3, stream=stream)
    samples = first + np.arange(len(windows))
    got = masker.mask([np.array(window, dtype) for window in windows], samples)
    content = segment_size - 2
    for slot, window in enumerate(windows):
        for segment in range(3):
            tokens = window[segment * content : (segment + 1) * content]
            ids, positions, labels = slow_mask(
                tokens, k, segment_size, span, first + slot, segment, stream
            )
            unused = [0] * (k - len(positions))
            assert got.input_ids[segment, slot].tolist() == ids
            assert got.masked_positions[segment, slot].tolist() == positions + unused
            assert got.labels[segment, slot].tolist() == labels + unused
            assert got.loss_mask[segment, slot].tolist() == [1.0] * len(positions) + unused
            assert got.num_real[segment, slot] == len(tokens) + 2
    assert got.num_real.sum() - 2 * got.num_real.size == sum(map(len, windows))
    assert got.num_bases.sum() == sum(
        token for window in windows for token in window if token > GAP
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), span=st.sampled_from([1, 3]), num_special=st.integers(0, 20))
def test_full_segments_have_exactly_k_masked_positions_and_never_a_special_one(
    seed, span, num_special
):
    masker, k = make_masker(64, 0.2, span, segments=2)
    rng = np.random.default_rng(seed)
    windows = rng.integers(6, VOCAB_SIZE, (5, 124)).astype(np.uint16)
    for window in windows:
        window[rng.choice(124, num_special, replace=False)] = rng.integers(0, 6, num_special)
    got = masker.mask(list(windows), np.arange(seed, seed + 5))
    original = np.full((2, 5, 64), SEP)
    original[:, :, 0] = CLS
    original[:, :, 1:-1] = windows.reshape(5, 2, 62).swapaxes(0, 1)
    assert (got.loss_mask == 1).all()
    assert got.masked_positions.shape == (2, 5, k)
    assert (np.diff(got.masked_positions, axis=-1) > 0).all()
    np.testing.assert_array_equal(
        np.take_along_axis(original, got.masked_positions, -1), got.labels
    )
    assert (got.labels > GAP).all()
    restored = got.input_ids.copy()
    np.put_along_axis(restored, got.masked_positions, got.labels, -1)
    np.testing.assert_array_equal(restored, original)
    shown = np.take_along_axis(got.input_ids, got.masked_positions, -1)
    assert ((shown == MASK) | (shown > GAP)).all()


@pytest.mark.parametrize("span", [1, 3])
def test_masked_tokens_are_80_10_10_and_positions_uniform(span):
    masker, k = make_masker(102, 0.15, span, vocab_size=30_000)
    count = 4000
    window = np.arange(100, 200, dtype=np.uint16)
    got = masker.mask([window] * count, np.arange(count))
    total = k * count
    shown = np.take_along_axis(got.input_ids, got.masked_positions, -1)
    for share, number in (
        (0.8, (shown == MASK).sum()),
        (0.1, (shown == got.labels).sum()),
        (0.1, ((shown != MASK) & (shown != got.labels)).sum()),
    ):
        assert abs(number - share * total) < 5 * np.sqrt(total * share * (1 - share))
    random = shown[(shown != MASK) & (shown != got.labels)]
    spread = np.histogram(random, bins=20, range=(6, 30_000))[0]
    assert abs(spread - len(random) / 20).max() < 5 * np.sqrt(len(random) / 20)
    # No position is masked more often than another, not even the first and the last.
    times = np.bincount(got.masked_positions.ravel(), minlength=102)[1:-1]
    expected = total / 100
    assert abs(times - expected).max() < 5 * np.sqrt(expected)


def test_span_lengths_have_the_wanted_mean():
    """Among rarely masked tokens spans seldom touch: runs of masked positions are the spans."""
    masker, k = make_masker(4002, 0.03, span=4.0)
    got = masker.mask([np.full(4000, 9, np.uint16)] * 50, np.arange(50))
    breaks = (np.diff(got.masked_positions, axis=-1) > 1).sum(-1) + 1
    assert 3.6 < k / breaks.mean() < 4.4


def test_masks_do_not_depend_on_the_batch_or_on_the_number_of_segments():
    window = np.arange(6, 36, dtype=np.uint16)
    one, _ = make_masker(32)
    three, _ = make_masker(32, segments=3)
    alone = one.mask([window], np.array([5]))
    batch = one.mask([window[:9], window, window], np.array([4, 5, 6]))
    long = three.mask([np.tile(window, 3)], np.array([5]))
    np.testing.assert_array_equal(alone.input_ids[:, 0], batch.input_ids[:, 1])
    np.testing.assert_array_equal(alone.input_ids[0], long.input_ids[0])
    places = {tuple(p) for p in (*long.masked_positions[:, 0], *batch.masked_positions[0, 2:])}
    assert len(places) == 4  # each segment and sample has masks of its own


def test_a_short_document_has_the_same_share_masked():
    masker, k = make_masker(102, 0.2, segments=2)
    lengths = [0, 1, 3, 50, 100, 120]
    got = masker.mask([np.full(n, 9, np.uint16) for n in lengths], np.arange(6))
    assert k == 20
    used = got.loss_mask.sum(-1)
    assert used[0].tolist() == [0, 1, 1, 10, 20, 20]
    assert used[1].tolist() == [0, 0, 0, 0, 0, 4]
    assert got.num_real.tolist() == [[2, 3, 5, 52, 102, 102], [2, 2, 2, 2, 2, 22]]


def test_an_id_outside_the_vocabulary_is_an_error_that_names_it():
    masker, _ = make_masker(12)
    good = np.full(10, 9, np.int32)
    for bad in (VOCAB_SIZE, -1, 2**31 - 1, -(2**31)):
        window = good.copy()
        window[-1] = bad
        with pytest.raises(VocabularyError, match=rf"token id \({bad}\) must be below") as caught:
            masker.mask([good, window, good], np.arange(3))
        assert caught.value.slot == 1


def test_bad_input_is_refused():
    masker, _ = make_masker(12)
    with pytest.raises(ValueError, match="a window of 11 tokens must fit 1 segments"):
        masker.mask([np.full(11, 9, np.uint16)], np.arange(1))
    with pytest.raises(ValueError, match="uint16 or int32"):
        masker.mask([np.full(5, 9, np.int64)], np.arange(1))
    with pytest.raises(ValueError, match="uint16 or int32"):
        masker.mask([np.full(10, 9, np.uint16)[::2]], np.arange(1))
    with pytest.raises(ValueError, match="one window for each sample"):
        masker.mask([np.full(5, 9, np.uint16)], np.arange(2))
    with pytest.raises(ValueError, match=r"mean_span_length .* must be at least 1"):
        make_masker(span=0.5)
    with pytest.raises(ValueError, match="not special"):
        make_masker(vocab_size=6)
    with pytest.raises(ValueError, match=r"special id \(50\)"):
        make_masker(special_ids=[0, 1, 2, 3, 4, 50], vocab_size=50)
