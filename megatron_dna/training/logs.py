"""Log lines of a run: from rank 0, warnings from all; no chatter of the libraries below."""

from __future__ import annotations

import logging
import sys
import warnings


def setup_logging(level: str, rank: int) -> None:
    """Send the package's log to stderr. Safe to call twice.

    Args:
        level: name of the least level that rank 0 reports.
        rank: other ranks report warnings and errors only, with their rank.
    """
    logger = logging.getLogger("megatron_dna")
    origin = f"[rank {rank}] " if rank else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s {origin}%(message)s", "%Y-%m-%d %H:%M:%S")
    )
    for existing in list(logger.handlers):
        logger.removeHandler(existing)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(level if rank == 0 else logging.WARNING)


def quiet_libraries() -> None:
    """Drop the deprecation and fall-back warnings that megatron-core and torch raise on import.

    Call it before importing them. What matters of them, which modules run, is logged by the run.
    """
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        for module in (r"megatron\.core", r"torch", r"megatron_dna\.parallel\.platform"):
            warnings.filterwarnings("ignore", category=category, module=module)
    # Megatron-Core 0.19 loads it, and it says so where there is a CUDA toolkit but no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
