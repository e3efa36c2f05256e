"""Being asked to stop: Slurm's pre-emption and time limit, or a person."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

REQUEUE_EXIT_STATUS = 75
"""Exit status of a run that was asked to stop and has saved: start it again.

EX_TEMPFAIL of sysexits.h."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers that one of its signals came, for the end of the step."""

    def __init__(self, signals: Sequence[signal.Signals] = STOP_SIGNALS) -> None:
        """Take the signals over until `restore`; nothing outside of the main thread."""
        self.signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in signals}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def restore(self) -> None:
        """Give the signals back. Safe to call twice."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
