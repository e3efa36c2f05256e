"""Checkpoint folders: written whole or not at all, found, verified, pruned. No tensor in here.

    checkpoints/latest              text: the name of the folder to resume from
    checkpoints/iter_0000010/       complete: its manifest.json lists every other file
    checkpoints/.tmp_iter_0000020/  being written, or left behind by a run that died
    checkpoints/.old_iter_0000005/  being deleted

A folder gets its final name in one rename after all its bytes are on disk, and loses it in one
rename before the first of them is deleted. `latest` is replaced, never rewritten.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_dna.checkpoint.manifest import (
    MANIFEST,
    CheckpointError,
    FileRecord,
    check_sizes,
    manifest_text,
)

logger = logging.getLogger(__name__)

LATEST = "latest"

_FOLDER = re.compile(r"iter_(\d{7,})")


def folder_name(iteration: int) -> str:
    """Name of the checkpoint written after `iteration` optimizer steps."""
    return f"iter_{iteration:07d}"


def iteration_of(path: Path) -> int | None:
    """Iteration in a checkpoint folder's name, None if the name is not of that kind."""
    match = _FOLDER.fullmatch(path.name)
    return int(match[1]) if match else None


def begin(root: Path, iteration: int) -> Path:
    """Make the empty folder to write a checkpoint into, and sweep what dead runs left behind."""
    root.mkdir(parents=True, exist_ok=True)
    _read_latest(root)
    for leftover in (*root.glob(".tmp_iter_*"), *root.glob(".old_iter_*")):
        shutil.rmtree(leftover)
    folder = root / f".tmp_{folder_name(iteration)}"
    folder.mkdir()
    return folder


def publish(
    temporary: Path, iteration: int, files: Mapping[str, FileRecord], about: Mapping[str, Any]
) -> Path:
    """Write the manifest, give the folder its final name, then move `latest` to it.

    Args:
        temporary: the folder that `begin` made, with all files in it.
        iteration: optimizer steps behind the checkpoint.
        files: what the manifest is to say of each file.
        about: further facts for the manifest (versions).

    Returns:
        The final folder.
    """
    root = temporary.parent
    write_text(temporary / MANIFEST, manifest_text(iteration, files, about))
    for path in (*temporary.rglob("*"), temporary):  # Megatron-Core and torch leave some to the OS
        _sync(path)
    final = root / folder_name(iteration)
    replaced = _set_aside(final) if final.exists() else None
    temporary.rename(final)
    _sync(root)
    set_latest(final)
    if replaced is not None:
        shutil.rmtree(replaced)
    return final


def set_latest(folder: Path) -> None:
    """Make `folder` the one to resume from."""
    pointer = folder.parent / f".tmp_{LATEST}"
    write_text(pointer, folder.name + "\n")
    pointer.replace(folder.parent / LATEST)
    _sync(folder.parent)


def remove(folder: Path) -> None:
    """Delete a checkpoint. Killed half-way, it leaves nothing that looks like one."""
    shutil.rmtree(_set_aside(folder))


def _set_aside(folder: Path) -> Path:
    """Take a checkpoint's name away before it is deleted."""
    doomed = folder.parent / f".old_{folder.name}"
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    _sync(folder.parent)
    return doomed


def prune(root: Path, keep_last: int, keep_every: int = 0) -> None:
    """Delete all but the `keep_last` newest checkpoints up to the one `latest` names; 0 keeps all.

    Checkpoints at multiples of `keep_every` iterations stay too; 0 is none.

    Folders of later iterations (a run that went back to an older checkpoint) are not counted and
    not touched: the run replaces them when it gets there.
    """
    latest = _read_latest(root)
    if keep_last == 0 or latest is None:
        return
    newest = iteration_of(latest)
    assert newest is not None
    for folder in _folders(root, up_to=newest)[keep_last:]:
        iteration = iteration_of(folder)
        assert iteration is not None
        if keep_every == 0 or iteration % keep_every != 0:
            remove(folder)


def candidates(root: Path) -> list[Path]:
    """Folders to try to resume from, best first: the one `latest` names, then older ones.

    Without a usable `latest` (said in a warning when there are folders), newest first.
    """
    latest = _read_latest(root)
    if latest is not None:
        return _folders(root, up_to=iteration_of(latest))
    folders = _folders(root)
    if folders:
        logger.warning(
            "%s does not name a checkpoint that is there; taking the newest", root / LATEST
        )
    return folders


def find_latest(root: str | Path) -> Path | None:
    """The newest complete checkpoint under `root`, by `latest`; None if there is none.

    An incomplete one is skipped with a warning that names what is wrong with it.
    """
    for folder in candidates(Path(root)):
        try:
            check_sizes(folder)
        except CheckpointError as error:
            logger.warning("skipped: %s", error)
        else:
            return folder
    return None


def resolve(path: Path) -> Path:
    """`path` itself if it is a checkpoint, or the newest one of the run whose output it is.

    Raises:
        CheckpointError: it is neither.
    """
    if (path / "checkpoints").is_dir():
        newest = find_latest(path / "checkpoints")
        if newest is None:
            raise CheckpointError(f"{path}/checkpoints holds no complete checkpoint yet")
        return newest
    if iteration_of(path.resolve()) is None:
        raise CheckpointError(
            f"{path} is not a checkpoint; give an iter_... folder or a run's output folder"
        )
    return path.resolve()


def write_text(path: Path, text: str) -> None:
    """Write a file and see it onto the disk."""
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _folders(root: Path, up_to: int | None = None) -> list[Path]:
    """Folders with a checkpoint's name, newest first."""
    if not root.is_dir():
        return []
    numbered = [(iteration_of(path), path) for path in root.iterdir() if path.is_dir()]
    found = [(number, path) for number, path in numbered if number is not None]
    return [
        path for number, path in sorted(found, reverse=True) if up_to is None or number <= up_to
    ]


def _read_latest(root: Path) -> Path | None:
    """The folder that `latest` names, if it is there."""
    pointer = root / LATEST
    if not pointer.is_file():
        return None
    name = pointer.read_text(errors="replace").strip()
    folder, set_aside = root / name, root / f".old_{name}"
    if _FOLDER.fullmatch(name) and not folder.exists() and set_aside.is_dir():
        set_aside.rename(folder)  # killed between the two renames that replace a checkpoint
    return folder if _FOLDER.fullmatch(name) and folder.is_dir() else None


def _sync(path: Path) -> None:
    """See a file's content, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
