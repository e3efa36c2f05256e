"""Damaged checkpoints are found, named and passed over; a save that fails costs nothing."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.storage import WriteResult

from megatron_dna.checkpoint import deferred, folders, writer
from megatron_dna.checkpoint.folders import find_latest, set_latest
from megatron_dna.checkpoint.manifest import CheckpointError, list_files, read_manifest
from megatron_dna.checkpoint.saving import Saver, save_checkpoint
from megatron_dna.checkpoint.sharded import find_verified, load_checkpoint
from megatron_dna.checkpoint.state import TrainState
from tests.dist.harness import run_ranks
from tests.dist.small_run import BF16, PLAIN, SmallRun
from tests.dist.whole_runs import ROOT


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


HARMS: dict[str, Callable[[Path], None]] = {
    "truncated": _cut,
    "emptied": lambda path: path.write_bytes(b""),
    "bit flipped": _flip,
    "removed": Path.unlink,
}


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _harm_each(root: str) -> list[tuple[str, str, str, str]]:
    """Save twice; for every file and harm: what is found then, and the warning."""
    run = SmallRun.start([])
    for iteration in (1, 2):
        run.train(iteration - 1, iteration)
        save_checkpoint(root, run.model, run.optimizer, TrainState(iteration), run.config)
    newest = find_latest(root)
    assert newest is not None
    kept = newest.with_name("kept")
    shutil.copytree(newest, kept)
    log = _Lines()
    logging.getLogger("megatron_dna").addHandler(log)
    outcomes = []
    for name in [*list_files(newest), "manifest.json"]:
        for harm, action in HARMS.items():
            action(newest / name)
            log.lines.clear()
            found = find_verified(root)
            assert found is not None
            load_checkpoint(found, run.model, run.optimizer)
            outcomes.append((name, harm, found.name, "\n".join(log.lines)))
            shutil.rmtree(newest)
            shutil.copytree(kept, newest)
    assert find_verified(root) == newest
    for folder in Path(root).glob("iter_*"):
        _flip(folder / "train_state.json")
    with pytest.raises(CheckpointError, match="is whole; move it away to start from the beginning"):
        find_verified(root)
    return outcomes


def test_every_file_damaged_in_every_way_is_found_and_named(tmp_path: Path):
    """If not, a run goes on from other weights than it had, or does not go on at all."""
    (outcomes,) = run_ranks(_harm_each, 1, str(tmp_path))
    names = {name for name, *_ in outcomes}
    assert {".metadata", "__0_0.distcp", "common.pt", "config.yaml", "manifest.json"} <= names
    assert len(outcomes) == 4 * len(names) >= 4 * 7
    for name, harm, found, warning in outcomes:
        assert found == "iter_0000001", (name, harm)
        assert "skipped: checkpoint" in warning, (name, harm)
        assert "iter_0000002" in warning, (name, harm)
        assert name in warning, (name, harm)


def test_a_damaged_latest_costs_nothing(tmp_path: Path):
    """If not, a few bytes that only say which is the newest decide whether there is a run."""
    for iteration in (1, 2):
        temporary = folders.begin(tmp_path, iteration)
        folders.publish(temporary, iteration, {}, {})
    for harm in HARMS.values():
        set_latest(tmp_path / "iter_0000002")
        harm(tmp_path / "latest")
        found = find_latest(tmp_path)
        assert found is not None
        assert found.name == "iter_0000002"


def test_any_bit_of_a_manifest_counts(tmp_path: Path):
    """If not, a changed iteration or step of Adam would be believed."""
    folder = folders.publish(folders.begin(tmp_path, 5), 5, {}, {"optimizer_step": 5})
    path = folder / "manifest.json"
    content = path.read_bytes()
    assert read_manifest(folder)["optimizer_step"] == 5
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            read_manifest(folder)


def _save(saver: Saver, run: SmallRun, state: TrainState, in_background: bool) -> None:
    saver.save(run.model, run.optimizer, state, in_background)
    saver.wait()


def _fail_at(moment: str, root: str, in_background: bool) -> str:
    """A second save that fails at some moment on one rank; the message, on every rank."""
    run = SmallRun.start([])
    state = TrainState(1)
    saver = Saver(Path(root), run.config)
    saver.save(run.model, run.optimizer, state, in_background=False)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "tensors" and run.place.rank == 1:
        os.fsync = full  # type: ignore[assignment]
    elif moment == "plain files":
        writer.add_plain_files.__globals__["folders"].write_text = full
    elif moment == "publishing":
        folders.publish = full  # type: ignore[assignment]
    state.iteration = 2
    with pytest.raises(CheckpointError) as error:
        _save(saver, run, state, in_background)
    assert not saver.is_busy
    saver.wait()  # nothing is left to wait for
    return str(error.value)


@pytest.mark.parametrize("in_background", [False, True], ids=["at once", "in background"])
@pytest.mark.parametrize("moment", ["tensors", "plain files", "publishing"])
def test_a_full_disk_during_a_save_loses_nothing(tmp_path: Path, moment: str, in_background: bool):
    """If not, a run loses its last good checkpoint with the one that did not fit."""
    messages = run_ranks(_fail_at, 2, moment, str(tmp_path), in_background)
    assert messages[0] == messages[1]
    assert "checkpoint of iteration 2 cannot be written" in messages[0]
    assert "No space left" in messages[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000001", "latest"]
    (found,) = run_ranks(_find, 1, str(tmp_path))
    assert found == "iter_0000001"


def _synced_before_the_name(root: str) -> tuple[set[str], set[str]]:
    """Names in a checkpoint, and those that were seen onto the disk before it got its own."""
    run = SmallRun.start([])
    synced: set[str] = set()
    before: set[str] = set()
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def note_rename(path: Path, target: Path) -> Path:
        before.update(synced)
        return rename(path, target)

    os.fsync, Path.rename = note_fsync, note_rename  # type: ignore[method-assign, assignment]
    folder = save_checkpoint(root, run.model, run.optimizer, TrainState(1), run.config)
    assert {folder.parent.name, ".tmp_latest"} <= synced - before
    return {*list_files(folder), "manifest.json", f".tmp_{folder.name}"}, before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")
def test_all_bytes_are_on_the_disk_before_a_checkpoint_has_its_name(tmp_path: Path):
    """If not, a machine that loses its power has a checkpoint of empty files, and no other."""
    ((files, synced),) = run_ranks(_synced_before_the_name, 1, str(tmp_path))
    assert files <= synced


def _find(root: str) -> str:
    found = find_verified(root)
    assert found is not None
    return found.name


def _save_where_little_fits(root: str, num_bytes: int) -> tuple[str, str]:
    """Two saves; before the second one files may not get larger than `num_bytes`."""
    run = SmallRun.start([])
    saver = Saver(Path(root), run.config)
    saver.save(run.model, run.optimizer, TrainState(1), in_background=False)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limit))
    try:
        with pytest.raises(CheckpointError) as error:
            _save(saver, run, TrainState(2), in_background=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return str(error.value), _find(root)


def test_a_write_that_the_system_cuts_short_loses_nothing(tmp_path: Path):
    """Not an error that a test made up: the kernel refuses to write on in the middle of a file."""
    ((message, found),) = run_ranks(_save_where_little_fits, 1, str(tmp_path), 20_000)
    assert "checkpoint of iteration 2 cannot be written" in message
    assert found == "iter_0000001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000001", "latest"]


def _save_until_full(saver: Saver, run: SmallRun) -> None:
    for iteration in range(2, 100):
        saver.save(run.model, run.optimizer, TrainState(iteration), in_background=True)


def _fill_disk(root: str) -> tuple[str, str]:
    run = SmallRun.start(["checkpoint.keep_last=0"])
    saver = Saver(Path(root), run.config)
    saver.save(run.model, run.optimizer, TrainState(1), in_background=False)
    with pytest.raises(CheckpointError) as error:
        _save_until_full(saver, run)
    newest = find_latest(root)
    assert newest is not None
    assert _find(root) == newest.name
    return str(error.value), newest.name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path):
    """A small disk of its own, filled by checkpoints until one does not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        ((message, newest),) = run_ranks(_fill_disk, 1, str(disk))
        failed = int(newest[5:]) + 1
        assert failed > 2
        assert f"checkpoint of iteration {failed} cannot be written" in message
        assert not list(disk.glob(".tmp_iter*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_killed_while_writing_in_the_background(tmp_path: Path):
    """If not, a kill during an asynchronous save costs more than that save."""
    program = (
        "import os, signal, sys, pathlib, torch\n"
        "import torch.distributed as dist\n"
        "from megatron_dna.checkpoint import deferred, saving\n"
        "from megatron_dna.checkpoint.state import TrainState\n"
        "from tests.dist.small_run import SmallRun\n"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "run = SmallRun.start([])\n"
        "saver = saving.Saver(pathlib.Path(sys.argv[1]), run.config)\n"
        "saver.save(run.model, run.optimizer, TrainState(1), in_background=False)\n"
        "original = deferred.DeferredWriter.write\n"
        "def write(self):\n"
        "    original(self)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "deferred.DeferredWriter.write = write\n"
        "saver.save(run.model, run.optimizer, TrainState(2), in_background=True)\n"
        "saver.wait()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], env=environment, capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert (tmp_path / ".tmp_iter_0000002" / "__0_0.distcp").exists()
    assert run_ranks(_find, 1, str(tmp_path)) == ["iter_0000001"]


def _change_while_writing(root: str, overrides: list[str]) -> bool:
    """Train on before a byte is written; whether the checkpoint has the weights of before."""
    run = SmallRun.start([*overrides, "checkpoint.keep_last=1", "checkpoint.keep_every=2"])
    run.train(0, 2)
    before = {name: p.detach().clone() for name, p in run.model.module.named_parameters()}
    trained, write = threading.Event(), deferred.DeferredWriter.write

    def write_late(writer: deferred.DeferredWriter) -> list[WriteResult]:
        assert trained.wait(60), "training did not go on"
        return write(writer)

    deferred.DeferredWriter.write = write_late  # type: ignore[method-assign]
    saver, state = Saver(Path(root), run.config), TrainState(2)
    saver.save(run.model, run.optimizer, state, in_background=True)
    assert saver.is_busy
    with_training = run.train(2, 4)
    state.iteration = 4
    trained.set()
    for _ in range(2):  # the tensors, then the rest
        while saver.is_busy:
            time.sleep(0.01)
        torch.distributed.barrier()
        saver.advance()
    assert find_verified(root) == Path(root) / "iter_0000002"
    saver.save(run.model, run.optimizer, state, in_background=True)
    saver.save(run.model, run.optimizer, TrainState(5), in_background=True)  # waits for the other
    saver.wait()
    assert find_verified(root) == Path(root) / "iter_0000005"
    assert (Path(root) / "iter_0000004").is_dir()
    assert load_checkpoint(f"{root}/iter_0000002", run.model, run.optimizer).iteration == 2
    after = dict(run.model.module.named_parameters())
    is_same = all(bool((after[name] == tensor).all()) for name, tensor in before.items())
    run.scheduler.step(-2)
    assert run.train(2, 4) == with_training  # optimizer's state included
    return is_same


@pytest.mark.parametrize("overrides", [[], [BF16, PLAIN]], ids=["fp32", "bf16 plain"])
def test_what_is_saved_in_the_background_is_of_the_moment_of_the_save(
    tmp_path: Path, overrides: list[str]
):
    """If not, a checkpoint is a mix of several steps: weights of one, moments of another."""
    assert run_ranks(_change_while_writing, 2, str(tmp_path), overrides) == [True, True]
