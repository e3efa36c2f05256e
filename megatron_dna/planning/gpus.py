"""What a GPU and its node can do, and how much of that kernels reach: every constant of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_dna.config import Config, ConfigError
from megatron_dna.training.flops import PEAK_TFLOPS


@dataclass(frozen=True)
class Gpu:
    """One GPU in a node of eight."""

    name: str
    memory_gib: float
    """As the driver shows it, rounded down."""
    bf16_tflops: float
    """Dense peak of the tensor cores."""
    fp8_tflops: float
    """Dense peak of the tensor cores; 0 where they have no FP8."""
    fp32_tflops: float
    """Peak outside of the tensor cores (torch's default: no TF32)."""
    memory_tb_per_s: float
    nvlink_gb_per_s: float
    """To the other GPUs of the node, one direction."""
    network_gb_per_s: float
    """To other nodes, one direction: one network card a GPU."""
    source: str
    """Where the figures come from."""

    def peak_flops(self, precision: str) -> float:
        """FLOPs a second at `bf16`, `fp8` or `fp32`."""
        known = {"bf16": self.bf16_tflops, "fp8": self.fp8_tflops, "fp32": self.fp32_tflops}
        return 1e12 * known[precision]


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 79, PEAK_TFLOPS["A100"], 0, 19.5, 2.039, 300, 25,
            "NVIDIA A100 80GB SXM data sheet; DGX A100: 8 x 200 Gb/s"),
        Gpu("h100", 79, PEAK_TFLOPS["H100"], 1978.9, 67, 3.35, 450, 50,
            "NVIDIA H100 SXM data sheet; DGX H100: 8 x 400 Gb/s"),
        Gpu("h200", 140, PEAK_TFLOPS["H200"], 1978.9, 67, 4.8, 450, 50,
            "NVIDIA H200 SXM data sheet; DGX H200: 8 x 400 Gb/s"),
        Gpu("b200", 179, PEAK_TFLOPS["B200"], 4500, 75, 8.0, 900, 50,
            "NVIDIA HGX B200 data sheet; DGX B200: 8 x 400 Gb/s"),
    )
}  # fmt: skip

GPUS_PER_NODE = 8

# What follows are assumptions, not measurements.
USABLE_MEMORY = 0.9
"""Share of a GPU's memory that a plan may fill; the rest is for CUDA, NCCL and workspaces."""
MATMUL_EFFICIENCY = 0.75
"""Share of the peak that a large matrix product reaches."""
FP8_SPEEDUP = {"tensorwise": 1.57, "blockwise": 1.41, "delayed": 1.69}
"""Of a layer's matrix products over bf16. Source: Transformer Engine's figures for layers of 5
billion parameters on an H200; taken for all GPUs and sizes. They may hold some of the casts, which
are counted besides."""
FP8_CAST_BYTES = {"tensorwise": 6, "blockwise": 4, "delayed": 4}
"""Read and written to cast one bf16 number: read twice for a scale from the tensor itself, else
once; written in both orientations, a byte each. Read off Transformer Engine's source."""
ATTENTION_EFFICIENCY = 0.35
"""Share of the peak of FlashAttention-2 on an H100. Source: Shah et al. 2024 (FlashAttention-3)."""
MEMORY_EFFICIENCY = 0.8
"""Share of the memory bandwidth that an elementwise kernel reaches."""
LAUNCH_S = 6e-6
"""Seconds the host takes to launch one operation."""
LINK_EFFICIENCY = 0.8
"""Share of a link's bandwidth that a collective reaches."""
NVLINK_LATENCY_S = 5e-6
"""A hop within a node: alpha."""
NETWORK_LATENCY_S = 15e-6
"""A hop between nodes: alpha."""


def check_fp8(config: Config, gpu: Gpu) -> None:
    """Refuse FP8 on a GPU without it.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    if config.fp8.is_on and not gpu.fp8_tflops:
        raise ConfigError(
            f"fp8.recipe ({config.fp8.recipe}) needs a GPU with FP8, and --gpu is {gpu.name}; "
            "set fp8.recipe to none"
        )


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in GPUS:
        raise ConfigError(f"--gpu ({name}) must be one of {', '.join(GPUS)}")
    return GPUS[name]
