"""A killed run goes on where it stopped, and its files are those of a run that was not killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_dna.data import output
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from tests.unit.genome_files import KILLED, child_environment, files

# Slow enough to be watched.
SLOW = f"""{KILLED}
import sys, time
from pathlib import Path
from megatron_dna.data import encode
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess

pause, prefix, tokenizer, *fastas = sys.argv[1:]
original = encode._encode

def slow(*args):
    time.sleep(float(pause))
    return original(*args)

encode._encode = slow
fasta = tuple(map(Path, fastas))
print("ready", flush=True)
preprocess(PreprocessOptions(
    fasta, Path(tokenizer), Path(prefix), reverse_complement=True, holdout=("b",), workers=2
))
"""


def start(
    given: PreprocessOptions, pause: float, kill: tuple[int, float] = (-1, 0.0)
) -> subprocess.Popen[str]:
    """Preprocess in a process of its own, which is killed as `KILLED` says."""
    arguments = [str(pause), str(given.output_prefix), str(given.tokenizer), *map(str, given.fasta)]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        env=child_environment() | {"KILL_LINE": str(kill[0]), "KILL_DELAY": str(kill[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.fixture
def small(
    options: Callable[..., PreprocessOptions], contigs: dict[str, str], tmp_path: Path
) -> PreprocessOptions:
    """Options for 40 contigs, of which `b` is held out."""
    path = tmp_path / "small.fa"
    records = [f">s{i}\n{contigs['a'][1_500 * i : 1_500 * (i + 1)]}\n" for i in range(39)]
    path.write_text("".join([*records[:20], f">b\n{contigs['b']}\n", *records[20:]]))
    return options(fasta=(path,), holdout=("b",), workers=2)


def test_a_run_killed_at_any_moment_ends_in_the_same_bytes(small: PreprocessOptions) -> None:
    """20 kills at random moments, over several runs; a failure would lose or repeat sequence."""
    preprocess(small)
    folder = small.output_prefix.parent
    expected = files(folder)
    rng = random.Random(0)
    kills, resumed = 0, 0
    while kills < 20:
        for path in folder.iterdir():
            path.unlink()
        for _ in range(4):
            journal = folder / "p.journal.partial"
            resumed += journal.exists() and len(journal.read_text().splitlines()) > 1
            moment = rng.choice([0, *[rng.randrange(1, 45)] * 3]), rng.uniform(0, 0.02)
            child = start(small, pause=0.001, kill=moment)
            child.communicate()
            kills += child.returncode == -signal.SIGKILL
            found = files(folder)
            if "p.json" in found:
                assert {name: found[name] for name in expected} == expected
                break
            for split in ("train", "valid"):  # nothing looks complete that is not
                if f"p_{split}.idx" in found:
                    for name in (f"p_{split}.idx", f"p_{split}.bin"):
                        assert found[name] == expected[name]
        preprocess(small)
        assert files(folder) == expected
    assert resumed >= 5


@pytest.mark.parametrize(
    "damage", ["shorter", "byte", "journal", "number", "no valid", "other options"]
)
def test_what_cannot_be_trusted_is_encoded_again(
    small: PreprocessOptions, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """A kill and a power cut may leave less than was written."""
    preprocess(small)
    folder = small.output_prefix.parent
    expected = files(folder)
    monkeypatch.setattr(output, "CHECKPOINT_BASES", 20_000)
    child = start(small, pause=0.004)
    journal, train = folder / "p.journal.partial", folder / "p_train.bin.partial"
    while not journal.exists() or len(journal.read_text().splitlines()) < 6:
        time.sleep(0.002)
    child.kill()
    child.wait()
    if damage == "shorter":
        train.write_bytes(train.read_bytes()[:2_000])
    elif damage == "byte":
        content = bytearray(train.read_bytes())
        content[1_000] ^= 1
        train.write_bytes(content)
    elif damage == "journal":
        journal.write_bytes(journal.read_bytes()[:-5])
    elif damage == "number":  # of tokens of a document, which the .idx takes from here
        content = journal.read_bytes()
        number = content.index(b'["train", ') + len(b'["train", ')
        digit = b"1" if content[number : number + 1] != b"1" else b"2"
        journal.write_bytes(content[:number] + digit + content[number + 1 :])
    elif damage == "no valid":
        (folder / "p_valid.bin.partial").unlink()
    else:
        journal.write_bytes(journal.read_bytes().replace(b'"fingerprint": "', b'"fingerprint": "0'))
    preprocess(small)
    assert files(folder) == expected


def test_finished_documents_are_not_encoded_again(
    small: PreprocessOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure would make the journal useless, from the first or from the second stop on."""
    monkeypatch.setattr(output, "CHECKPOINT_BASES", 1_000)
    folder = small.output_prefix.parent
    added: list[int] = []
    stops = [(30, KeyboardInterrupt), (60, SystemExit)]  # as SIGTERM ends the tool
    original = output.Output.append

    def append(self: output.Output, split: Any, ids: Any) -> None:
        added.append(len(self.finished))
        if stops and len(self.finished) == stops[0][0]:
            raise stops[0][1]
        original(self, split, ids)

    monkeypatch.setattr(output.Output, "append", append)
    for first in (0, 30):
        added.clear()
        with pytest.raises(stops[0][1]):
            preprocess(small)
        assert (min(added), max(added)) == (first, stops.pop(0)[0])
        left = files(folder)
        assert left.keys() == {"p.journal.partial", "p_train.bin.partial", "p_valid.bin.partial"}
        (folder / "p.journal.partial").write_bytes(left["p.journal.partial"] + b"a line that is cu")
    added.clear()
    preprocess(small)
    assert min(added) == 60
    resumed = files(folder)
    preprocess(small)
    assert files(folder) == resumed


@pytest.mark.parametrize("what", ["options", "tokenizer", "input"])
def test_a_run_of_something_else_begins_anew(
    small: PreprocessOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A failure would mix the tokens of two runs in files that look complete."""
    monkeypatch.setattr(output, "CHECKPOINT_BASES", 1)
    original = output.Output.append
    added: list[int] = []
    stops = [5]

    def append(self: output.Output, split: Any, ids: Any) -> None:
        added.append(len(self.finished))
        if added[-1] in stops:
            raise KeyboardInterrupt
        original(self, split, ids)

    monkeypatch.setattr(output.Output, "append", append)
    with pytest.raises(KeyboardInterrupt):
        preprocess(small)
    write_kmer_tokenizer(3, tmp_path / "k.json")
    changed = {
        "options": replace(small, reverse_complement=False),
        "tokenizer": replace(small, tokenizer=tmp_path / "k.json"),
        "input": small,
    }[what]
    if what == "input":
        with small.fasta[0].open("a") as stream:
            stream.write(">z\nACGT\n")
    stops.clear()
    added.clear()
    preprocess(changed)
    assert min(added) == 0


def test_two_runs_of_one_prefix_do_not_mix(small: PreprocessOptions) -> None:
    child = start(small, pause=0.05)
    folder = small.output_prefix.parent
    while not (folder / "p_train.bin.partial").exists():
        time.sleep(0.002)
    with pytest.raises(BlockingIOError, match="another process is writing"):
        preprocess(small)
    assert (folder / "p_train.bin.partial").exists()
    child.send_signal(signal.SIGKILL)
    child.wait()
