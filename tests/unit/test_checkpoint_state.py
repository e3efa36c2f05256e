"""What is stored beside the tensors, and which options may change between runs."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_dna.checkpoint.compatibility import (
    check_compatible,
    check_loadable,
    check_tokenizer,
)
from megatron_dna.checkpoint.manifest import CheckpointError
from megatron_dna.checkpoint.reader import read_config, read_train_state
from megatron_dna.checkpoint.state import CurriculumState, GuardState, Interval, TrainState
from megatron_dna.config import load_config

HERE = Path("iter_0000010")


def test_state_survives_json():
    """Sums of losses must come back to the last bit, or a resumed run's record differs."""
    state = TrainState(7, 56, 10**12, 6 * 10**12, "abc", Interval(0.1 + 0.2, 3, 8, 9, 10, 1 / 3))
    state.curriculum = CurriculumState(2, 7, [[0.1 + 0.2, 3.0]], 1 / 3, 4, 5)
    state.guard = GuardState(0.1 + 0.2, 6, 1, 2)
    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_state_of_another_release(tmp_path: Path):
    """Unknown entries are left out and missing ones keep their defaults; rubbish is named."""
    path = tmp_path / "train_state.json"
    path.write_text('{"iteration": 3, "mood": 2}')
    assert read_train_state(tmp_path) == TrainState(iteration=3)
    for rubbish in ("{", "[]", '{"interval": 4}', '{"curriculum": 2}'):
        path.write_text(rubbish)
        with pytest.raises(CheckpointError, match=r"train_state\.json is damaged"):
            read_train_state(tmp_path)
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        read_config(tmp_path)


def test_another_architecture_is_refused():
    old = load_config(None, ["model.num_layers=4"])
    for option in (
        "model.num_layers=6", "model.norm_bias=true", "model.local_attention=64",
        "memory.num_mem_tokens=8", "memory.update=binary",
    ):  # fmt: skip
        new = load_config(None, ["model.num_layers=4", option])
        key, value = option.split("=")
        with pytest.raises(CheckpointError, match=key) as error:
            check_compatible(HERE, old, new)
        assert value in str(error.value).lower()
        assert "train.output_dir" in str(error.value)


def test_memory_may_be_new_or_left_out_but_no_other(caplog):
    """If not, a run with memory cannot start from a plain one, or takes memory tokens as others."""
    none, four, eight = (load_config(None, [f"memory.num_mem_tokens={n}"]) for n in (0, 4, 8))
    with caplog.at_level(logging.INFO):
        check_loadable(HERE, none, four)
        check_loadable(HERE, eight, none)
    assert "memory.num_mem_tokens is 4, was 0" in caplog.text
    with pytest.raises(
        CheckpointError, match=r"num_mem_tokens \(8\) differs from checkpoint\.load"
    ):
        check_loadable(HERE, four, eight)


def test_other_changes_are_logged(caplog):
    old = load_config(None, ["optimizer.lr=0.1"])
    new = load_config(
        None,
        ["optimizer.lr=0.2", "parallel.tensor_model_parallel_size=2", "model.layer_spec=local"],
    )
    with caplog.at_level(logging.INFO):
        check_compatible(HERE, old, new)
    assert "optimizer.lr from 0.1 to 0.2" in caplog.text
    assert "parallel.tensor_model_parallel_size from 1 to 2" in caplog.text
    caplog.clear()
    check_compatible(HERE, old, replace(old))
    assert caplog.text == ""


def test_another_tokenizer_is_refused():
    check_tokenizer(HERE, "abc", "abc")
    with pytest.raises(CheckpointError, match=r"data\.tokenizer"):
        check_tokenizer(HERE, "abc", "def")
