"""What is on the disk when the power goes: content before names, and names in their order.

Kills cannot show it, since what a killed process has written stays. So a library before the C
library notes what is synced, renamed and removed, by C++ and by Python.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from tests.unit.genome_files import child_environment, files

WATCHER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[4096];

static void find_path(int descriptor) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  path[length < 0 ? 0 : length] = 0;
}

static void note(const char* what, const char* path) {
  FILE* log = fopen(getenv("WATCHER_LOG"), "a");
  const char* name = strrchr(path, '/');
  fprintf(log, "%s %s\n", what, name ? name + 1 : path);
  fclose(log);
}

int fsync(int descriptor) {
  static int (*real)(int);
  if (!real) real = dlsym(RTLD_NEXT, "fsync");
  find_path(descriptor);
  note("sync", path);
  if (strstr(path, getenv("WATCHER_BAD"))) {
    errno = EIO;
    return -1;
  }
  return real(descriptor);
}

static int (*real_rename)(const char*, const char*);

int rename(const char* from, const char* to) {
  if (!real_rename) real_rename = dlsym(RTLD_NEXT, "rename");
  note("name", to);
  return real_rename(from, to);
}

// Before the lock is taken, the file's owner gives it its name, and another one begins anew.
int flock(int descriptor, int operation) {
  static int (*real)(int, int);
  if (!real) real = dlsym(RTLD_NEXT, "flock");
  find_path(descriptor);
  if (strstr(path, getenv("WATCHER_STOLEN"))) {
    char named[4096];
    strcpy(named, path);
    *strstr(named, ".partial") = 0;
    if (!real_rename) real_rename = dlsym(RTLD_NEXT, "rename");
    real_rename(path, named);
    close(open(path, O_WRONLY | O_CREAT, 0666));
  }
  return real(descriptor, operation);
}

int unlink(const char* path) {
  static int (*real)(const char*);
  if (!real) real = dlsym(RTLD_NEXT, "unlink");
  note("remove", path);
  return real(path);
}
"""

PROGRAM = """
import sys
from pathlib import Path
from megatron_dna.data import output
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess

output.CHECKPOINT_BASES = 1
prefix, tokenizer, *fastas = map(Path, sys.argv[1:])
try:
    preprocess(PreprocessOptions(tuple(fastas), tokenizer, prefix, holdout=("b",)))
except OSError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler (apt-get install gcc)")
    folder = tmp_path_factory.mktemp("watcher")
    (folder / "watcher.c").write_text(WATCHER)
    library = folder / "watcher.so"
    command = ["cc", "-shared", "-fPIC", "-o", library, folder / "watcher.c", "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def watch(
    watcher: Path, options: Callable[..., PreprocessOptions], tmp_path: Path
) -> Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]:
    """Preprocesses over older output; returns the process and what it did, line by line."""
    given = options(holdout=("b",))
    preprocess(options(reverse_complement=False))

    def run(
        bad: str = "/none/", stolen: str = "/none/"
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        environment = child_environment()
        preloaded = [environment.get("LD_PRELOAD", ""), str(watcher)]
        environment |= {
            "LD_PRELOAD": " ".join(filter(None, preloaded)),
            "WATCHER_LOG": str(tmp_path / "log"),
            "WATCHER_BAD": bad,
            "WATCHER_STOLEN": stolen,
        }
        arguments = [given.output_prefix, given.tokenizer, *given.fasta]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        log = tmp_path / "log"
        return done, log.read_text().splitlines() if log.exists() else []

    return run


def test_content_is_on_the_disk_before_it_is_named_or_listed(
    watch: Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]],
) -> None:
    """A failure could leave, after a power cut, files that look complete or finished and are not.

    The journal has only tokens that are safe. No name is given before all content is; then an
    .idx is never beside a .bin that it does not describe, and the manifest comes last.
    """
    done, log = watch()
    assert done.returncode == 0, done.stderr
    journal = [i for i, line in enumerate(log) if line == "sync p.journal.partial"]
    assert len(journal) > 5
    for start, end in zip([0, *journal], journal, strict=False):
        assert {"sync p_train.bin.partial", "sync p_valid.bin.partial"} <= set(log[start:end])
    content = log.index("remove p.journal.partial")
    for split in ("p_train", "p_valid"):
        for end in (".bin", ".idx", ".coordinates.npz"):
            assert f"sync {split}{end}.partial" in log[journal[-1] : content]
    last = log.index("name p.json")
    assert log[content - 1 : last + 1] == [
        "sync p.json.partial",
        "remove p.journal.partial",
        "remove p.json",
        "remove p_train.idx",
        "remove p_valid.idx",
        *(
            line
            for split in ("p_train", "p_valid")
            for line in (
                f"name {split}.coordinates.npz",
                f"remove {split}.idx",
                "sync out",
                f"name {split}.bin",
                "sync out",
                f"name {split}.idx",
                "sync out",
            )
        ),
        "name p.json",
    ]
    assert not [line for line in log[:content] + log[last + 1 :] if line.startswith("name")]


@pytest.mark.parametrize(
    ("name", "has_journal"),
    [("p_valid.bin.partial", False), ("p_train.idx.partial", True), ("p.json.partial", True)],
)
def test_a_disk_that_fails_to_sync_is_an_error(
    watch: Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]],
    options: Callable[..., PreprocessOptions],
    name: str,
    has_journal: bool,
) -> None:
    """Some file systems say only then that they are full.

    The older output must stay, and what the journal has, to go on with.
    """
    folder = options().output_prefix.parent
    before = files(folder)
    done, log = watch(bad=name)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Input/output error" in done.stderr
    assert not [line for line in log if line.startswith("name")]
    assert {key: content for key, content in files(folder).items() if key in before} == before
    left = {"p.journal.partial", "p_train.bin.partial", "p_valid.bin.partial"}
    assert files(folder).keys() - before.keys() == (left if has_journal else set())


def test_a_file_that_was_named_before_its_lock_was_taken_is_left_alone(
    watch: Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]],
    options: Callable[..., PreprocessOptions],
) -> None:
    """A failure would empty what another process has just made."""
    folder = options().output_prefix.parent
    (folder / "p_train.bin.partial").write_bytes(b"theirs")
    done, _ = watch(stolen="p_train.bin.partial")
    assert done.returncode == 1
    assert "another process is writing" in done.stderr
    assert (folder / "p_train.bin").read_bytes() == b"theirs"
    assert (folder / "p_train.bin.partial").exists()
