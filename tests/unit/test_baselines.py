"""Baselines computed from token counts, against the definition on a few tokens."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_dna.training.baselines import compute_baselines

# Ids 0 and 1 are special; 2, 3, 4 spell 1, 2 and 3 bases.
TOKENIZER = SimpleNamespace(
    vocab_size=5, special_ids=frozenset({0, 1}), token_lengths=np.array([0, 0, 1, 2, 3], np.int32)
)


def _write(prefix: Path, documents: list[list[int]]) -> str:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for ids in documents:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def test_baselines_are_the_defined_cross_entropies(tmp_path: Path):
    train = _write(tmp_path / "train", [[2, 2, 2, 3, 1], [4, 2]])
    valid = _write(tmp_path / "valid", [[2, 3, 0], [4, 4]])
    got = compute_baselines([train], [valid], TOKENIZER)
    probability = {2: 5 / 9, 3: 2 / 9, 4: 2 / 9}  # counts 4, 1, 1, one added to each
    want = -sum(math.log(probability[token]) for token in (2, 3, 4, 4)) / 4
    assert got.uniform == pytest.approx(math.log(3))
    assert got.unigram == pytest.approx(want)
    assert got.bases_per_token == pytest.approx((1 + 2 + 3 + 3) / 4)
    assert got.bits_per_base(want) == pytest.approx(want * 4 / math.log(2) / 9)


def test_another_tokenizers_ids_are_refused(tmp_path: Path):
    prefix = _write(tmp_path / "d", [[2, 7]])
    with pytest.raises(ValueError, match=r"id 7.*vocabulary \(5\)"):
        compute_baselines([prefix], [prefix], TOKENIZER)


def test_empty_held_out_data_is_refused(tmp_path: Path):
    train = _write(tmp_path / "train", [[2]])
    valid = _write(tmp_path / "valid", [[0, 1]])
    with pytest.raises(ValueError, match="no tokens to score"):
        compute_baselines([train], [valid], TOKENIZER)
