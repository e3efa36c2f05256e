"""Transformer Engine's layers, built without a GPU; skipped where it is not installed.

Its kernels need a GPU (tests/gpu). What can be held here: names, shapes and dtypes of weights,
which recipe is entered around which layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megatron_dna.checkpoint.tensors import model_tensors
from megatron_dna.config import load_config
from megatron_dna.model.encoder import build_model, transformer_config
from megatron_dna.model.layers import LocalCoreAttention
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.topology import Topology

try:
    import transformer_engine.pytorch
    from megatron.core import fp8_utils
    from megatron.core.extensions.transformer_engine import TELayerNormColumnParallelLinear
    from transformer_engine.pytorch import quantization
except (ImportError, OSError) as error:  # absent, or made for another machine
    pytest.skip(f"Transformer Engine cannot be imported: {error}", allow_module_level=True)

SHAPE = [
    "model.num_layers=4", "model.hidden_size=64", "model.ffn_hidden_size=96", "fp8.format=e4m3",
    "model.num_attention_heads=4", "model.global_attn_every_n_layers=2", "data.segment_size=32",
    "parallel.platform=auto",
]  # fmt: skip
KINDS = {
    "tensorwise": "Float8CurrentScaling",
    "blockwise": "Float8BlockScaling",
    "delayed": "TEDelayedScaling",
}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Topology]:
    place = topology.initialize(load_config(None, ["parallel.platform=cpu"]), setup_platform("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # modules refuse to be made else
    yield place
    topology.shutdown()


def _build(place: Topology, spec: str, *overrides: str):
    config = load_config(None, [*SHAPE, *overrides])
    return build_model(config, 90, place.groups, spec, torch.device("cpu"))


@pytest.mark.parametrize("norm_bias", ["false", "true"])
def test_weights_have_the_names_shapes_and_values_of_local_layers(place: Topology, norm_bias: str):
    """Else a checkpoint from CPU would not load on a GPU, or the other way round."""
    overrides = ["fp8.recipe=tensorwise", f"model.norm_bias={norm_bias}"]
    theirs = model_tensors(_build(place, "transformer_engine", *overrides))
    ours = model_tensors(_build(place, "local", *overrides))
    ours, theirs = ({v.key: v.data for v in one.values()} for one in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype == torch.bfloat16
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize("recipe", KINDS)
def test_recipe_is_what_was_asked_for(recipe: str):
    options = [*SHAPE, f"fp8.recipe={recipe}", "fp8.amax_history_len=8"]
    made = fp8_utils.get_fp8_recipe(transformer_config(load_config(None, options)))
    assert type(made).__name__ == KINDS[recipe]
    assert made.fp8_format is transformer_engine.common.recipe.Format.E4M3
    assert not getattr(made, "fp8_dpa", False)
    if recipe == "delayed":
        assert (made.amax_history_len, made.amax_compute_algo) == (8, "max")


@pytest.mark.parametrize(
    ("overrides", "want"),
    [
        (["fp8.recipe=tensorwise"], [True] * 4),
        (["fp8.recipe=delayed"], [True] * 4),
        (["fp8.recipe=blockwise", "fp8.first_last_layers_bf16=true"], [False, True, True, False]),
        ([], [False] * 4),
    ],
)
def test_autocast_is_on_around_the_layers_asked_for(
    place: Topology, monkeypatch: pytest.MonkeyPatch, overrides: list[str], want: list[bool]
):
    """As Transformer Engine itself sees it when a layer starts."""
    monkeypatch.setattr(quantization, "get_device_compute_capability", lambda: (9, 0))
    monkeypatch.setattr(  # it sums on the GPU
        quantization.FP8GlobalStateManager, "reduce_and_update_fp8_tensors", lambda **_: None
    )
    model = _build(place, "transformer_engine", *overrides)
    seen: list[bool] = []

    def forward(hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
        seen.append(quantization.FP8GlobalStateManager.is_fp8_enabled())
        return hidden_states, None

    for layer in model.decoder.layers:
        layer.forward = forward
    positions = torch.zeros(2, 3, dtype=torch.long)
    model(torch.zeros(2, 32, dtype=torch.long), None, positions, positions)
    assert seen == want
    assert not quantization.FP8GlobalStateManager.is_fp8_enabled()


def test_context_parallelism_takes_attention_that_gathers(place: Topology):
    """Transformer Engine's own refuses padding masks there, which short documents need."""
    config = load_config(None, [*SHAPE, "parallel.context_parallel_size=2"])
    model = build_model(config, 90, place.groups, "transformer_engine", torch.device("cpu"))
    for layer, half_width in zip(model.decoder.layers, (None, 64, None, 64), strict=True):
        attention = layer.self_attention.core_attention
        assert isinstance(attention, LocalCoreAttention)
        assert attention.half_width == half_width
        assert isinstance(layer.mlp.linear_fc1, TELayerNormColumnParallelLinear)
