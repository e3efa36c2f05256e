"""The loader: a failure means ranks, workers or a resumed run see samples they should not."""

import itertools
import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_dna.config import ConfigError, load_config
from megatron_dna.data.loader import Batch, _MicroBatches, build_loader
from megatron_dna.tokenizer.bpe import DnaTokenizer
from tests.unit.data_files import write_pair, write_tokenizer

C = 22
CONTENT = C - 2
CLS, SEP, PAD = 1, 2, 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two sources, a held-out one, and their documents by source."""
    path = tmp_path_factory.mktemp("data")
    tokenizer = write_tokenizer(path / "tokenizer.json")
    rng = np.random.default_rng(0)
    documents = {
        name: [rng.integers(6, 27, n) for n in lengths]
        for name, lengths in {
            "human_train": [500, 333, 20, 0, 41],
            "yeast_train": [100, 250],
            "human_valid": [200, 87, 7],
        }.items()
    }
    for (name, ids), dtype in zip(documents.items(), (np.uint16, np.int32, np.uint16), strict=True):
        write_pair(path / name, ids, dtype)
    return path, tokenizer, documents


def make_config(files, *overrides):
    path, tokenizer, _ = files
    return load_config(None, [
        f"data.tokenizer={tokenizer}", f"data.segment_size={C}", "data.mlm_probability=0.2",
        f"data.train=[{{prefix: {path}/human_train, weight: 3}}, "
        f"{{prefix: {path}/yeast_train, weight: 1}}]",
        f"data.valid=[{{prefix: {path}/human_valid}}]",
        "train.micro_batch_size=2", "train.global_batch_size=8", *overrides,
    ])  # fmt: skip


def take(config, count, split="train", consumed=0, rank=0, size=1):
    loader = build_loader(config, split, consumed, rank, size)
    return list(itertools.islice(loader, count))


def samples_of(batches):
    """One tuple a sample, of all that the model and the loss see of it."""
    return [
        tuple(
            tuple(tensor[:, slot].flatten().tolist())
            for tensor in (b.input_ids, b.masked_positions, b.labels, b.loss_mask)
        )
        for b in batches
        for slot in range(b.input_ids.shape[1])
    ]


def original_ids(batch: Batch):
    """Input ids before masking; unused slots point at position 0."""
    labels = torch.where(batch.loss_mask > 0, batch.labels, CLS)
    return batch.input_ids.scatter(-1, batch.masked_positions, labels)


def windows_of(batches):
    """Content tokens of each sample, segments joined, padding off."""
    for batch in batches:
        ids = original_ids(batch)
        assert (ids[:, :, 0] == CLS).all()
        for slot in range(ids.shape[1]):
            segments = [row[: row.index(SEP)] for row in ids[:, slot, 1:].tolist()]
            yield tuple(token for segment in segments for token in segment)


@pytest.mark.parametrize("segments", [1, 3])
def test_samples_are_stretches_of_the_documents(files, segments):
    """Shapes, frame, padding mask and counts agree with the files."""
    config = make_config(files, f"memory.max_n_segments={segments}")
    tokenizer = DnaTokenizer.from_file(config.data.tokenizer)
    text = {
        name: [" " + " ".join(map(str, ids)) + " " for ids in documents]
        for name, documents in files[2].items()
    }
    is_human = []
    for batch in take(config, 200):
        k = config.num_masked_tokens
        assert batch.input_ids.shape == (segments, 2, C)
        assert batch.input_ids.dtype == batch.labels.dtype == batch.masked_positions.dtype
        assert batch.input_ids.dtype == torch.int64
        assert batch.labels.shape == batch.masked_positions.shape == (segments, 2, k)
        assert batch.loss_mask.shape == (segments, 2, k)
        assert batch.loss_mask.dtype == torch.float32
        is_real = original_ids(batch) != PAD
        if batch.attention_mask is None:
            assert is_real.all()
        else:
            assert not is_real.all()
            assert torch.equal(batch.attention_mask, is_real)
        ids = [np.array(window, int) for window in windows_of([batch])]
        assert batch.num_tokens.sum() == sum(map(len, ids))
        assert batch.num_bases.sum() == sum(int(tokenizer.token_lengths[i].sum()) for i in ids)
        for window in ids:
            stretch = " " + " ".join(map(str, window)) + " "
            found = [n for n, docs in text.items() if any(stretch in doc for doc in docs)]
            assert found == ["human_train"] or found == ["yeast_train"]
            assert len(window) == segments * CONTENT or segments == 3
            is_human.append(found == ["human_train"])
    assert sum(is_human) == 300


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_global_batch_does_not_depend_on_the_number_of_ranks(files, split, size):
    config = make_config(files)
    expected = samples_of(take(config, 12, split))
    ranks = [take(config, 12 // size, split, rank=rank, size=size) for rank in range(size)]
    together = [batch for row in zip(*ranks, strict=True) for batch in row]
    assert samples_of(together) == expected
    assert len(set(expected[:16])) == 16  # of the first epoch


@pytest.mark.parametrize(("start_method", "num_workers"), [("fork", 1), ("fork", 2), ("spawn", 1)])
def test_workers_do_not_change_the_samples(files, start_method, num_workers):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(start_method, force=True)
    try:
        config = make_config(files, f"data.num_workers={num_workers}")
        got = take(config, 9, consumed=5, rank=1, size=2)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert samples_of(got) == samples_of(take(make_config(files), 9, consumed=5, rank=1, size=2))


@pytest.mark.parametrize("consumed", [1, 8, 37, 1000])
def test_resuming_is_continuing(files, consumed):
    """After any number of samples, with other micro-batches and ranks than before."""
    whole = samples_of(take(make_config(files, "train.micro_batch_size=1"), consumed + 16))
    assert samples_of(take(make_config(files), 8, consumed=consumed)) == whole[consumed:]
    ranks = [
        take(make_config(files, "train.micro_batch_size=4"), 2, consumed=consumed, rank=r, size=2)
        for r in (0, 1)
    ]
    together = [batch for row in zip(*ranks, strict=True) for batch in row]
    assert samples_of(together) == whole[consumed:]


def test_validation_covers_the_held_out_documents_and_repeats_itself(files):
    config = make_config(files, "train.micro_batch_size=1")
    batches = take(config, 16, "valid")
    expected = []
    for ids in files[2]["human_valid"]:
        starts = [min(s, max(len(ids) - CONTENT, 0)) for s in range(0, len(ids), CONTENT)]
        expected += [tuple(ids[s : s + CONTENT].tolist()) for s in starts]
    assert sorted(windows_of(batches)) == sorted(expected)
    assert samples_of(batches) == samples_of(take(config, 16, "valid"))


def test_another_seed_gives_other_samples(files):
    one, two = (samples_of(take(make_config(files, f"data.seed={s}"), 8)) for s in (1, 2))
    assert not set(one) & set(two)


def test_loading_leaves_the_global_random_state_alone(files):
    """Or a resumed run would draw other dropout masks than one that went on."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    take(make_config(files, "data.num_workers=1"), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dataset_in_use_pickles_small(files):
    dataset = _MicroBatches(make_config(files), "train", 0, 0, 1)
    expected = dataset[3]
    content = pickle.dumps(dataset)
    assert len(content) < 5000
    np.testing.assert_array_equal(pickle.loads(content)[3].input_ids, expected.input_ids)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_ids_outside_the_vocabulary_name_the_file_and_the_fix(files, tmp_path, num_workers):
    prefix = write_pair(tmp_path / "other", [[9] * 99 + [27]])
    config = make_config(
        files, f"data.train=[{{prefix: {prefix}}}]", f"data.num_workers={num_workers}"
    )
    with pytest.raises(ValueError, match=r"other\.bin: token id \(27\).* another tokenizer than"):
        take(config, 20)


def test_the_manifest_must_name_the_tokenizer(files, tmp_path):
    config = make_config(files, f"data.valid=[{{prefix: {tmp_path}/genome_valid}}]")
    write_pair(tmp_path / "genome_valid", [[9] * 99])
    manifest = tmp_path / "genome.json"
    sha256 = DnaTokenizer.from_file(config.data.tokenizer).sha256
    manifest.write_text(json.dumps({"tokenizer": {"sha256": sha256}}))
    take(config, 1, "valid")
    manifest.write_text(json.dumps({"tokenizer": {"sha256": "0" * 64}}))
    with pytest.raises(ConfigError, match=r"data\.valid\[0\]\.prefix .*another tokenizer"):
        build_loader(config, "valid", 0, 0, 1)
    for content in ("{", "[]", "{}", '{"tokenizer": "x"}'):
        manifest.write_text(content)
        with pytest.raises(ConfigError, match=r"genome\.json must be JSON with tokenizer.sha256"):
            build_loader(config, "valid", 0, 0, 1)


def test_bad_input_is_refused_before_the_first_batch(files, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.valid \(\[\]\) must list at least one"):
        build_loader(make_config(files, "data.valid=[]"), "valid", 0, 0, 1)
    prefix = write_pair(tmp_path / "cut", [[9] * 99])
    with Path(f"{prefix}.bin").open("r+b") as file:
        file.truncate(100)
    config = make_config(files, f"data.train=[{{prefix: {prefix}}}]")
    with pytest.raises(ConfigError, match=r"data\.train\[0\]\.prefix .*cut\.bin is damaged"):
        build_loader(config, "train", 0, 0, 1)
    for consumed, rank, size in ((-1, 0, 1), (0, 1, 1), (0, -1, 1)):
        with pytest.raises(ValueError, match="consumed_samples"):
            build_loader(make_config(files), "train", consumed, rank, size)
