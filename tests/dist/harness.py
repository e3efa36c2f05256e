"""Run a function on several gloo ranks, each a process with one thread."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A fork server imports the slow modules once; every rank is then a cheap fork of it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.dist.preload"])

_HAS_TRANSFORMER_ENGINE = "tests.transformer_engine.standin" in sys.modules
LAYER_SPEC = "transformer_engine" if _HAS_TRANSFORMER_ENGINE else "local"
"""What the layers of models under test are; `make test-transformer-engine` has the former."""


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 300
) -> list[Any]:
    """Call `function(*args)` on every rank of a gloo world and return the results by rank.

    The world is set up as torchrun would (RANK, WORLD_SIZE, LOCAL_RANK) but over a file store, so
    no port is needed. `function` must be importable (top level of a test module) and its result
    must pickle.

    Raises:
        AssertionError: a rank raised (its traceback is the message), died or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _CONTEXT.Process(target=_rank_main, args=(rank, world_size, folder, function, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout_s)
        hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        results = []
        for rank in range(world_size):
            path = Path(folder) / f"result_{rank}"
            error = Path(folder) / f"error_{rank}"
            assert not error.exists(), f"rank {rank}:\n{error.read_text()}"
            assert path.exists(), f"rank {rank} died or hung (hung ranks: {hung})"
            results.append(pickle.loads(path.read_bytes()))
        return results


def _rank_main(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "OMP_NUM_THREADS": "1",
    }
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    try:
        result = function(*args)
        (Path(folder) / f"result_{rank}").write_bytes(pickle.dumps(result))
    except BaseException:  # noqa: BLE001
        (Path(folder) / f"error_{rank}").write_text(traceback.format_exc())
        os._exit(1)  # peers blocked in a collective see the connection close
    if dist.is_initialized():
        dist.destroy_process_group()
