"""Joining shards when something is wrong: killed, a full disk, another process, many parts."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_dna.data import corpora, manifest, options
from megatron_dna.data.corpora import merge_corpus, preprocess_corpus, read_corpus
from megatron_dna.data.writer import IndexedWriter
from tests.unit.data_files import write_tokenizer
from tests.unit.genome_files import TOOL, child_environment, files

# A merge that is killed as the n-th call of a method begins.
KILLED = """
import os, signal, sys
from pathlib import Path
from megatron_dna.data.corpora import merge_corpus, read_corpus
from megatron_dna.data.writer import IndexedWriter

name, calls, corpus, out = sys.argv[1:]
owner = Path if name in ("replace", "unlink") else IndexedWriter
original, left = getattr(owner, name), [int(calls)]

def killed(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(owner, name, killed)
list(merge_corpus(read_corpus(Path(corpus), Path(out)), Path(out)))
"""


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("leave", 1),  # amid the first source
        ("leave", 2),
        ("prepare", 2),
        ("publish", 1),
        ("publish", 2),
        ("replace", 2),
        ("unlink", 9),  # amid the removal of the first source's parts
        ("unlink", 14),
        ("leave", 3),  # amid the second source
        ("publish", 3),
    ],
)
def test_a_killed_merge_is_gone_on_with(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, calls: int
) -> None:
    """The same commands, shards and then the merge, end in the same bytes and encode nothing."""
    out = tmp_path / "out"
    list(preprocess_corpus(read_corpus(corpus, tmp_path / "whole")))
    sources = read_corpus(corpus, out)
    for shard in ((1, 2), (2, 2)):
        list(preprocess_corpus(sources, shard))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, name, str(calls), corpus, out], env=child_environment()
    )
    assert done.returncode == -signal.SIGKILL
    made: list[Any] = []
    monkeypatch.setattr(corpora, "preprocess", made.append)
    for shard in ((1, 2), (2, 2)):
        list(preprocess_corpus(sources, shard))
    assert not made
    list(merge_corpus(sources, out))
    assert files(out) == files(tmp_path / "whole")


def big_corpus(folder: Path) -> Path:
    """Eight contigs of 100 kb, two bases a token: 800 kB of ids in two shards."""
    write_tokenizer(folder / "t.json")
    draw = random.Random(0)
    contigs = [f">{n}\n{''.join(draw.choices('ACGT', k=100_000))}\n" for n in range(8)]
    (folder / "x.fa").write_text("".join(contigs))
    content = {"tokenizer": "t.json", "sources": {"x": {"fasta": "x.fa"}}}
    (folder / "corpus.yaml").write_text(yaml.safe_dump(content))
    return folder / "corpus.yaml"


def test_a_full_disk_leaves_nothing_of_the_merge(tmp_path: Path) -> None:
    """The limit on file size stands for the disk's; the parts stay, to be joined elsewhere."""
    path, out = big_corpus(tmp_path), tmp_path / "out"
    for shard in ((1, 2), (2, 2)):
        list(preprocess_corpus(read_corpus(path, out), shard))
    before = files(out)
    command = f"ulimit -f 600; exec {sys.executable} {TOOL} --corpus {path} --output-dir {out}"
    done = subprocess.run(
        ["bash", "-c", f"{command} --merge"],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"cannot write {out}/x_train.bin.partial" in done.stderr
    assert "File too large" in done.stderr
    assert files(out) == before


def test_a_file_that_another_process_writes_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sources = read_corpus(corpus, out)
    list(preprocess_corpus(sources, (1, 1)))
    with IndexedWriter(out / "first_train", 512) as writer:
        writer.append(np.arange(50_000, dtype=np.int32) % 512)
        writer.sync()
        before = files(out)
        with pytest.raises(BlockingIOError, match=r"first_train\.bin\.partial"):
            list(merge_corpus(sources, out))
        assert files(out) == before
    list(merge_corpus(sources, out))


def test_a_part_whose_index_is_another_ones_is_refused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sources = read_corpus(corpus, out)
    for shard in ((1, 2), (2, 2)):
        list(preprocess_corpus(sources, shard))
    name = "first.shard-{}-of-2_train.idx"
    (out / name.format(1)).write_bytes((out / name.format(2)).read_bytes())
    with pytest.raises(ValueError, match=r"first\.shard-1-of-2_train\.bin is not what its \.idx"):
        list(merge_corpus(sources, out))
    assert not [path for path in out.iterdir() if path.name.startswith("first_train")]


def test_a_merge_looks_at_each_input_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure would read 300 genomes 64 times, and each of them for all of the others."""
    sources = read_corpus(corpus, tmp_path / "out")
    for shard in range(1, 8):
        list(preprocess_corpus(sources, (shard, 7)))
    calls: dict[str, list[Any]] = {"sha256_of": [], "_cost": []}
    for module, name in ((options, "sha256_of"), (corpora, "_cost")):
        original = getattr(module, name)

        def spy(value: Any, name: str = name, original: Any = original) -> Any:
            calls[name].append(value)
            return original(value)

        monkeypatch.setattr(module, name, spy)
    list(merge_corpus(sources, tmp_path / "out"))
    inputs = [path for source in sources for path in source.options.inputs]
    assert sorted(calls["sha256_of"]) == sorted(inputs)
    assert len(calls["_cost"]) == len(sources)


class Part(dict[str, Any]):
    """A manifest that can be watched."""


def test_manifests_are_joined_one_at_a_time() -> None:
    """Each has a row for every contig and haplotype: 64 of them would not fit."""
    watched: list[weakref.ref[Part]] = []

    def parts() -> Iterator[Part]:
        for number in range(5):
            counts = {"documents": 1, "bases": 10, "tokens": number + 1}
            row = {split: dict(counts) for split in ("train", "valid")}
            part = Part(
                totals=row,
                holdout=[],
                contigs=[{"name": "a", **row}],
                documents={"train": [number], "valid": []},
                haplotypes={"haplotypes": [{"sample": "s", **row}]},
            )
            watched.append(weakref.ref(part))
            assert not any(reference() for reference in watched[1:-2])
            yield part
            del part

    whole = manifest.join(parts())
    expected = {"documents": 5, "bases": 50, "tokens": 15, "bases_per_token": 3.3333}
    assert whole["totals"] == {"train": expected, "valid": expected}
    assert whole["contigs"] == [{"name": "a", "train": expected, "valid": expected}]
    assert whole["haplotypes"]["haplotypes"][0]["valid"] == expected
    assert whole["documents"]["train"] == [0, 1, 2, 3, 4]
