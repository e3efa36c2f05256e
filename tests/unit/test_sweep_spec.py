"""Sweep files: what they may say, what follows from it, and what they are refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_dna.config import Config, ConfigError, load_config
from megatron_dna.sweep.space import grid
from megatron_dna.sweep.spec import Sweep, read_sweep

ROOT = Path(__file__).resolve().parents[2]
BASE = ["data.train=[{prefix: t}]", "data.valid=[{prefix: v}]", "train.output_dir=out",
        "model.hidden_size=64", "model.num_attention_heads=4"]  # fmt: skip
WIDTHS = {
    "narrow": {"model.hidden_size": 32, "model.num_attention_heads": 2},
    "wide": {"model.hidden_size": 96, "model.num_attention_heads": 6},
}


def _base(*overrides: str) -> Config:
    return load_config(None, [*BASE, *overrides])


def _read(tmp_path: Path, content: Any, *overrides: str) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return read_sweep(path, _base(*overrides), files=False)


def _grid(**parameters: Any) -> dict[str, Any]:
    return {"name": "test", "parameters": parameters}


def test_groups_of_options_change_together(tmp_path: Path) -> None:
    """A width without its number of heads is no model, or another one than meant."""
    content = _grid(width={"choices": WIDTHS}) | {"objective": {"metric": "valid/loss"}}
    content["parameters"]["optimizer.lr"] = {"values": [1e-3, 2e-3]}
    sweep = _read(tmp_path, content)
    found = []
    for number, values in enumerate(grid(sweep.parameters)):
        config = sweep.config(number, values, files=False)
        model = config.model
        found.append((model.hidden_size, model.num_attention_heads, config.optimizer.lr))
        assert config.train.output_dir == f"out/trial_{number:04d}"
        assert config.model.num_layers == _base().model.num_layers
    # In the order of the file, the last parameter varying fastest.
    assert found == [(32, 2, 1e-3), (32, 2, 2e-3), (96, 6, 1e-3), (96, 6, 2e-3)]
    assert sweep.num_trials == 4


def test_a_mixture_replaces_all_sources(tmp_path: Path) -> None:
    mixtures = {
        "one": {"data.train": [{"prefix": "a"}]},
        "two": {"data.train": [{"prefix": "a", "weight": 3}, {"prefix": "b: c"}]},
        "recipe": {},
    }
    sweep = _read(tmp_path, _grid(mixture={"choices": mixtures}))
    trains = [
        [(source.prefix, source.weight) for source in sweep.config(0, values, False).data.train]
        for values in grid(sweep.parameters)
    ]
    assert trains == [[("a", 1.0)], [("a", 3.0), ("b: c", 1.0)], [("t", 1.0)]]


LR = {"optimizer.lr": {"values": [1e-3]}}
RANGE = {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
BAD = {
    "no YAML": ("name: [", "is not YAML of a sweep"),
    "no name": ({"parameters": LR}, "name is missing"),
    "a name with a blank": (_grid(**LR) | {"name": "a b"}, "name (a b) must be letters"),
    "an unknown key": (_grid(**LR) | {"sampler_kind": "tpe"}, "sampler_kind"),
    "an unknown sampler": (_grid(**LR) | {"sampler": "best"}, "sampler (best) must be grid"),
    "trials of a grid": (_grid(**LR) | {"trials": 3}, "trials (3) goes with random and tpe"),
    "tpe without trials": (_grid(**LR) | {"sampler": "tpe"}, "trials (None) must be given"),
    "a metric that is none": (
        _grid(**LR) | {"objective": {"metric": "train/loss"}},
        "objective.metric (train/loss) must be one of valid/bits_per_base, valid/loss",
    ),
    "another take": (_grid(**LR) | {"objective": {"take": "mean"}}, "take (mean) must be last"),
    "no startup": (
        _grid(**LR) | {"pruner": {"startup_trials": 0}},
        "pruner.startup_trials (0) must be at least 1",
    ),
    "no parameters": (_grid(), "parameters must name at least one"),
    "a plain value": (_grid(**{"optimizer.lr": 1}), "parameters.optimizer.lr (1) must be {values"),
    "no values": (_grid(**{"optimizer.lr": {"values": []}}), "values ([]) must be a list of at"),
    "a value twice": (
        _grid(**{"optimizer.lr": {"values": [1, 1.0]}}),
        "parameters.optimizer.lr.values (1.0) must not have a value twice",
    ),
    "a list as value": (
        _grid(**{"data.train": {"values": [[{"prefix": "a"}]]}}),
        "give lists names: {choices: {NAME: {data.train: ...}}}",
    ),
    "values of no option": (
        _grid(rate={"values": [1]}),
        "parameters.rate must be named by the option that it varies",
    ),
    "another key": (
        _grid(**{"optimizer.lr": {"values": [1], "log": True}}),
        "parameters.optimizer.lr.log is not a key; beside values there may be none",
    ),
    "a group with a dot": (
        _grid(**{"model.width": {"choices": WIDTHS}}),
        "parameters.model.width has choices, each with options of its own: give it a name",
    ),
    "a group without options": (
        _grid(width={"choices": {"wide": 3}}),
        "parameters.width.choices.wide (3) must map section.key to values",
    ),
    "a group of sections": (
        _grid(width={"choices": {"wide": {"model": {"hidden_size": 8}}}}),
        "parameters.width.choices.wide: 'model' must be an option such as model.hidden_size",
    ),
    "an option twice": (
        _grid(width={"choices": WIDTHS}, **{"model.hidden_size": {"values": [64]}}),
        "sets model.hidden_size, as",
    ),
    "the output folder": (
        _grid(**{"train.output_dir": {"values": ["a"]}}),
        "sets train.output_dir, where trials have folders of their own",
    ),
    "a range in a grid": (_grid(**RANGE), "parameters.optimizer.lr has low and high, sampler is"),
    "low above high": (
        _grid(**{"optimizer.lr": {"low": 2, "high": 1}}),
        "parameters.optimizer.lr.low (2) must be below high (1)",
    ),
    "no high": (_grid(**{"optimizer.lr": {"low": 2}}), "optimizer.lr.high (None) must be a number"),
    "log from zero": (
        _grid(**{"optimizer.lr": {"low": 0, "high": 1, "log": True}}),
        "parameters.optimizer.lr.low (0) must be above 0 with log: true",
    ),
    "a step with log": (
        _grid(**{"optimizer.lr": {"low": 1, "high": 3, "log": True, "step": 1}}),
        "parameters.optimizer.lr.step (1) must be positive",
    ),
    "a step that misses high": (
        _grid(**{"optimizer.lr": {"low": 1, "high": 4, "step": 2}}),
        "parameters.optimizer.lr.step (2) must divide high - low (3)",
    ),
    "no such option": (_grid(**{"model.with": {"values": [8]}}), "model.with"),
    "another type": (_grid(**{"model.num_layers": {"values": ["many"]}}), "model.num_layers"),
    "a combination that is no model": (
        _grid(width={"choices": WIDTHS}, **{"data.segment_size": {"values": [64, 4]}}),
        "trial with width=narrow, data.segment_size=4: data.segment_size (4) must be at least 8",
    ),
    "a sampled option that is not there": (
        _grid(**{"optimizer.rate": {"low": 1, "high": 2}}) | {"sampler": "tpe", "trials": 2},
        "parameters.optimizer.rate: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_is_refused(tmp_path: Path, name: str) -> None:
    """If not, the mistake shows after hours of trials, or never."""
    content, message = BAD[name]
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, content)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "override", "message"),
    [
        (_grid(**LR), "data.valid=[]", "data.valid (empty) must name held-out data"),
        (_grid(**LR) | {"pruner": {}}, "train.eval_interval=0", "leave pruner out, or set it"),
        (_grid(**LR), "train.global_batch_size=6", "train.global_batch_size (6) must be"),
    ],
)
def test_a_recipe_that_does_not_do_is_refused(
    tmp_path: Path, content: Any, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, content, override)
    assert message in str(caught.value)


RECIPE_OF = {"learning_rate_x_width": ("tiny", 12), "mixture": ("base", 10)}


def test_every_example_has_a_recipe() -> None:
    assert {path.stem for path in (ROOT / "examples/sweeps").glob("*.yaml")} == set(RECIPE_OF)


@pytest.mark.parametrize("name", RECIPE_OF)
def test_example_is_valid(name: str) -> None:
    """Every trial of it is a valid run; mixtures name files that their corpus makes."""
    recipe, count = RECIPE_OF[name]
    path = ROOT / "examples" / "sweeps" / f"{name}.yaml"
    base = load_config(ROOT / "examples" / f"{recipe}.yaml")
    sweep = read_sweep(path, base, files=False)
    assert sweep.num_trials == count
    configs = [sweep.config(0, values, files=False) for values in grid(sweep.parameters)]
    assert len(set(map(repr, configs))) == count
    if name == "mixture":
        # Two whole replicates: all trials run to their end, on other weights and other batches.
        assert sweep.options.pruner is None
        seeds = {(config.train.seed, config.data.seed) for config in configs}
        assert seeds == {(1234, 1234), (1235, 1235)}
        corpus = ROOT / "examples/corpora/human_1000g_multispecies.yaml"
        sources = yaml.safe_load(corpus.read_text())["sources"]
        prefixes = {source.prefix for config in configs for source in config.data.train}
        assert prefixes == {f"data/mixture/{source}_train" for source in sources}
        for config in configs:
            total = sum(source.weight for source in config.data.train)
            assert total in (1, pytest.approx(100))
