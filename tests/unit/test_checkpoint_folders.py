"""Checkpoint folders on disk: complete or not there, and nothing unsafe is loaded."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch

from megatron_dna.checkpoint import folders, manifest
from megatron_dna.checkpoint.manifest import CheckpointError
from megatron_dna.checkpoint.metadata import read_shapes
from megatron_dna.checkpoint.reader import read_weights
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.checkpoint.writer import write_weights
from megatron_dna.config import load_config


def _write(root: Path, iteration: int, content: bytes = b"tensors") -> Path:
    temporary = folders.begin(root, iteration)
    (temporary / "data").write_bytes(content)
    files = {"data": manifest.record_file(temporary / "data")}
    return folders.publish(temporary, iteration, files, {})


def test_latest_names_the_newest_complete_checkpoint(tmp_path: Path):
    """If not, a run would resume from the wrong place."""
    assert folders.find_latest(tmp_path) is None
    _write(tmp_path, 10)
    final = _write(tmp_path, 20)
    assert folders.find_latest(tmp_path) == final
    assert (tmp_path / "latest").read_text() == "iter_0000020\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iter_0000010",
        "iter_0000020",
        "latest",
    ]


@pytest.mark.parametrize("harm", ["missing", "shorter", "no manifest", "bad manifest"])
def test_an_incomplete_checkpoint_is_skipped_with_the_reason(tmp_path: Path, caplog, harm: str):
    """If not, a run dies or, worse, starts from broken weights, after a fault."""
    good, bad = _write(tmp_path, 10), _write(tmp_path, 20)
    if harm == "missing":
        (bad / "data").unlink()
    elif harm == "shorter":
        (bad / "data").write_bytes(b"ten")
    elif harm == "no manifest":
        (bad / "manifest.json").unlink()
    else:
        (bad / "manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert folders.find_latest(tmp_path) == good
    named = "manifest.json" if "manifest" in harm else "data"
    assert "iter_0000020" in caplog.text
    assert named in caplog.text
    with pytest.raises(CheckpointError, match=named):
        manifest.check_sizes(bad)


def test_a_lost_latest_is_said_and_the_newest_taken(tmp_path: Path, caplog):
    """If not, deleting a small text file would start the run from scratch."""
    _write(tmp_path, 10)
    newest = _write(tmp_path, 20)
    (tmp_path / "latest").unlink()
    with caplog.at_level(logging.WARNING):
        assert folders.find_latest(tmp_path) == newest
    assert "latest" in caplog.text


def test_latest_can_point_back(tmp_path: Path):
    """Going back to an older checkpoint keeps it, and later folders do not count as newest."""
    first, _ = _write(tmp_path, 10), _write(tmp_path, 20)
    folders.set_latest(first)
    assert folders.find_latest(tmp_path) == first
    again = _write(tmp_path, 15)
    folders.prune(tmp_path, keep_last=2)
    assert folders.find_latest(tmp_path) == again
    assert (tmp_path / "iter_0000010").exists()
    assert (tmp_path / "iter_0000020").exists()
    newer = _write(tmp_path, 20, b"other tensors")
    assert (newer / "data").read_bytes() == b"other tensors"


def test_changed_content_is_found(tmp_path: Path):
    """If not, a flipped bit would train on in silence."""
    content = bytes(2**20)
    folder = _write(tmp_path, 10, content + b"tensors")
    record = manifest.check_sizes(folder)["data"]
    manifest.check_digest(folder, "data", record)
    (folder / "data").write_bytes(content + b"tensorz")
    with pytest.raises(CheckpointError, match=r"data is not what was written"):
        manifest.check_digest(folder, "data", record)


@pytest.mark.parametrize("keep_last", [0, 1, 2])
def test_keep_last(tmp_path: Path, keep_last: int):
    """If not, disks fill up, or the checkpoint that was to be kept is gone."""
    for iteration in (10, 20, 30):
        _write(tmp_path, iteration)
        folders.prune(tmp_path, keep_last)
    kept = sorted(path.name for path in tmp_path.glob("iter_*"))
    assert kept == [f"iter_00000{n}0" for n in (1, 2, 3)][-keep_last:]


def test_keep_every(tmp_path: Path):
    """If not, the history that was to be kept for good goes with the rest, or nothing ever goes."""
    for iteration in range(5, 50, 5):
        _write(tmp_path, iteration)
        folders.prune(tmp_path, keep_last=2, keep_every=20)
    kept = sorted(int(path.name[5:]) for path in tmp_path.glob("iter_*"))
    assert kept == [20, 40, 45]


def _is_killed_at(moment: str, after: int, root: Path) -> bool:
    """Save and prune in a child that dies at a call of `moment` that `after` others preceded."""
    child = os.fork()
    if child == 0:
        owner = {"rmtree": shutil, "fsync": os, "unlink": os}.get(moment, Path)
        original, calls = getattr(owner, moment), []

        def die(*args, **kwargs):
            calls.append(1)
            if len(calls) > after:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, moment, die)
        try:
            _write(root, 20)
            folders.prune(root, 1)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("is_replaced", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("moment", ["rename", "replace", "rmtree", "unlink", "fsync"])
def test_killed_while_saving_leaves_a_checkpoint_to_resume_from(
    tmp_path: Path, moment: str, is_replaced: bool
):
    """Killed (SIGKILL) at each call that changes the folder: the newest is whole throughout."""
    is_killed, after = True, 0
    while is_killed:
        root = tmp_path / str(after)
        for iteration in (10, 20) if is_replaced else (10,):
            _write(root, iteration)
        is_killed = _is_killed_at(moment, after, root)
        latest = folders.find_latest(root)
        assert latest is not None
        assert latest.name == "iter_0000020" or not is_replaced
        assert (root / "latest").read_text() == latest.name + "\n"
        for folder in root.glob("iter_*"):
            manifest.check_digest(folder, "data", manifest.check_sizes(folder)["data"])
        after += 1
        _write(root, 20)
        folders.prune(root, 1)
        assert sorted(path.name for path in root.iterdir()) == ["iter_0000020", "latest"]
    assert after > 1


def test_a_checkpoint_that_was_being_replaced_is_not_swept_away(tmp_path: Path):
    """Killed between the two renames that replace it, it has the name of what is to be deleted."""
    newest = _write(tmp_path, 20)
    newest.rename(tmp_path / ".old_iter_0000020")
    folders.begin(tmp_path, 30)
    assert folders.find_latest(tmp_path) == newest


class _Exploit:
    def __reduce__(self):
        return os.system, ("touch exploited",)


def test_an_index_that_would_run_code_is_refused(tmp_path: Path, monkeypatch):
    """If not, opening somebody's checkpoint could run their program."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(_Exploit()))
    with pytest.raises(CheckpointError, match=r"not safe to load.*system"):
        read_shapes(tmp_path)
    assert not (tmp_path / "exploited").exists()


def test_weights_of_a_damaged_checkpoint_are_not_read(tmp_path: Path):
    """If not, a converted model, or a run that starts from one, has a wrong weight in silence."""
    tensors = {"layer.weight": torch.arange(6.0).reshape(2, 3)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    folder = write_weights(tmp_path, shapes, tensors.__getitem__, TrainState(1), load_config())
    assert torch.equal(read_weights(folder)["layer.weight"], tensors["layer.weight"])
    (path,) = folder.glob("*.distcp")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name} is not what was written"):
        read_weights(folder)


def test_a_file_that_every_checkpoint_has_must_be_listed(tmp_path: Path):
    """If not, Megatron-Core takes something else in its place, or fails on one rank alone."""
    folder = _write(tmp_path, 10)
    with pytest.raises(
        CheckpointError, match=r"iter_0000010 is incomplete: common\.pt is not list"
    ):
        manifest.check_sizes(folder, required=("data", "common.pt"))


def test_a_format_of_the_future_is_named(tmp_path: Path, monkeypatch):
    """If not, what another release means by it is read as what this one does."""
    monkeypatch.setattr(manifest, "FORMAT_VERSION", 3)
    folder = _write(tmp_path, 10)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="checkpoint version 3, not .* version 2; use the"):
        manifest.read_manifest(folder)


def test_a_manifest_cannot_point_outside(tmp_path: Path):
    """If not, verifying a checkpoint could read any file."""
    folder = _write(tmp_path, 10)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"data"', '"../../data"').replace(": 2,", ": 1,", 1))
    with pytest.raises(CheckpointError, match="outside"):
        manifest.read_manifest(folder)
