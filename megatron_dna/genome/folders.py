"""Folders for output: taken back by a command that fails, gone on with by the same command only."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ABOUT = "about.json"


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; after an error those that it made go again, if empty.

    Raises:
        OSError: a folder cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # something was left in it, for a run that goes on
            for path in made:
                path.rmdir()
        raise


def claim_folder(folder: Path, about: dict[str, Any]) -> None:
    """Mark a folder as that of a run, or refuse it as that of another.

    Args:
        folder: is there.
        about: all that the run's results depend on, for JSON.

    Raises:
        ValueError: it is another run's; names what differs.
    """
    path = folder / ABOUT
    about = json.loads(json.dumps(about))
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if differing := [key for key in about if stored.get(key) != about[key]]:
            raise ValueError(
                f"--output ({folder}) holds a run with another {' and '.join(differing)}; choose "
                "another folder or remove it"
            )
        return
    temporary = folder / f".tmp_{ABOUT}"
    temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
