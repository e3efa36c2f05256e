"""Time of a collective: an alpha-beta model.

A collective over n ranks takes alpha log2(n) + bytes through the slowest link / bandwidth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_dna.planning.gpus import (
    GPUS_PER_NODE,
    LINK_EFFICIENCY,
    NETWORK_LATENCY_S,
    NVLINK_LATENCY_S,
    Gpu,
)


@dataclass(frozen=True)
class Link:
    """What `size` ranks that are `stride` ranks apart talk over."""

    gpu: Gpu
    size: int
    stride: int

    @property
    def inside_node(self) -> bool:
        """Whether all are in one node."""
        return self.size * self.stride <= GPUS_PER_NODE

    def bytes_per_s(self) -> float:
        """Of each rank, one direction; ranks in one node share their network cards' bandwidth."""
        nvlink = self.gpu.nvlink_gb_per_s
        if self.inside_node:
            return 1e9 * LINK_EFFICIENCY * nvlink
        neighbours = max(1, GPUS_PER_NODE // self.stride)
        return 1e9 * LINK_EFFICIENCY * min(nvlink, neighbours * self.gpu.network_gb_per_s)

    def _latency_s(self) -> float:
        hop = NVLINK_LATENCY_S if self.inside_node else NETWORK_LATENCY_S
        return hop * math.ceil(math.log2(self.size))

    def gather_bytes(self, total: float) -> float:
        """What a rank sends when `total` bytes are gathered from, or reduced to, all ranks."""
        return (self.size - 1) / self.size * total

    def gather_s(self, total: float) -> float:
        """Seconds of an all-gather or a reduce-scatter of `total` bytes."""
        if self.size == 1:
            return 0.0
        return self._latency_s() + self.gather_bytes(total) / self.bytes_per_s()

    def all_reduce_s(self, total: float) -> float:
        """Seconds of an all-reduce of `total` bytes: a reduce-scatter and an all-gather."""
        return 2 * self.gather_s(total)

    def send_s(self, total: float) -> float:
        """Seconds from a rank to its neighbour."""
        if self.size == 1:
            return 0.0
        across = self.gpu.nvlink_gb_per_s if self.inside_node else self.gpu.network_gb_per_s
        hop = NVLINK_LATENCY_S if self.inside_node else NETWORK_LATENCY_S
        return hop + total / (1e9 * LINK_EFFICIENCY * across)
