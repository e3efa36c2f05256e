"""The names that Transformer Engine's binding gives to its constants."""

from __future__ import annotations

import enum


def _enum(name: str, *members: str, start: int = 0) -> type[enum.IntEnum]:
    return enum.IntEnum(name, list(members), start=start)


DType = enum.IntEnum(
    "DType",
    {
        **{"kByte": 0, "kInt32": 2, "kFloat32": 4, "kFloat16": 5, "kBFloat16": 6},
        **{"kFloat8E4M3": 7, "kFloat8E5M2": 8, "kFloat4E2M1": 10},
    },
)
FP8FwdTensors = _enum(
    "FP8FwdTensors",
    *(f"GEMM{i}_{what}" for i in (1, 2, 3) for what in ("INPUT", "WEIGHT", "OUTPUT")),
)
FP8BwdTensors = _enum(
    "FP8BwdTensors", *(f"GRAD_{what}{i}" for i in (1, 2, 3) for what in ("OUTPUT", "INPUT"))
)
NVTE_Bias_Type = _enum(
    "NVTE_Bias_Type",
    *("NVTE_NO_BIAS", "NVTE_PRE_SCALE_BIAS", "NVTE_POST_SCALE_BIAS", "NVTE_ALIBI"),
)
NVTE_Mask_Type = _enum(
    "NVTE_Mask_Type",
    *("NVTE_NO_MASK", "NVTE_PADDING_MASK", "NVTE_CAUSAL_MASK", "NVTE_PADDING_CAUSAL_MASK"),
    *("NVTE_CAUSAL_BOTTOM_RIGHT_MASK", "NVTE_PADDING_CAUSAL_BOTTOM_RIGHT_MASK"),
)
NVTE_Softmax_Type = _enum(
    "NVTE_Softmax_Type",
    *("NVTE_VANILLA_SOFTMAX", "NVTE_OFF_BY_ONE_SOFTMAX", "NVTE_LEARNABLE_SOFTMAX"),
)
NVTE_QKV_Format = _enum(
    "NVTE_QKV_Format",
    *("NVTE_SBHD", "NVTE_BSHD", "NVTE_THD", "NVTE_BSHD_2SBHD", "NVTE_SBHD_2BSHD"),
    *("NVTE_THD_2BSHD", "NVTE_THD_2SBHD", "NVTE_BHSD", "NVTE_QKV_Format_NOT_SET"),
)
_LAYOUTS = [
    f"NVTE_{layout}"
    for q in ("SB", "BS", "T")
    for layout in (
        *(f"{q}3HD", f"{q}H3D", f"{q}HD_{q}2HD", f"{q}HD_{q}H2D", f"{q}HD_{q}HD_{q}HD"),
        *(f"{q}HD_{kv}HD_{kv}HD" for kv in ("SB", "BS", "T") if kv != q),
        *(f"Paged_KV_{q}HD_{kv}HD_{kv}HD" for kv in ("SB", "BS")),
    )
]
NVTE_QKV_Layout = _enum(
    "NVTE_QKV_Layout", *_LAYOUTS, "NVTE_BHSD_BHSD_BHSD", "NVTE_QKV_Layout_NOT_SET"
)
NVTE_Fused_Attn_Backend = _enum(
    *("NVTE_Fused_Attn_Backend", "NVTE_No_Backend", "NVTE_F16_max512_seqlen"),
    *("NVTE_F16_arbitrary_seqlen", "NVTE_FP8"),
    start=-1,
)
Float8BlockScaleTensorFormat = _enum(
    "Float8BlockScaleTensorFormat", "GEMM_READY", "COMPACT", "INVALID"
)
CommOverlapType = _enum("CommOverlapType", "RS", "AG")
CommOverlapAlgo = _enum(
    *("CommOverlapAlgo", "BULK_OVERLAP_AG", "BULK_OVERLAP_RS", "SPLIT_PIPELINED_AG_P2P"),
    *("SPLIT_PIPELINED_RS", "SPLIT_PIPELINED_RS_P2P", "ATOMIC_GEMM_RS", "ATOMIC_GEMM_AG_P2P"),
    *("ATOMIC_GEMM_RS_P2P", "EXTERNAL_BULK_OVERLAP_AG"),
)
NVTERoutingMapFormat = _enum("NVTERoutingMapFormat", "BYTEMAP", "BITMAP_U8")
ALL = {name: value for name, value in vars().items() if isinstance(value, enum.EnumMeta)}
