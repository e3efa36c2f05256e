"""What is scored is safe: a run that was killed goes on behind it.

Beside an output OUT, until it is done:

    OUT.partial/
        scores            a line of JSON that says what is scored, then the scores in order
        genome.fai        index of the FASTA file
        ...               outputs that are not whole yet
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_dna.genome.folders import output_folder
from megatron_dna.inference.variants import SCORE, Scorer, Scores, Variant

LOG = "scores"


@contextlib.contextmanager
def partial_folder(output: Path) -> Iterator[Path]:
    """The folder of an output under way; it goes when all is done.

    A run that finds its input bad takes it back too, unless an earlier run had made it.

    Raises:
        OSError: it cannot be made.
    """
    folder = output.with_name(output.name + ".partial")
    with output_folder(output.parent):
        is_new = not folder.exists()
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        except ValueError:
            if is_new:
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


class ScoreLog:
    """Scores variants in order, those first that an earlier run has scored."""

    def __init__(self, scorer: Scorer, folder: Path, about: dict[str, Any]) -> None:
        """`about`: all that scores depend on; a log about anything else is dropped."""
        self._scorer = scorer
        self._path = folder / LOG
        header = json.dumps(about, sort_keys=True).encode() + b"\n"
        content = self._path.read_bytes() if self._path.exists() else b""
        if not content.startswith(header):
            content = header
        num = (len(content) - len(header)) // SCORE.itemsize
        self._known: Scores = np.frombuffer(content, SCORE, num, len(header))
        self._path.write_bytes(content[: len(header) + num * SCORE.itemsize])
        self.num_known = num

    def __call__(self, variants: Sequence[Variant]) -> Scores:
        """The next variants' scores; see `Scorer`."""
        known, self._known = self._known[: len(variants)], self._known[len(variants) :]
        scores = self._scorer(variants[len(known) :])
        with self._path.open("ab") as file:
            file.write(scores.tobytes())
        return np.concatenate((known, scores))
