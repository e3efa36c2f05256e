"""Options: what is read, and what is refused with key, value, rule and fix."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from megatron_dna.config import ConfigError, load_config, to_yaml
from megatron_dna.validation import data_parallel_size, validate


@pytest.fixture
def valid_overrides(tmp_path: Path) -> list[str]:
    """A configuration that passes, with files that exist."""
    for name in ("tokenizer.json", "d_train.bin", "d_train.idx"):
        (tmp_path / name).touch()
    return [
        f"data.tokenizer={tmp_path}/tokenizer.json",
        f"data.train=[{{prefix: {tmp_path}/d_train}}]",
    ]


def test_yaml_round_trip(tmp_path: Path):
    """The config stored in a checkpoint must mean the same when read back."""
    overrides = ["model.num_layers=3", "data.train=[{prefix: a, weight: 2}]", "optimizer.lr=1e-3"]
    config = load_config(None, overrides)
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


def test_overrides_win_over_the_recipe(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {num_layers: 3, hidden_size: 64}")
    config = load_config(path, ["model.num_layers=5"])
    assert (config.model.num_layers, config.model.hidden_size) == (5, 64)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.num_layer=3"], ["model.num_layer"]),
        (["modle.num_layers=3"], ["modle"]),
        (["data.train=[{prefx: a}]"], ["prefx"]),
        (["model.num_layers=three"], ["model.num_layers", "three"]),
        (["--model.num_layers=3"], ["--model.num_layers=3", "section.key=value"]),
        (["model.num_layers"], ["model.num_layers", "section.key=value"]),
    ],
)
def test_bad_keys_and_types_are_named(overrides: list[str], words: list[str]):
    with pytest.raises(ConfigError) as error:
        load_config(None, overrides)
    for word in words:
        assert word in str(error.value)


def test_unreadable_recipes_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_config(tmp_path / "absent.yaml")
    for content in (b"model: {num_layers: [", b"[1, 2]", b"5", b"\xff\xfe\x00", b"model: 3"):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            load_config(tmp_path / "bad.yaml")


SEGMENTS = ["memory.num_mem_tokens=2", "memory.max_n_segments=4", "memory.bptt_depth=2"]
STAGE = "memory.curriculum=[{n_segments: 2, train_iters: 5}, {n_segments: 4, vary_n_segments: 0.5}]"

BAD_STAGES = {
    "{n_segments: 5}": ["[0].n_segments (5)", "memory.max_n_segments (4)"],
    "{n_segments: 0}": ["[0].n_segments (0)"],
    "{n_segments: 1}": ["[0].n_segments (1)", "memory.bptt_depth (2)", "set it to -1"],
    "{n_segments: 2}, {n_segments: 4}": ["[0]", "exactly one of train_iters and until"],
    "{n_segments: 2, train_iters: 1, until: {threshold: 1}}": ["exactly one of"],
    "{n_segments: 2, train_iters: 0}": ["[0].train_iters (0)", "positive"],
    "{n_segments: 2, lr: 0}": ["[0].lr (0", "positive"],
    "{n_segments: 2, lr: 1e-9}": ["[0].lr (1e-09)", "scheduler.min_lr (1e-05)"],
    "{n_segments: 2, vary_n_segments: 2}": ["[0].vary_n_segments (2.0)", "share"],
    "{n_segments: 2, until: {}}": ["[0].until.threshold", "patience"],
    "{n_segments: 2, until: {metric: loss, threshold: 1}}": ["until.metric (loss)", "train/loss"],
    "{n_segments: 2, until: {metric: valid/loss, threshold: 1}}": ["valid/loss", "data.valid"],
    "{n_segments: 2, until: {threshold: 0}}": ["until.threshold (0.0)", "positive"],
    "{n_segments: 2, until: {metric: train/accuracy, threshold: 98}}": ["(98.0)", "0 and 1"],
    "{n_segments: 2, until: {patience: 0}}": ["until.patience (0)", "positive"],
    "{n_segments: 2, until: {patience: 1, window: 0}}": ["until.window (0)", "positive"],
}


@pytest.mark.parametrize("stages", BAD_STAGES)
def test_bad_stages_are_named(valid_overrides: list[str], stages: str):
    options = [*valid_overrides, *SEGMENTS, "scheduler.min_lr=1e-5"]
    validate(load_config(None, [*options, STAGE]), world_size=1)
    with pytest.raises(ConfigError) as error:
        validate(load_config(None, [*options, f"memory.curriculum=[{stages}]"]), world_size=1)
    for word in ["memory.curriculum[", *BAD_STAGES[stages]]:
        assert word in str(error.value)


@pytest.mark.parametrize("option", ["noise_start=2", "noise_start=-1", "noise_ramp_iters=-1"])
def test_noise_must_fit_the_stages(valid_overrides: list[str], option: str):
    with pytest.raises(ConfigError, match=rf"memory\.{option.replace('=', ' .')}"):
        validate(
            load_config(None, [*valid_overrides, *SEGMENTS, STAGE, f"memory.{option}"]),
            world_size=1,
        )


BAD = {
    "parallel.tensor_model_parallel_size=5": ["model.num_attention_heads (12)"],
    "parallel.pipeline_model_parallel_size=5": ["model.num_layers (12)"],
    "parallel.sequence_parallel=true": ["tensor_model_parallel_size"],
    "model.num_attention_heads=7": ["model.hidden_size (768)"],
    "model.local_attention=7": ["even"],
    "model.layer_spec=apex": ["transformer_engine"],
    "memory.num_mem_tokens=-1": ["negative"],
    "memory.max_n_segments=2": ["memory.num_mem_tokens"],
    "memory.bptt_depth=2": ["memory.max_n_segments (1)"],
    "memory.update=gate": ["plain", "binary"],
    "memory.noise_std=0.5": ["memory.num_mem_tokens > 0"],
    "checkpoint.load=absent": ["iter_..."],
    "checkpoint.load_optimizer=true": ["needs checkpoint.load"],
    "data.mlm_probability=1.5": ["between 0 and 1"],
    "data.mean_span_length=0": ["segment_size"],
    "data.segment_size=4": ["at least 8"],
    "data.tokenizer=absent.json": ["train_tokenizer"],
    "data.tokenizer=''": ["must name a tokenizer.json"],
    "data.train=[]": ["preprocess_genome"],
    "data.train=[{prefix: absent, weight: 0}]": ["data.train[0].weight (0.0) must be positive"],
    "data.train=[{prefix: absent}]": ["absent.bin"],
    "train.precision=fp16": ["bf16", "fp32"],
    "train.global_batch_size=30": ["micro_batch_size", "32"],
    "train.recompute_granularity=half": ["selective", "full"],
    "train.train_iters=0": ["positive"],
    "optimizer.lr=0": ["positive"],
    "optimizer.adam_beta2=1": ["below 1"],
    "scheduler.lr_decay_style=cosin": ["cosine", "WSD"],
    "scheduler.lr_warmup_iters=1000": ["1000"],
    "scheduler.min_lr=1": ["optimizer.lr"],
    "checkpoint.keep_last=-1": ["negative"],
    "checkpoint.keep_every=-1": ["negative"],
    "train.max_skipped_steps=-1": ["negative"],
    "train.loss_spike_factor=0.5": ["above 1", "running mean"],
    "parallel.overlap_param_gather=true": ["overlap_grad_reduce"],
    "logging.log_interval=0": ["positive"],
    "logging.level=LOUD": ["one of DEBUG, INFO"],
}


@pytest.mark.parametrize("override", BAD)
def test_bad_values_name_key_value_and_rule(valid_overrides: list[str], override: str):
    """Each must be refused before a process group exists, in one line that can be acted on."""
    config = load_config(None, [*valid_overrides, override])
    with pytest.raises(ConfigError) as error:
        validate(config, world_size=1 if "tensor" not in override else 5)
    message = str(error.value)
    key, _, value = override.partition("=")
    assert key.split("[")[0] in message
    assert value in message or value.startswith("[")
    for word in BAD[override]:
        assert word in message


MAY_BE_ZERO = {
    "memory.num_mem_tokens", "memory.noise_std", "memory.noise_start", "memory.noise_ramp_iters",
    "data.num_workers", "train.eval_interval", "train.loss_spike_factor", "train.max_skipped_steps",
    "fp8.num_layers_at_start_in_bf16", "fp8.num_layers_at_end_in_bf16", "optimizer.weight_decay",
    "optimizer.adam_beta1", "optimizer.adam_beta2", "optimizer.clip_grad",
    "scheduler.lr_warmup_iters", "scheduler.min_lr", "checkpoint.save_interval",
    "checkpoint.keep_last", "checkpoint.keep_every",
}  # fmt: skip
MAY_BE_NEGATIVE = {"memory.bptt_depth": -2, "data.seed": None, "train.seed": None}  # -1 is all


def test_every_number_has_a_lowest_value():
    """An option without one fails somewhere inside, hours after the queue, or not at all."""
    config = load_config(None, ["data.kind=recall", "memory.num_mem_tokens=4"])
    validate(config, world_size=1)
    count = 0
    for section in dataclasses.fields(config):
        options = getattr(config, section.name)
        for option in dataclasses.fields(options):
            key = f"{section.name}.{option.name}"
            lowest = MAY_BE_NEGATIVE.get(key, -1 if key in MAY_BE_ZERO else 0)
            if option.type.removesuffix(" | None") not in ("int", "float") or lowest is None:
                continue
            bad = dataclasses.replace(options, **{option.name: lowest})
            with pytest.raises(ConfigError, match=rf"^{re.escape(key)} \({lowest}\) .*; "):
                validate(dataclasses.replace(config, **{section.name: bad}), world_size=1)
            count += 1
    assert count >= 45


def test_a_good_configuration_passes(valid_overrides: list[str]):
    validate(load_config(None, valid_overrides), world_size=2)


def test_world_size_must_fit_the_layout():
    config = load_config(None, ["parallel.tensor_model_parallel_size=2"])
    assert data_parallel_size(config, 6) == 3
    with pytest.raises(ConfigError, match="number of processes \\(3\\)"):
        data_parallel_size(config, 3)
