#!/usr/bin/env python3
"""torchrun for a cluster: sets what the libraries want, and lets the run's exit status through.

It takes torchrun's own options. torchrun ends with status 1 whatever its workers say; here it is

    75  the run was asked to stop (SIGTERM or SIGUSR1 are passed on) and saved: start it again
    N   the status of the worker that failed first (2 a bad option, 3 training diverged)
    1   a worker was killed or crashed
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from megatron_dna.training.logs import quiet_libraries
from megatron_dna.training.signals import REQUEUE_EXIT_STATUS, STOP_SIGNALS

EXAMPLE = """\
example:
  python tools/launch.py --nproc-per-node 8 --max-restarts 3 \\
      pretrain_dna_bert.py --config examples/base.yaml train.output_dir=runs/base
"""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # torchrun's: the signals that it passes on, and how long a worker may take to save.
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "PET_SHUTDOWN_TIMEOUT": "600",
    # A store of its own for every start: torch (2.13) otherwise keeps that of the first, in which
    # workers started anew read addresses of dead ones (seen: "connection refused" over gloo).
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    # NCCL: memory of what it sends is free as soon as its stream is done with it, and transfers
    # between pipeline stages on different nodes go in pieces of 2 MB. As NVIDIA sets them for GPT-3
    # on H100 in its submissions to MLPerf Training; not measured here.
    "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
    "NCCL_P2P_NET_CHUNKSIZE": "2097152",
}
"""Set for the workers where the user has not set them."""


def max_connections() -> str:
    """CUDA_DEVICE_MAX_CONNECTIONS for the GPUs here.

    Up to Hopper 1: kernels start in the order in which they are queued, so that communication that
    is to overlap with a matrix product (TP and SP) begins before it. From Blackwell on 32, so that
    streams do not wait for each other. Source: the performance settings of NVIDIA NeMo.
    """
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
        oldest = min(float(line) for line in answer.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):  # no driver: no GPU
        return "1"
    return "32" if oldest >= 10 else "1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        parser = argparse.ArgumentParser(
            description=__doc__,
            epilog=EXAMPLE,
            usage="%(prog)s [torchrun's options] SCRIPT [its options]",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.print_help()
        return 0 if arguments else 2
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "CUDA_DEVICE_MAX_CONNECTIONS" not in os.environ:
        os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = max_connections()
    quiet_libraries()
    return _launch(arguments)


def _launch(arguments: Sequence[str]) -> int:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = run.parse_args(list(arguments))
    if options.rdzv_backend == "static":  # torchrun's default, which has one store for all starts
        if options.nnodes in ("1", "1:1"):
            options.standalone = True
        elif options.max_restarts > 0:
            sys.stderr.write(
                f"launch: --max-restarts ({options.max_restarts}) on several nodes needs a "
                "rendezvous that can be repeated; add --rdzv-backend c10d and --rdzv-endpoint\n"
            )
            return 2
    try:
        run.run(options)
    except SignalException as error:
        number = signal.Signals(error.sigval)
        return REQUEUE_EXIT_STATUS if number in STOP_SIGNALS else 128 + number
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.stderr.write(f"launch: rank {rank} ended first, with status {failure.exitcode}\n")
        return max(1, failure.exitcode)  # negative: killed by a signal
    return 0


if __name__ == "__main__":
    sys.exit(main())
