"""A process that gets nowhere says where it is, and ends, so that torchrun can start anew."""

from __future__ import annotations

import faulthandler
import logging
import os
import tempfile
import threading

logger = logging.getLogger(__name__)

HUNG_EXIT_STATUS = 70
"""Exit status of a process that made no progress for too long (EX_SOFTWARE of sysexits.h)."""

_GRACE_S = 15.0


class Watchdog:
    """Watches the training thread of this process."""

    def __init__(self, timeout_s: float) -> None:
        """Begin to watch.

        Args:
            timeout_s: from one `tick` to the next at most.
        """
        self._timeout_s = timeout_s
        self._doing = "starting"
        self._tick = threading.Event()
        self._is_closed = False
        self.tick("starting")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def tick(self, doing: str) -> None:
        """There is progress; `doing` says what begins now."""
        self._doing = doing
        self._tick.set()
        # Where the interpreter itself is stuck (a library that keeps its lock), no thread of ours
        # runs: faulthandler's own then has the last word.
        faulthandler.dump_traceback_later(self._timeout_s + _GRACE_S, exit=True)

    def close(self) -> None:
        """End to watch. Safe to call twice."""
        self._is_closed = True
        self._tick.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while self._tick.wait(self._timeout_s):
            if self._is_closed:
                return
            self._tick.clear()
        logger.error(
            "hung: rank %s (process %d) made no progress for %g s while %s; its threads are at\n%s",
            os.environ.get("RANK", "0"), os.getpid(), self._timeout_s, self._doing, _stacks(),
        )  # fmt: skip
        os._exit(HUNG_EXIT_STATUS)


def _stacks() -> str:
    """The stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
