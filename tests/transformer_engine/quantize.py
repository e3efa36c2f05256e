"""FP8 casts in plain torch, into the tensor classes of Transformer Engine.

Source: Transformer Engine 2.12, `csrc/quantizer.cpp` and `common/recipe`; layouts of scales as
`Float8BlockQuantizer.get_scale_shape` says. On Hopper both a tensor and its transpose are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.transformer_engine.enums import DType

BLOCK = 128
FP8 = {DType.kFloat8E4M3: torch.float8_e4m3fn, DType.kFloat8E5M2: torch.float8_e5m2}


def quantize(tensor: Tensor, quantizer: Any, output: Any = None, noop: Tensor | None = None) -> Any:
    """`tensor` in FP8 as `quantizer` has it, in `output` or in a new one; `noop`: leave it."""
    tensor = tensor.detach()
    if output is None:
        output = create_empty_quantized_tensor(quantizer, list(tensor.shape), tensor.dtype)
    if noop is not None and bool(noop):
        return output
    if _is_in_blocks(quantizer):
        _in_blocks(tensor, quantizer, output)
    else:
        _as_a_whole(tensor, quantizer, output)
    return _storage(output) if quantizer.internal else output


def create_empty_quantized_tensor(
    quantizer: Any, shape: list[int], dtype: torch.dtype, device: Any = None, pin_memory: Any = None
) -> Any:
    """With room for what the quantizer's usages ask for; `dtype` is what it pretends to be."""
    turned = [shape[-1], *shape[:-1]]
    rows = torch.empty(shape, dtype=torch.uint8) if quantizer.rowwise_usage else None
    columns = torch.empty(turned, dtype=torch.uint8) if quantizer.columnwise_usage else None
    common = {"shape": shape, "dtype": dtype, "fp8_dtype": quantizer.dtype, "quantizer": quantizer}
    if not _is_in_blocks(quantizer):
        from transformer_engine.pytorch.tensor.float8_tensor import Float8Tensor

        return Float8Tensor(
            **common, data=rows, data_transpose=columns, fp8_scale_inv=torch.ones(1)
        )
    from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockwiseQTensor

    scales = [torch.zeros(quantizer.get_scale_shape(shape, side)) for side in (False, True)]
    return Float8BlockwiseQTensor(
        **common,
        rowwise_data=rows,
        rowwise_scale_inv=scales[0] if rows is not None else None,
        columnwise_data=columns,
        columnwise_scale_inv=scales[1] if columns is not None else None,
        is_2D_scaled=quantizer.block_scaling_dim == 2,
    )


def _is_in_blocks(quantizer: Any) -> bool:
    return type(quantizer).__name__ == "Float8BlockQuantizer"


def _storage(tensor: Any) -> Any:
    """The same without being a torch tensor: what an internal quantizer makes."""
    made = next(one for one in type(tensor).__mro__ if one.__name__.endswith("TensorStorage"))
    return made(**tensor.get_metadata())


def scale_of(amax: Tensor, largest: float, power_of_2: bool, epsilon: float) -> Tensor:
    """Factor that brings `amax` to the largest number of the format; 1 where there is nothing."""
    amax = amax.float().clamp(min=epsilon)
    scale = largest / amax
    if power_of_2:
        scale = torch.exp2(scale.log2().floor())
    return torch.where((amax == 0) | ~scale.isfinite(), 1.0, scale)


def _scale(amax: Tensor, quantizer: Any) -> Tensor:
    largest = torch.finfo(FP8[quantizer.dtype]).max
    return scale_of(amax, largest, quantizer.force_pow_2_scales, quantizer.amax_epsilon)


def to_codes(values: Tensor, dtype: DType) -> Tensor:
    """As bytes, saturated."""
    largest = torch.finfo(FP8[dtype]).max
    return values.clamp(-largest, largest).to(FP8[dtype]).view(torch.uint8)


def _as_a_whole(tensor: Tensor, quantizer: Any, output: Any) -> None:
    """One scale: from this tensor, or (delayed) from the steps before."""
    amax = tensor.abs().max().float()
    if type(quantizer).__name__ == "Float8CurrentScalingQuantizer":
        if quantizer.with_amax_reduction:
            group = quantizer.amax_reduction_group
            torch.distributed.all_reduce(amax, torch.distributed.ReduceOp.MAX, group)
        scale = _scale(amax, quantizer).reshape(1)
    else:
        scale = quantizer.scale.reshape(1).clone()
        quantizer.amax.copy_(torch.maximum(quantizer.amax, amax))
    codes = to_codes(tensor.float() * scale, quantizer.dtype)
    if quantizer.rowwise_usage or output._data is not None:
        output._data = _into(output._data, codes)
    if quantizer.columnwise_usage:
        output._transpose = _into(
            output._transpose, codes.reshape(-1, codes.shape[-1]).t().contiguous()
        )
        output._transpose_invalid = False
    else:
        output._transpose, output._transpose_invalid = None, True
    output._scale_inv.copy_(1 / scale)
    output._fp8_dtype = quantizer.dtype


def _into(place: Tensor | None, codes: Tensor) -> Tensor:
    return codes.clone() if place is None else place.copy_(codes.view(place.shape))


def _in_blocks(tensor: Tensor, quantizer: Any, output: Any) -> None:
    """A scale for each 128 x 128 (weights) or 1 x 128 (the rest) along the product's inner side."""
    matrix = tensor.flatten(0, -2)
    height = BLOCK if quantizer.block_scaling_dim == 2 else 1
    for rowwise, values in ((True, matrix), (False, matrix.t())):
        if not (quantizer.rowwise_usage if rowwise else quantizer.columnwise_usage):
            continue
        rows, columns = values.shape
        tiles = in_tiles(values.float(), BLOCK, height)
        scale = _scale(tiles.abs().amax((1, 3)), quantizer)
        codes = to_codes(tiles * scale[:, None, :, None], quantizer.dtype)
        codes = codes.view(tiles.shape[0] * height, -1)[:rows, :columns]
        inverse = 1 / (scale if height > 1 else scale.t())
        side = "_rowwise" if rowwise else "_columnwise"
        data = getattr(output, f"{side}_data")
        data.copy_(codes.reshape(data.shape))
        place = getattr(output, f"{side}_scale_inv")
        place.zero_()[: inverse.shape[0], : inverse.shape[1]] = inverse


def in_tiles(matrix: Tensor, width: int, height: int | None = None) -> Tensor:
    """[tiles, height, tiles, width], with zeros where the matrix ends; `height` is `width` else."""
    height = height or width
    short = [-matrix.shape[1] % width, -matrix.shape[0] % height]
    padded = torch.nn.functional.pad(matrix, (0, short[0], 0, short[1]))
    return padded.view(-1, height, padded.shape[1] // width, width)


def as_matrix(operand: Any, rowwise: bool) -> Tensor:
    """What a product sees of an operand: [rows, columns], fp32.

    Args:
        operand: a torch tensor or one of Transformer Engine's.
        rowwise: which of its two forms the product reads; FP8 products on Hopper have no choice.

    Raises:
        AssertionError: the form is not there.
    """
    if hasattr(operand, "_rowwise_data"):
        return _from_blocks(operand, rowwise)
    if hasattr(operand, "_scale_inv"):
        if rowwise:
            assert operand._data is not None, "the product needs data by rows"
            codes = operand._data.flatten(0, -2)
        else:
            there = operand._transpose is not None and not operand._transpose_invalid
            assert there, "the product needs the transpose"
            codes = operand._transpose.view(operand._transpose.shape[0], -1).t()
        return codes.view(FP8[operand._fp8_dtype]).float() * operand._scale_inv
    return operand.detach().reshape(-1, operand.shape[-1]).float()


def _from_blocks(operand: Any, rowwise: bool) -> Tensor:
    side = "_rowwise" if rowwise else "_columnwise"
    data, inverse = getattr(operand, f"{side}_data"), getattr(operand, f"{side}_scale_inv")
    assert data is not None, f"the product needs {side[1:]} data"
    codes = data.flatten(0, -2) if rowwise else data.view(data.shape[0], -1)
    rows, columns = codes.shape
    height = BLOCK if operand._is_2D_scaled else 1
    scale = inverse if operand._is_2D_scaled else inverse.t()
    scale = scale.repeat_interleave(height, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]
    values = codes.contiguous().view(FP8[operand._fp8_dtype]).float() * scale
    return values if rowwise else values.t()
