"""What a checkpoint must consist of, byte for byte: size and sha256 of each of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = "megatron_dna checkpoint"
FORMAT_VERSION = 2
"""Version 1 has no `sha256` of the manifest itself, and is otherwise the same."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or is not what it claims to be."""


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of a file."""

    num_bytes: int
    """Size."""
    sha256: str
    """Hex digest of the content."""


def record_file(path: Path) -> FileRecord:
    """Size and digest of a file as it lies on disk."""
    digest = hashlib.sha256()
    num_bytes = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            num_bytes += len(block)
    return FileRecord(num_bytes, digest.hexdigest())


def list_files(folder: Path) -> list[str]:
    """Every file under `folder` but the manifest, relative, sorted."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != MANIFEST)


def manifest_text(iteration: int, files: Mapping[str, FileRecord], about: Mapping[str, Any]) -> str:
    """The text of a manifest.

    Args:
        iteration: optimizer steps behind the checkpoint.
        files: of each file.
        about: further facts (versions).
    """
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "iteration": iteration,
        **about,
        "files": {
            name: {"num_bytes": record.num_bytes, "sha256": record.sha256}
            for name, record in sorted(files.items())
        },
    }
    return _render(manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, checked for its format and its own digest; `files` are FileRecords.

    Raises:
        CheckpointError: there is no such folder or manifest, it is damaged or of another kind.
    """
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} is not a folder")
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {folder} has no {MANIFEST}: it is incomplete or not a checkpoint of "
            "megatron_dna"
        )
    try:
        content = path.read_text(encoding="ascii")
        manifest = json.loads(content)
        kind, version = manifest["format"], manifest["format_version"]
        records = {
            str(name): FileRecord(int(entry["num_bytes"]), str(entry["sha256"]))
            for name, entry in manifest["files"].items()
        }
        manifest.pop("sha256", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {folder}: {MANIFEST} is damaged ({error})") from error
    if kind != FORMAT or version not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"checkpoint {folder}: {MANIFEST} says format {kind} version {version}, not {FORMAT} "
            f"version {FORMAT_VERSION}; use the release that wrote it"
        )
    if version != 1 and content != _render(manifest):
        raise CheckpointError(
            f"checkpoint {folder}: {MANIFEST} is damaged (it is not what was written)"
        )
    for name in records:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"checkpoint {folder}: {MANIFEST} names {name}, outside of it")
    return {**manifest, "files": records}


def _render(manifest: Mapping[str, Any]) -> str:
    """The text with its own digest: any other text is a damaged one."""
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=1) + "\n"


def check_sizes(folder: Path, required: Collection[str] = ()) -> dict[str, FileRecord]:
    """Compare every file's presence and size with the manifest, and return the manifest's files.

    Args:
        folder: the checkpoint.
        required: files that the manifest must name.

    Raises:
        CheckpointError: a file is missing or has another size; the message names it.
    """
    files: dict[str, FileRecord] = read_manifest(folder)["files"]
    for name in required:
        if name not in files:
            raise CheckpointError(f"checkpoint {folder} is incomplete: {name} is not listed")
    for name, record in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"checkpoint {folder} is incomplete: {name} is missing")
        num_bytes = path.stat().st_size
        if num_bytes != record.num_bytes:
            raise CheckpointError(
                f"checkpoint {folder} is damaged: {name} has {num_bytes} bytes, "
                f"{record.num_bytes} were written"
            )
    return files


def check_digest(folder: Path, name: str, record: FileRecord) -> None:
    """Compare a file's content with the manifest.

    Raises:
        CheckpointError: the content differs or cannot be read.
    """
    try:
        found = record_file(folder / name)
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder}: {name} cannot be read ({error})") from error
    if found != record:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {name} is not what was written (sha256 differs)"
        )
