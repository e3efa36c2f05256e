"""A process's life is bound to that of the one that started it: torchrun, or a sweep."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""Source: prctl(2)."""


def is_torchrun_worker() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def die_with_torchrun() -> None:
    """Ask the kernel to kill this process when torchrun dies; nothing where torchrun is not above.

    torchrun starts its workers in sessions of their own, so whatever kills it leaves them alive:
    orphans that go on writing checkpoints beside the run that takes over.

    Raises:
        OSError: the kernel refuses.
    """
    if is_torchrun_worker():
        die_with_parent()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies; nothing where it is not Linux.

    It holds for the program that this process becomes (exec), not for its own children. SIGKILL,
    because a worker that is asked to end (SIGTERM) saves first.

    Raises:
        OSError: the kernel refuses.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died just before. (If torchrun died before `parent` was read, the worker
    # cannot join the world either: torchrun keeps the store where the ranks meet.)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
