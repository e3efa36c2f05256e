"""The machine that the benchmarks beside this file ran on."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_model() -> str:
    """As the kernel names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
