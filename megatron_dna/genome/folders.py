"""Folders for output, which a command that fails takes back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


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
