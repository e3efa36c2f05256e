"""Checkpoint folders on disk: complete or not there, and nothing unsafe is loaded."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from megatron_dna.checkpoint import folders, manifest
from megatron_dna.checkpoint.manifest import CheckpointError
from megatron_dna.checkpoint.metadata import read_shapes


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
    folder = _write(tmp_path, 10)
    record = manifest.check_sizes(folder)["data"]
    manifest.check_digest(folder, "data", record)
    (folder / "data").write_bytes(b"tensorz")
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


@pytest.mark.parametrize("moment", ["rename", "replace", "rmtree", "fsync"])
def test_killed_while_saving_leaves_a_checkpoint_to_resume_from(tmp_path: Path, moment: str):
    """Killed (SIGKILL) at each call that changes the folder: `latest` is complete throughout."""
    _write(tmp_path, 10)
    program = textwrap.dedent(
        """
        import os, pathlib, shutil, signal, sys
        from megatron_dna.checkpoint import folders, manifest
        moment, after, root = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
        owner = {"rmtree": shutil, "fsync": os}.get(moment, pathlib.Path)
        original, calls = getattr(owner, moment), []

        def die(*args, **kwargs):
            calls.append(1)
            if len(calls) > after:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, moment, die)
        temporary = folders.begin(root, 20)
        (temporary / "data").write_bytes(b"tensors")
        files = {"data": manifest.record_file(temporary / "data")}
        folders.publish(temporary, 20, files, {})
        folders.prune(root, 1)
        """
    )
    for after in range(20):
        outcome = subprocess.run(
            [sys.executable, "-c", program, moment, str(after), str(tmp_path)],
            cwd=Path(__file__).parents[2],
            check=False,
            env=os.environ | {"PYTHONPATH": "."},
        )
        latest = folders.find_latest(tmp_path)
        assert latest is not None
        manifest.check_digest(latest, "data", manifest.check_sizes(latest)["data"])
        for folder in tmp_path.glob("iter_*"):
            manifest.check_sizes(folder)
        if outcome.returncode == 0:
            break
        assert outcome.returncode == -signal.SIGKILL
    assert latest.name == "iter_0000020"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000020", "latest"]


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


def test_a_manifest_cannot_point_outside(tmp_path: Path):
    """If not, verifying a checkpoint could read any file."""
    folder = _write(tmp_path, 10)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"data"', '"../../data"').replace(": 2,", ": 1,", 1))
    with pytest.raises(CheckpointError, match="outside"):
        manifest.read_manifest(folder)
