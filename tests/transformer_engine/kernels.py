"""What Transformer Engine's compiled binding offers, in plain torch, as far as our layers call it.

Each function takes the arguments of its namesake in Transformer Engine 2.12 and 2.17
(`csrc/extensions/pybind.cpp`) and computes in fp32 before it rounds to the output's type.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.transformer_engine import enums
from tests.transformer_engine.enums import DType, NVTE_Fused_Attn_Backend, NVTE_Mask_Type
from tests.transformer_engine.quantize import (
    FP8,
    as_matrix,
    in_tiles,
    quantize,
    scale_of,
    to_codes,
)

TORCH = {
    DType.kFloat32: torch.float32, DType.kFloat16: torch.float16, DType.kBFloat16: torch.bfloat16,
    DType.kByte: torch.uint8, DType.kInt32: torch.int32,
}  # fmt: skip
NO_MASK, PADDING = NVTE_Mask_Type.NVTE_NO_MASK, NVTE_Mask_Type.NVTE_PADDING_MASK
calls: list[tuple[str, str, tuple[int, int]]] = []
"""Of fused attention: direction, mask type and window of each call, for tests to read."""
takes_windows_without_a_mask = False
"""As `get_fused_attn_backend` answers: 2.12 does not, 2.17 does. `standin.install` sets it."""


# Casts


def dequantize(input: Any, otype: DType) -> Tensor:
    """Back to `otype`."""
    rowwise = getattr(input, "_data", None) is not None
    return as_matrix(input, rowwise).view(input.size()).to(TORCH[otype])


def fp8_transpose(input: Tensor, dtype: DType, *, out: Tensor | None = None) -> Tensor:
    """Bytes [..., columns] as [columns, ...]."""
    order = (input.dim() - 1, *range(input.dim() - 1))
    turned = input.permute(order).contiguous()
    return turned if out is None else out.copy_(turned.view(out.shape))


def swap_first_dims(tensor: Tensor, *, out: Tensor | None = None) -> Tensor:
    """[a, b, ...] as [b, a, ...]."""
    turned = tensor.transpose(0, 1).contiguous()
    return turned if out is None else out.copy_(turned)


def compute_amax(input: Tensor, amax: Tensor) -> None:
    """Largest magnitude."""
    amax.copy_(input.abs().max())


def fused_amax_and_scale_update_after_reduction(
    amax_reduction_buffer: Tensor,
    amax_histories: list[Tensor],
    scales: list[Tensor],
    amax_compute_algo: str,
    fp8_dtype: DType,
    margin: float,
) -> None:
    """The delayed recipe's update: histories move on, scales follow their largest entry."""
    largest = torch.finfo(FP8[fp8_dtype]).max
    parts = amax_reduction_buffer.split([history.shape[1] for history in amax_histories])
    for now, history, scale in zip(parts, amax_histories, scales, strict=True):
        history[0] = now
        amax = history.max(0).values if amax_compute_algo == "max" else history[0].clone()
        history.copy_(history.roll(-1, 0))
        history[0].zero_()
        fresh = largest / amax / 2**margin
        scale.copy_(torch.where((amax > 0) & amax.isfinite(), fresh, scale))


# Linear layers


def generic_gemm(
    A: Any, transA: bool, B: Any, transB: bool, D: Any, quantizer: Any, output_dtype: DType | None,
    bias: Tensor | None, bias_type: DType, gelu: bool, gelu_in: Any, grad: bool, workspace: Tensor,
    workspace_size: int, accumulate: bool, use_split_accumulator: bool, comm_overlap: Any = None,
    comm_type: Any = None, extra_output: Any = None, bulk_overlap: bool = False,
    alpha: float = 1.0, beta: float | None = None,
) -> tuple[Any, Tensor | None, None, None]:  # fmt: skip
    """op(B) op(A) over rows, as cuBLAS sees it the other way round. Both in FP8 or neither."""
    assert comm_overlap is None
    assert not gelu
    is_fp8 = [hasattr(one, "_fp8_dtype") for one in (A, B)]
    assert is_fp8[0] == is_fp8[1], "a product of FP8 and another type"
    left, right = as_matrix(B, rowwise=not transB), as_matrix(A, rowwise=transA)
    left, right = (left.t() if transB else left), (right.t() if transA else right)
    if all(is_fp8):
        for length in (left.shape[1], right.shape[1]):
            assert length % 16 == 0, f"cuBLAS takes FP8 in multiples of 16, not {length}"
    result = alpha * (left @ right)
    bias_grad = None
    if bias is not None and grad:
        bias_grad = as_matrix(B, rowwise=False).sum(0).to(bias.dtype)
    elif bias is not None:
        result = result + bias.float()
    shape = (right.shape[1],) if transB else (*B.size()[:-1], right.shape[1])
    result = result.view(left.shape[0], -1) if transB else result.view(shape)
    if D is not None and quantizer is None:
        D.copy_(result + D.float() if accumulate else result)
        return D, bias_grad, None, None
    assert not accumulate
    dtype = A.dtype if output_dtype is None else TORCH[output_dtype]
    result = result.to(dtype)
    return result if quantizer is None else quantize(result, quantizer, D), bias_grad, None, None


def layernorm_fwd(
    input: Tensor, weight: Tensor, bias: Tensor | None, eps: float, ln_out: Any, quantizer: Any,
    otype: DType, sm_margin: int, zero_centered_gamma: bool,
) -> tuple[Any, Tensor, Tensor]:  # fmt: skip
    """Output (in FP8 where there is a quantizer), means and 1 / standard deviations."""
    assert not zero_centered_gamma
    values = input.float()
    mean = values.mean(-1, keepdim=True)
    rsigma = (values.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
    output = (values - mean) * rsigma * weight.float()
    if bias is not None:
        output = output + bias.float()
    output = output.to(TORCH[otype])
    if quantizer is not None:
        output = quantize(output, quantizer, ln_out)
    elif ln_out is not None:
        output = ln_out.copy_(output)
    return output, mean.flatten(), rsigma.flatten()


def layernorm_bwd(
    dz: Tensor, x: Tensor, mu: Tensor, rsigma: Tensor, gamma: Tensor, sm_margin: int,
    zero_centered_gamma: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of input, weight and bias."""
    grad = dz.reshape(x.shape).float()
    normal = (x.float() - mu.view(-1, 1)) * rsigma.view(-1, 1)
    scaled = grad * gamma.float()
    means = scaled.mean(-1, keepdim=True) + normal * (scaled * normal).mean(-1, keepdim=True)
    dx = (scaled - means) * rsigma.view(-1, 1)
    dgamma, dbeta = (grad * normal).sum(0), grad.sum(0)
    return dx.to(dz.dtype), dgamma.to(gamma.dtype), dbeta.to(gamma.dtype)


# Attention


def fused_rope_forward(
    input: Tensor, freqs: Tensor, start_positions: Tensor | None, qkv_format: Any,
    interleaved: bool, cu_seqlens: Tensor | None, cp_size: int, cp_rank: int,
) -> Tensor:  # fmt: skip
    """Rotate [seq, batch, heads, dim] by `freqs` [seq or more, 1, 1, dim]."""
    return _rotate(input, freqs, qkv_format, interleaved, cp_size, start_positions, sign=1)


def fused_rope_backward(
    output_grads: Tensor, freqs: Tensor, start_positions: Tensor | None, qkv_format: Any,
    interleaved: bool, cu_seqlens: Tensor | None, cp_size: int, cp_rank: int,
) -> Tensor:  # fmt: skip
    """Rotate back."""
    return _rotate(output_grads, freqs, qkv_format, interleaved, cp_size, start_positions, sign=-1)


def _rotate(
    values: Tensor, freqs: Tensor, qkv_format: Any, interleaved: bool, cp_size: int, start: Any,
    sign: int,
) -> Tensor:  # fmt: skip
    assert qkv_format == enums.NVTE_QKV_Format.NVTE_SBHD
    assert not interleaved
    assert cp_size == 1
    assert start is None
    assert freqs.dtype == torch.float32
    angles = freqs[: values.shape[0]]
    first, second = values.float().chunk(2, dim=-1)
    turned = values.float() * angles.cos() + torch.cat((-second, first), -1) * angles.sin() * sign
    return turned.to(values.dtype)


def get_fused_attn_backend(
    is_training: bool, q_dtype: DType, kv_dtype: DType, qkv_layout: Any, bias_type: Any,
    attn_mask_type: Any, softmax_type: Any, p_dropout: float, num_attn_heads: int,
    num_gqa_groups: int, max_seqlen_q: int, max_seqlen_kv: int, head_dim_qk: int, head_dim_v: int,
    window_size_left: int, window_size_right: int, *rest: Any,
) -> Any:  # fmt: skip
    """What Transformer Engine answers on Hopper with cuDNN 9.20, for full and padded windows.

    Recorded from `nvte_get_fused_attn_backend` of its library: docs/fp8.md.
    """
    has_window = (window_size_left, window_size_right) != (-1, -1)
    fits = q_dtype in (DType.kBFloat16, DType.kFloat16) and head_dim_qk % 8 == 0
    fits &= head_dim_qk <= 256 and p_dropout == 0 and attn_mask_type in (NO_MASK, PADDING)
    if has_window and attn_mask_type == NO_MASK:
        fits &= takes_windows_without_a_mask
    backends = NVTE_Fused_Attn_Backend
    return backends.NVTE_F16_arbitrary_seqlen if fits else backends.NVTE_No_Backend


def fused_attn_fwd(*args: Any) -> list[Tensor]:
    """Attention of q, k, v [seq, batch, heads, dim]; also statistics and the state of dropout."""
    q, k, v = _tensors(args)[2:5]
    output = _attend("forward", args, args[3], q, k, v)
    return [output.detach(), torch.zeros(1), torch.zeros(2, dtype=torch.int64)]


def fused_attn_bwd(*args: Any) -> list[Tensor | None]:
    """Gradients of q, k, v."""
    q, k, v, _, grad = _tensors(args)[2:7]
    leaves = [one.detach().requires_grad_() for one in (q, k, v)]
    with torch.enable_grad():
        output = _attend("backward", args, args[2], *leaves)
    return [*torch.autograd.grad(output, leaves, grad.view(output.shape)), None, None]


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    """Cumulated lengths of queries and keys, q, k, v and (backward) output and its gradient."""
    return [one for one in args if isinstance(one, Tensor)]


def _attend(
    direction: str, args: tuple[Any, ...], scale: float, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    layout = next(one for one in args if isinstance(one, enums.NVTE_QKV_Layout))
    assert layout.name.startswith("NVTE_SB"), f"expected the sequence first, got {layout.name}"
    mask_type = next(one for one in args if isinstance(one, NVTE_Mask_Type))
    left, right = next(one for one in args if isinstance(one, tuple | list) and len(one) == 2)
    assert get_fused_attn_backend(
        True, DType.kBFloat16, DType.kBFloat16, layout, None, mask_type, None, 0.0, q.shape[2],
        k.shape[2], len(q), len(k), q.shape[3], v.shape[3], left, right,
    ) != NVTE_Fused_Attn_Backend.NVTE_No_Backend  # fmt: skip
    calls.append((direction, mask_type.name, (left, right)))
    lengths = _tensors(args)[1].diff()
    rows, columns = torch.arange(len(q))[:, None], torch.arange(len(k))[None]
    seen = torch.ones(len(q), len(k), dtype=torch.bool)
    if left >= 0:
        seen &= columns >= rows - left
    if right >= 0:
        seen &= columns <= rows + right
    real = torch.ones(q.shape[1], len(k), dtype=torch.bool)
    if mask_type == PADDING:
        real = torch.arange(len(k)) < lengths[:, None]
    seen = seen & real[:, None, None, :]
    seen |= ~real[:, None, :, None]  # a row of padding: something finite, and no part of the loss
    q, k, v = (one.permute(1, 2, 0, 3).float() for one in (q, k, v))
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    output = output * real[:, None, :, None]  # cuDNN leaves zeros there
    return output.permute(2, 0, 1, 3).to(torch.bfloat16)


def scaled_masked_softmax_forward(input: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Of the unfused kernel; `mask` is True where a score does not count."""
    scores = (input.float() * scale).masked_fill(mask.bool(), -10_000.0)
    return torch.softmax(scores, -1).to(input.dtype)


def scaled_masked_softmax_backward(grads: Tensor, results: Tensor, scale: float) -> Tensor:
    """Gradient of the scores."""
    grads, results = grads.float(), results.float()
    scores = results * (grads - (grads * results).sum(-1, keepdim=True)) * scale
    return scores.to(torch.bfloat16 if grads.dtype == torch.bfloat16 else grads.dtype)


# Optimizer


def multi_tensor_adam(
    chunk_size: int, noop: Tensor, tensors: list[list[Tensor]], lr: float, beta1: float,
    beta2: float, epsilon: float, step: int, mode: int, bias_correction: int, weight_decay: float,
) -> None:  # fmt: skip
    """AdamW (`mode` 1) in place over gradients, parameters, means and squares."""
    assert mode == 1
    assert bias_correction
    if bool(noop):
        return
    for grad, parameter, mean, square in zip(*tensors[:4], strict=True):
        gradient, value = grad.float(), parameter.float()
        mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square / (1 - beta2**step)).sqrt() + epsilon
        value = value - lr * (mean / (1 - beta1**step) / denominator + weight_decay * value)
        parameter.copy_(value)


def multi_tensor_compute_scale_and_scale_inv(
    chunk_size: int, noop: Tensor, tensors: list[list[Tensor]], max_fp8: float,
    force_pow_2_scales: bool, epsilon: float,
) -> None:  # fmt: skip
    """Scales and their inverses, of amaxes."""
    for amax, scale, inverse in zip(*tensors, strict=True):
        scale.copy_(scale_of(amax, max_fp8, force_pow_2_scales, epsilon))
        inverse.copy_(1 / scale)


def fp8_block_scaling_compute_partial_amax(
    tensor: Tensor, amax: Tensor, h: int, w: int, start_offset: int, block_len: int
) -> None:
    """Largest magnitude in each block [h / block_len, w / block_len], of a part of a matrix."""
    whole = torch.zeros(h * w)
    whole[start_offset : start_offset + tensor.numel()] = tensor.float()
    amax.copy_(in_tiles(whole.view(h, w), block_len).abs().amax((1, 3)))


def fp8_block_scaling_partial_cast(
    inp: Tensor, out: Tensor, scale: Tensor, h: int, w: int, start_offset: int, block_len: int,
    out_dtype: DType,
) -> None:  # fmt: skip
    """A part of a matrix in FP8."""
    wide = scale.repeat_interleave(block_len, 0).repeat_interleave(block_len, 1)[:h, :w]
    own = wide.flatten()[start_offset : start_offset + inp.numel()]
    out.copy_(to_codes(inp.float() * own, out_dtype).view(out.shape))


def multi_tensor_scale(
    chunk_size: int, noop: Tensor, tensors: list[list[Tensor]], scale: float
) -> None:
    """The second list becomes the first times `scale`."""
    for source, target in zip(*tensors, strict=True):
        target.copy_(source * scale)


def multi_tensor_l2norm(
    chunk_size: int, noop: Tensor, tensors: list[list[Tensor]], per_tensor: bool = False
) -> tuple[Tensor, Tensor]:
    """Norm of all, and of each."""
    norms = torch.stack([one.float().norm() for one in tensors[0]])
    return norms.norm().view(1), norms


# Versions


def get_cublasLt_version() -> int:
    """13.1."""
    return 130_100


def get_cudnn_version() -> int:
    """9.20."""
    return 92_000


def get_num_cublas_streams() -> int:
    """Of grouped products."""
    return 4
