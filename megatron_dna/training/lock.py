"""One run an output folder: a second one is refused while any process of the first lives.

Every process of a run holds a shared `flock` on <output_dir>/run.lock, so neither a dead run nor a
killed one leaves a lock behind. Who begins a run must first have it alone.
"""

from __future__ import annotations

import datetime
import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from megatron_dna.config import ConfigError

logger = logging.getLogger(__name__)

LOCK = "run.lock"
"""Name of the lock file; its text says who holds it."""

_POLL_S = 0.2


class OutputLock:
    """A process's share in the lock on an output folder."""

    def __init__(self, folder: Path) -> None:
        """Holds nothing yet; see `claim` and `join`."""
        self._folder = folder
        self._path = folder / LOCK
        self._made: list[Path] = []  # by this process, outermost first
        self._descriptor: int | None = None
        # A loader's worker lives a little longer than its rank: it must not hold the lock.
        os.register_at_fork(after_in_child=self.release)

    def claim(self, wait_s: float = 0.0) -> None:
        """Begin a run in the folder, made if need be. One process of the run calls this.

        Args:
            wait_s: how long the processes of a run that is ending may take.

        Raises:
            ConfigError: another run lives there.
            OSError: the folder cannot be written.
        """
        deadline = time.monotonic() + wait_s
        while not self._try_claim():
            if time.monotonic() > deadline:
                raise self._refusal()
            time.sleep(_POLL_S)

    def join(self) -> None:
        """Take a share in what a process of this run has claimed; nothing in that process itself.

        Raises:
            ConfigError: another run is beginning there.
        """
        if self._descriptor is not None:
            return
        self._descriptor = os.open(self._path, os.O_RDWR)
        if not self._flock(fcntl.LOCK_SH):
            self.release()
            raise self._refusal()

    def release(self) -> None:
        """Give up this process's share. Safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def abandon(self) -> None:
        """Release, and take away the file and the folders that `claim` made, if they are empty."""
        for path in reversed(self._made):
            try:
                path.unlink() if path == self._path else path.rmdir()
            except OSError:  # something of use is in it
                break
        self._made = []
        self.release()

    def _try_claim(self) -> bool:
        missing = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made += [*reversed(missing), *([] if self._path.exists() else [self._path])]
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        is_alone = self._flock(fcntl.LOCK_EX) and self._is_in_place()
        if is_alone:
            since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            holder = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, holder.encode(), 0)
            # Not atomic: if another run slips in between, this one gives way.
            if self._flock(fcntl.LOCK_SH):
                return True
        self._made = []
        self.release()
        return False

    def _is_in_place(self) -> bool:
        """Whether the file that was locked is still the one of that name."""
        assert self._descriptor is not None
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _flock(self, kind: int) -> bool:
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # a file system without locks
            logger.warning(
                "%s cannot be locked (%s): see to it yourself that only one run uses the folder",
                self._path, error,
            )  # fmt: skip
        return True

    def _refusal(self) -> ConfigError:
        try:
            holder = self._path.read_text().strip()
        except OSError:
            holder = ""
        return ConfigError(
            f"train.output_dir ({self._folder}) is in use by another run ({holder or 'starting'}); "
            "wait for its end, or give another folder"
        )
