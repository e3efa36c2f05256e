"""Runs of a sweep that only write metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_dna.config import load_config

METRIC = "valid/bits_per_base"


class Killed(BaseException):
    """The sweep's process was killed here."""


class Runs:
    """A runner of stand-ins: each start writes metrics up to the end, or to what `plan` says.

    Attributes:
        started: folders, in order.
        plan: what happens in a folder at each start: an exit status, or Killed.
        is_closed: whether the sweep has said that it ends.
    """

    poll_s = 0.0

    def __init__(self, **plan: list[Any]) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.plan = plan
        self.is_closed = False
        self._ended: dict[Path, int] = {}

    def start(self, folder: Path) -> None:
        config = load_config(folder / "trial.yaml")
        assert Path(config.train.output_dir) == folder
        self.started.append(folder.name)
        outcome = self.plan.get(folder.name, [0])
        status = outcome.pop(0) if len(outcome) > 1 else outcome[0]
        last = config.train.train_iters if status == 0 else 2
        records = [
            {"iteration": i, METRIC: 1e3 * config.optimizer.lr + 1 / i,
             "train/consumed_tokens": 100 * i}
            for i in range(1, last + 1)
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        if status is Killed:
            raise Killed
        self._ended[folder] = status

    def poll(self) -> dict[Path, int]:
        ended, self._ended = self._ended, {}
        return ended

    def stop(self, folder: Path) -> None:
        self.stopped.append(folder.name)

    def close(self) -> None:
        self.is_closed = True


class LateRuns(Runs):
    """Their last evaluation is there when they have ended, and not before."""

    def poll(self) -> dict[Path, int]:
        ended = super().poll()
        for folder in ended:
            (folder / ".metrics").replace(folder / "metrics.jsonl")
        return ended

    def start(self, folder: Path) -> None:
        super().start(folder)
        path = folder / "metrics.jsonl"
        content = path.read_text()
        (folder / ".metrics").write_text(content)
        path.write_text(content[: content.rindex("{")])
