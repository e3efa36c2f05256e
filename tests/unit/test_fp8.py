"""FP8 without a GPU: its rules, what Megatron-Core is told, and what a machine must have."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import pytest
import torch

from megatron_dna.config import Config, ConfigError, load_config
from megatron_dna.model import initialize
from megatron_dna.model.encoder import build_model, transformer_config
from megatron_dna.parallel import topology
from megatron_dna.parallel.accelerator import check_accelerator
from megatron_dna.parallel.platform import Accelerator, setup_platform
from megatron_dna.parallel.topology import Topology
from megatron_dna.parallel.wrap import wrap_model
from megatron_dna.training.optimizer import build_optimizer
from megatron_dna.validation import validate

SHAPE = [
    "model.num_layers=4", "model.hidden_size=64", "model.ffn_hidden_size=96",
    "model.num_attention_heads=4", "data.kind=recall", "data.segment_size=56",
    "memory.num_mem_tokens=8", "memory.max_n_segments=4",
    "train.micro_batch_size=2", "train.global_batch_size=4",
]  # fmt: skip
TENSORWISE = "fp8.recipe=tensorwise"
TP4 = ["parallel.tensor_model_parallel_size=4", "parallel.sequence_parallel=true"]
WIDE = ["model.hidden_size=512", "model.ffn_hidden_size=512", "data.segment_size=120"]


def _config(*overrides: str) -> Config:
    return load_config(None, [*SHAPE, *overrides])


GOOD = {
    "tensorwise": [TENSORWISE],
    "e4m3": [TENSORWISE, "fp8.format=e4m3"],
    "bf16 layers": [TENSORWISE, "fp8.first_last_layers_bf16=true"],
    "param gather": [TENSORWISE, "fp8.param_gather=true"],
    "delayed": ["fp8.recipe=delayed"],
    "delayed and recomputed without memory": [
        "fp8.recipe=delayed", "train.recompute_granularity=full", "memory.max_n_segments=1",
    ],
    "recomputed": [TENSORWISE, "train.recompute_granularity=full"],
    "blockwise": ["fp8.recipe=blockwise", *WIDE],
    "blockwise on TP 4": ["fp8.recipe=blockwise", *WIDE, *TP4, "train.micro_batch_size=4"],
    "overlap": [TENSORWISE, *TP4, "model.hidden_size=128", "model.ffn_hidden_size=128",
                "parallel.tp_comm_overlap=true"],
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_what_fits_is_accepted(case: str):
    config = _config(*GOOD[case])
    validate(config, config.parallel.tensor_model_parallel_size)


BAD = {
    "layers": (["model.layer_spec=local"], "fp8.recipe (tensorwise) needs Transformer Engine"),
    "width": (["model.hidden_size=72"], "model.hidden_size (72) * the next that fits is 80"),
    # 4 heads need multiples of 8, four ranks of 16 each multiples of 64.
    "width on TP 4": ([*TP4, "model.hidden_size=96"], "(96) * ranks (24) * fits is 128"),
    "ffn": (["model.ffn_hidden_size=100"], "model.ffn_hidden_size (100) * fits is 112"),
    # facts: 11584 / 8 = 1448 does not divide by 16.
    "ffn on TP 8": (
        ["parallel.tensor_model_parallel_size=8", "model.num_attention_heads=8",
         "model.hidden_size=1024", "model.ffn_hidden_size=11584"],
        "model.ffn_hidden_size (11584) * ranks (1448) * fits is 11648"),
    "rows": (["data.segment_size=50"], "data.segment_size (50) * (116) * fits is 56 * of 8"),
    "rows on SP": ([*TP4, "data.segment_size=64", "model.hidden_size=128"],
                   "data.segment_size (64) * tensor_model_parallel_size (36) * fits is 88"),
    "blocks": (["fp8.recipe=blockwise"], "model.hidden_size (64) * multiple of 128 * fits is 128"),
    "rows in blocks": (["fp8.recipe=blockwise", *WIDE, "data.segment_size=100"],
                       "data.segment_size (100) * multiple of 128 * fits is 120"),
    "first layers": (
        ["fp8.first_last_layers_bf16=true", "fp8.num_layers_at_start_in_bf16=3",
         "parallel.pipeline_model_parallel_size=2"],
        "num_layers_at_start_in_bf16 (3) * pipeline stage (2); set it to 2"),
    "all layers": (
        ["fp8.first_last_layers_bf16=true", "fp8.num_layers_at_start_in_bf16=4"],
        "num_layers_at_end_in_bf16 (5) * (3); set both to 1"),
    "delayed with bf16 layers": (
        ["fp8.recipe=delayed", "fp8.first_last_layers_bf16=true"],
        "fp8.first_last_layers_bf16 (true) * fp8.recipe delayed * tensorwise"),
    "delayed and recomputed with memory": (
        ["fp8.recipe=delayed", "train.recompute_granularity=full"],
        "fp8.recipe (delayed) * memory.max_n_segments (4) * in reverse; set fp8.recipe to tens"),
    "param gather": (["fp8.param_gather=true", "parallel.use_distributed_optimizer=false"],
                     "fp8.param_gather (true) needs parallel.use_distributed_optimizer * true"),
    "history": (["fp8.amax_history_len=0"], "fp8.amax_history_len (0) must be positive"),
    "overlap without SP": (["parallel.tp_comm_overlap=true"], "needs parallel.sequence_parallel"),
    "overlap in blocks": (
        ["fp8.recipe=blockwise", *TP4, "parallel.tp_comm_overlap=true"],
        "parallel.tp_comm_overlap (true) does not go with fp8.recipe blockwise"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_with_what_does(case: str):
    """Otherwise Transformer Engine says so in the first step, on a machine that is paid for."""
    overrides, words = BAD[case]
    config = _config(TENSORWISE, *overrides)
    with pytest.raises(ConfigError) as error:
        validate(config, 8)
    for word in words.split(" * "):
        assert word in str(error.value)


def test_the_next_that_fits_does():
    """The fix in a message must be one."""
    for size, tp in ((50, 1), (52, 4), (996, 4)):
        split = [f"parallel.tensor_model_parallel_size={tp}", "model.hidden_size=128",
                 "model.ffn_hidden_size=128", f"parallel.sequence_parallel={tp > 1}"]  # fmt: skip
        config = _config(TENSORWISE, *split, f"data.segment_size={size}")
        with pytest.raises(ConfigError, match="the next that fits") as error:
            validate(config, tp)
        fitting = str(error.value).split("fits is ")[1].split(" ")[0]
        validate(_config(TENSORWISE, *split, f"data.segment_size={fitting}"), tp)


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise", "delayed"])
def test_megatron_is_told_the_recipe(recipe: str):
    config = transformer_config(_config(f"fp8.recipe={recipe}", "fp8.amax_history_len=16"))
    assert (config.fp8, config.fp8_recipe, config.fp8_param) == ("hybrid", recipe, False)
    assert (config.fp8_amax_history_len, config.fp8_amax_compute_algo) == (16, "max")
    assert config.use_cpu_initialization
    assert not config.fp8_dot_product_attention


def test_megatron_is_told_of_bf16_layers_kept_weights_and_overlap():
    config = transformer_config(
        _config(
            TENSORWISE,
            "fp8.format=e4m3",
            "fp8.param_gather=true",
            "parallel.tp_comm_overlap=true",
            "fp8.first_last_layers_bf16=true",
            "fp8.num_layers_at_end_in_bf16=2",
            *TP4,
        )
    )
    assert (config.fp8, config.fp8_param, config.tp_comm_overlap) == ("e4m3", True, True)
    assert config.first_last_layers_bf16
    assert (config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16) == (1, 2)
    assert not config.use_cpu_initialization  # Transformer Engine quantizes on the GPU only


def test_without_fp8_megatron_is_told_nothing():
    config = transformer_config(_config())
    assert (config.fp8, config.fp8_param, config.first_last_layers_bf16) == (None, False, False)


HOPPER = Accelerator((9, 0), (12, 9))
ADA = Accelerator((8, 9), (12, 9))


@pytest.mark.parametrize(
    ("found", "overrides"),
    [
        (HOPPER, ["fp8.recipe=blockwise"]),
        (HOPPER, [TENSORWISE]),
        (ADA, [TENSORWISE]),
        (Accelerator((8, 0), (12, 1)), []),
    ],
)
def test_machines_that_can(found: Accelerator, overrides: list[str]):
    check_accelerator(_config(*overrides), "transformer_engine", found, {"NVTE_FLASH_ATTN": "1"})


@pytest.mark.parametrize(
    ("found", "overrides", "words"),
    [
        (Accelerator((8, 0), (12, 9)), [TENSORWISE], ["fp8.recipe (tensorwise)", "8.9", "is 8.0"]),
        (ADA, ["fp8.recipe=blockwise"], ["fp8.recipe (blockwise)", "9.0", "to tensorwise"]),
        (dataclasses.replace(HOPPER, cuda=(12, 8)), ["fp8.recipe=blockwise"], ["12.9", "and 12.8"]),
    ],
)
def test_machines_that_cannot(found: Accelerator, overrides: list[str], words: list[str]):
    with pytest.raises(ConfigError) as error:
        check_accelerator(_config(*overrides), "transformer_engine", found, {})
    for word in words:
        assert word in str(error.value)


def test_local_layers_have_no_fp8_and_switched_off_attention_is_named():
    for key, value in (("fp8.recipe", "delayed"), ("parallel.tp_comm_overlap", "true")):
        with pytest.raises(ConfigError, match=rf"{key} \({value}\) needs CUDA and Transformer"):
            check_accelerator(_config(f"{key}={value}"), "local", Accelerator(), {})
    with pytest.raises(ConfigError, match=r"NVTE_FUSED_ATTN \(0\).*unset NVTE_FUSED_ATTN"):
        check_accelerator(_config(), "transformer_engine", HOPPER, {"NVTE_FUSED_ATTN": "0"})
    check_accelerator(_config(), "local", Accelerator(), {"NVTE_FUSED_ATTN": "0"})


def test_the_log_names_what_layers_compute_in():
    config = _config(TENSORWISE, "fp8.first_last_layers_bf16=true", "fp8.param_gather=true")
    line = "FP8 (tensorwise, hybrid), the first 1 and last 1 in bf16, weights kept in FP8"
    assert config.layer_precision == line
    assert _config().layer_precision == "bf16"


@pytest.fixture
def place() -> Iterator[Topology]:
    config = load_config(None, ["parallel.platform=cpu"])
    yield topology.initialize(config, setup_platform("cpu"))
    topology.shutdown()


@pytest.mark.parametrize("recipe", ["none", "tensorwise"])
def test_gradients_and_optimizer_know_of_kept_weights(place: Topology, recipe: str):
    """Megatron-Core 0.19 updates weights that are kept in FP8 only where DDP's options say so."""
    kept = recipe != "none"
    config = _config(f"fp8.recipe={recipe}", f"fp8.param_gather={kept}")
    model = build_model(config, 64, place.groups, "local", torch.device("cpu"))
    wrapped = wrap_model(model, config.parallel)
    assert wrapped.ddp_config.fp8_param_gather == kept
    optimizer = build_optimizer(config, wrapped)
    assert optimizer.config.fp8_recipe == (recipe if kept else None)


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to(torch.float8_e4m3fn).to(weight.dtype)


def test_weights_kept_in_fp8_are_drawn_as_others(place: Topology, monkeypatch: pytest.MonkeyPatch):
    """And the optimizer's fp32 weight starts from what was drawn, not from what FP8 leaves of it.

    A weight that rounds when it is filled stands in for Transformer Engine's.
    """
    config = _config()
    drawn = build_model(config, 64, place.groups, "local", torch.device("cpu"))
    want = dict(drawn.named_parameters())
    model = build_model(config, 64, place.groups, "local", torch.device("cpu"))
    kept = {name: one for name, one in model.named_parameters() if "linear_" in name}
    ids = {id(one) for one in kept.values()}
    monkeypatch.setattr(initialize, "is_float8tensor", lambda one: id(one) in ids)
    exact = {name: torch.zeros_like(one) for name, one in kept.items()}

    def fill(one: torch.nn.Parameter, value: torch.Tensor) -> None:
        one.data = _rounded(value)

    for name, one in kept.items():
        one.data.zero_()
        one.copy_ = functools.partial(fill, one)
        one.get_high_precision_init_val = functools.partial(exact.get, name)
    initialize.initialize_weights(
        model.sharded_state_dict(), config.train.seed, config.model.init_method_std, 4
    )
    assert len(kept) == 16
    for name, one in kept.items():
        assert torch.equal(exact[name], want[name])
        assert torch.equal(one, _rounded(want[name]))
        assert not torch.equal(one, want[name])
