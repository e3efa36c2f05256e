"""Which kernel of Transformer Engine computes which layer; the slow one never, where it matters."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from megatron_dna.config import ConfigError, load_config
from megatron_dna.model import attention_kernels
from megatron_dna.model.attention_kernels import Attention, attention_kernel, check_attention
from tests.gpu.bodies import MEMORY, SHAPE, World, one_step
from tests.transformer_engine import kernels

pytestmark = pytest.mark.usefixtures("world")

NO_MASK, PADDING = AttnMaskType.no_mask, AttnMaskType.padding
OPTIONS = [*SHAPE, "train.precision=bf16", "parallel.platform=auto"]


@pytest.fixture(autouse=True)
def forget():
    kernels.calls.clear()
    attention_kernels.mask_type_of_full_windows.cache_clear()
    yield
    attention_kernels.mask_type_of_full_windows.cache_clear()


def _attention(half_width: int | None, dtype: torch.dtype = torch.bfloat16) -> Attention:
    return Attention(dtype, 2, 4, 64, 128, half_width)


@pytest.mark.parametrize("extra", [(), MEMORY], ids=["plain", "memory"])
@pytest.mark.parametrize("is_padded", [False, True], ids=["full", "padded"])
def test_every_layer_is_computed_by_the_fast_kernel(world: World, is_padded: bool, extra: tuple):
    """With its own window, and with a mask only where one is due or the kernel wants one."""
    one_step(world, "transformer_engine", "bf16", *extra, is_padded=is_padded)
    windows = [window for direction, _, window in kernels.calls if direction == "forward"]
    segments = 3 if extra else 2  # of one micro-batch, or one of each of two
    assert windows == [(-1, -1), (8, 8)] * 2 * (segments + 1)  # once more for the logits
    backward = [window for direction, _, window in kernels.calls if direction == "backward"]
    assert backward == [(8, 8), (-1, -1)] * 2 * segments
    masks = {window: mask for _, mask, window in kernels.calls}
    wants_mask = is_padded or not kernels.takes_windows_without_a_mask
    assert masks[8, 8] == ("NVTE_PADDING_MASK" if wants_mask else "NVTE_NO_MASK")
    assert masks[-1, -1] == ("NVTE_PADDING_MASK" if is_padded else "NVTE_NO_MASK")


def test_transformer_engine_is_asked(monkeypatch: pytest.MonkeyPatch):
    """As its 2.12 and its 2.17 answer, whichever is here."""
    for takes_them, kernel, mask_type in (
        (False, "unfused", PADDING),
        (True, "cuDNN", NO_MASK),
    ):
        monkeypatch.setattr(kernels, "takes_windows_without_a_mask", takes_them)
        attention_kernels.mask_type_of_full_windows.cache_clear()
        assert attention_kernel(_attention(8), NO_MASK) == kernel
        assert attention_kernel(_attention(8), PADDING) == "cuDNN"
        assert attention_kernels.mask_type_of_full_windows(_attention(8)) is mask_type
        assert attention_kernels.mask_type_of_full_windows(_attention(None)) is NO_MASK
    for mask_type in (NO_MASK, PADDING):  # fp32 is for comparisons: nothing fast is there for it
        assert attention_kernel(_attention(None, torch.float32), mask_type) == "unfused"
    fp32 = attention_kernels.mask_type_of_full_windows(_attention(8, torch.float32))
    assert fp32 is NO_MASK


def test_a_run_is_told_which_kernels_it_has():
    window = "no_mask" if kernels.takes_windows_without_a_mask else "padding"
    assert check_attention(load_config(None, OPTIONS), "transformer_engine") == (
        "all: cuDNN with no_mask, cuDNN where padded; "
        f"window: cuDNN with {window}, cuDNN where padded"
    )
    only = load_config(None, [*OPTIONS, "model.global_attn_every_n_layers=1"])
    assert "window" not in check_attention(only, "transformer_engine")
    assert check_attention(only, "local") == ""
    fp32 = load_config(None, [*OPTIONS, "train.precision=fp32"])
    assert check_attention(fp32, "transformer_engine") == ""
    split = load_config(None, [*OPTIONS, "parallel.context_parallel_size=2"])
    assert check_attention(split, "transformer_engine") == ""


@pytest.mark.parametrize("missing", ["windows", "padding", "all"])
def test_a_machine_with_the_slow_kernel_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch, missing: str
):
    """As with cuDNN 9.5 (no windows, no padding), 9.10.0 (nothing), 9.14.0 (no long windows)."""
    real = kernels.get_fused_attn_backend

    def answer(*args):
        mask_type, left = args[5], args[14]
        lacks = {
            "windows": left >= 0,
            "padding": mask_type == kernels.PADDING and left < 0,
            "all": True,
        }
        if lacks[missing]:
            return kernels.NVTE_Fused_Attn_Backend.NVTE_No_Backend
        return real(*args)

    import transformer_engine_torch

    monkeypatch.setattr(transformer_engine_torch, "get_fused_attn_backend", answer)
    kind = "windows to both sides" if missing == "windows" else "attention to all positions"
    rule = rf"model.global_attn_every_n_layers \(2\) needs {kind}.*cuDNN.*model.layer_spec to local"
    with pytest.raises(ConfigError, match=rule):
        check_attention(load_config(None, OPTIONS), "transformer_engine")
