"""Preprocessing when something is wrong: one clear error, and nothing that looks complete."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_dna.data import output
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from tests.unit.data_files import write_tokenizer
from tests.unit.genome_files import (
    EXAMPLE,
    TOOL,
    child_environment,
    files,
    run_tool,
)

BAD_FASTAS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no sequence in it"),
    "no sequence": (b">a\n", "contig 'a' has no sequence"),
    "truncated": (gzip.compress(b">a\nACGT\n")[:-3], "truncated"),
    "twice": (b">a\nACGT\n>a\nACGT\n", "contig 'a' comes twice"),
    "protein": (b">a\nMKVLEPS\n", "byte 'L' at position 4"),
    "gaps only": (b">a\nNNNNNNNNNNNN\n", "no document for train"),
}


@pytest.mark.parametrize("name", BAD_FASTAS)
def test_a_bad_fasta_file_is_one_clear_error(
    options: Callable[..., PreprocessOptions], fastas: tuple[Path, ...], tmp_path: Path, name: str
) -> None:
    """Nothing is left, and an older output stays whole, though the bad file comes last."""
    content, message = BAD_FASTAS[name]
    (tmp_path / "bad.fa").write_bytes(content)
    first = (fastas[1],) if name != "gaps only" else ()
    changes: dict[str, Any] = {"fasta": (*first, tmp_path / "bad.fa"), "holdout": ()}
    with pytest.raises(ValueError, match=message):
        preprocess(options(**changes))
    assert not files(options().output_prefix.parent)
    preprocess(options())
    before = files(options().output_prefix.parent)
    with pytest.raises(ValueError, match=message):
        preprocess(options(**changes))
    assert files(options().output_prefix.parent) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holdout": ("chr20",)}, "no contig 'chr20' in the FASTA files; they have a, b, tiny, c"),
        ({"holdout": ("b:1-10001",)}, "ends beyond contig 'b', which has 10000 bases"),
        ({"holdout": ("a", "b", "tiny", "c")}, "no document for train"),
        ({"min_length": 10**6}, r"no document for train: .* min_length \(1000000\)"),
        ({"min_length": -1}, r"min_length \(-1\) must be at least 0"),
        ({"workers": 0}, r"workers \(0\) must be at least 1"),
        ({"fasta": ()}, "fasta must name at least one file"),
        ({"fasta": (Path("none.fa"),)}, r"none\.fa is not there"),
        ({"tokenizer": Path("none.json")}, r"none\.json is not there"),
        ({"tokenizer": EXAMPLE}, "not a JSON file"),
    ],
)
def test_a_bad_option_is_one_clear_error(
    options: Callable[..., PreprocessOptions], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess(options(**changes))
    assert not files(options().output_prefix.parent)


def test_the_same_contig_in_two_files_is_an_error(
    options: Callable[..., PreprocessOptions], fastas: tuple[Path, ...]
) -> None:
    with pytest.raises(ValueError, match="contig 'tiny' is in"):
        preprocess(options(fasta=(*fastas, fastas[1])))


def test_no_other_file_is_overwritten(
    options: Callable[..., PreprocessOptions], tmp_path: Path, tokenizer_path: Path
) -> None:
    tokenizer = tmp_path / "t.json"
    tokenizer.write_bytes(tokenizer_path.read_bytes())
    with pytest.raises(ValueError, match="would overwrite input"):
        preprocess(options(tokenizer=tokenizer, output_prefix=tmp_path / "t"))
    with pytest.raises(ValueError, match="is no manifest of this tool"):
        preprocess(options(output_prefix=tmp_path / "t"))
    with pytest.raises(ValueError, match="is a folder"):
        preprocess(options(output_prefix=tmp_path))
    assert files(tmp_path) == {"t.json": tokenizer_path.read_bytes()}


@pytest.mark.parametrize(
    ("letter", "message"),
    [
        ("A", "has no token for A"),
        ("N", r"contig 'a', position 40001 \(1-based\): the tokenizer has no token for 'N'"),
    ],
)
def test_a_letter_without_token_is_an_error(
    options: Callable[..., PreprocessOptions],
    tmp_path: Path,
    tokenizer_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    letter: str,
    message: str,
) -> None:
    """A failure would write [UNK] in place of sequence. Finished documents do not stay either."""
    monkeypatch.setattr(output, "CHECKPOINT_BASES", 1)
    spec = json.loads(tokenizer_path.read_text())
    merges = [pair for pair in spec["model"]["merges"] if letter not in "".join(pair)]
    kept = [t for t in spec["model"]["vocab"] if t.startswith("[") or letter not in t]
    spec["model"] |= {"vocab": {token: i for i, token in enumerate(kept)}, "merges": merges}
    path = tmp_path / "t.json"
    path.write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=message):
        preprocess(options(tokenizer=path))
    assert not files(options().output_prefix.parent)


CRASH = """
import os, signal, sys
from pathlib import Path
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from megatron_dna.data.writer import IndexedWriter

name, calls, prefix, tokenizer, *fastas = sys.argv[1:]
owner = Path if name == "replace" else IndexedWriter
original, left = getattr(owner, name), [int(calls)]

def crash(*args):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)

setattr(owner, name, crash)
fasta = tuple(map(Path, fastas))
preprocess(PreprocessOptions(fasta, Path(tokenizer), Path(prefix), holdout=("b",)))
"""


@pytest.mark.parametrize(
    ("name", "calls"),
    [("end_document", 4), ("prepare", 2), ("publish", 1), ("publish", 2), ("replace", 1)],
)
def test_a_crash_leaves_no_mixed_output_and_a_rerun_works(
    options: Callable[..., PreprocessOptions], name: str, calls: int
) -> None:
    """A failure would leave files that look complete beside others they do not belong to."""
    given = options(holdout=("b",), reverse_complement=False)
    prefix, folder = given.output_prefix, given.output_prefix.parent
    preprocess(given)
    new = files(folder)
    preprocess(options())
    old = files(folder)
    arguments = [name, str(calls), str(prefix), str(given.tokenizer), *map(str, given.fasta)]
    done = subprocess.run([sys.executable, "-c", CRASH, *arguments], env=child_environment())
    assert done.returncode == -signal.SIGKILL
    left = {key: content for key, content in files(folder).items() if ".partial" not in key}
    assert left != new
    if "p.json" in left:
        assert left == old
    for split in ("train", "valid"):
        if f"p_{split}.idx" in left:
            own = [f"p_{split}{end}" for end in (".bin", ".idx", ".coordinates.npz")]
            assert [left[key] for key in own] in ([old[k] for k in own], [new[k] for k in own])
    preprocess(given)
    assert files(folder) == new


def test_the_tool_reports_an_error_in_one_line(tmp_path: Path, tokenizer_path: Path) -> None:
    done = run_tool(
        *("--fasta", EXAMPLE, "--tokenizer", tokenizer_path, "--output-prefix", tmp_path / "x"),
        *("--holdout", "chr20:1-5"),
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: region 'chr20:1-5': there is no contig 'chr20'")
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("kib", "what"), [(500, "cannot write the scratch file"), (6_000, "cannot write")]
)
def test_a_full_disk_is_one_clear_error(tmp_path: Path, kib: int, what: str) -> None:
    """The limit on file size stands for the disk's: for the scratch file (4 MB), then the .bin."""
    tokenizer = write_tokenizer(tmp_path / "t.json")  # two bases a token: 8 MB for both strands
    folder = tmp_path / "out"
    command = (
        f"ulimit -f {kib}; exec {sys.executable} {TOOL} --fasta {EXAMPLE} "
        f"--tokenizer {tokenizer} --output-prefix {folder}/x --reverse-complement"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert what in done.stderr
    assert "File too large" in done.stderr
    assert not files(folder)


TERMINATED = """
import os, runpy, signal, sys
from megatron_dna.data.writer import IndexedWriter

original = IndexedWriter.end_document

def end_document(self):
    original(self)
    os.kill(os.getpid(), signal.SIGTERM)

IndexedWriter.end_document = end_document
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_a_terminated_run_cleans_up(tmp_path: Path, tokenizer_path: Path) -> None:
    """SIGTERM is how a batch system ends a job."""
    arguments = ["--fasta", EXAMPLE, "--tokenizer", tokenizer_path]
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, TOOL, *arguments, "--output-prefix", tmp_path / "x"],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "error: terminated\n")
    assert not files(tmp_path)
