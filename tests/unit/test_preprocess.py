"""Genomes to .bin/.idx: what is in the files is what the manifest says, and nothing held out."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset
from tokenizers import Tokenizer

from megatron_dna.data.preprocess import PreprocessOptions, preprocess
from megatron_dna.tokenizer.train import train_tokenizer

EXAMPLE = Path("examples/data/human_chr20_1-4000000.fa.gz")
HOLDOUT = ("a:20001-30000", "b", "a:59000-60050")
COMPLEMENT = str.maketrans("ACGTN", "TGCAN")


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([EXAMPLE], 512, path, num_samples=300)
    return path


@pytest.fixture(scope="module")
def contigs() -> dict[str, str]:
    """Raw sequence by contig: real, with gaps, short runs of N, soft masking and IUPAC codes."""
    with pysam.FastaFile(str(EXAMPLE)) as example:
        real = example.fetch("20", 1_000_000, 1_100_000)
    first = list(real[:60_000] + "N" * 10 + real[60_000:70_000])
    first[5_000:5_012] = "N" * 12
    first[24_000:24_500] = "N" * 500  # in a held-out region
    first[29_995:30_020] = "N" * 25  # over the end of a held-out region
    first[40_000:40_009] = "N" * 9
    first[41_000:41_500] = "".join(first[41_000:41_500]).lower()
    first[42_000:42_004] = "RyKm"
    return {
        "a": "".join(first),
        "b": real[70_000:80_000],
        "tiny": real[80_000:80_030],
        "c": "N" * 30 + real[80_030:] + "N" * 11,
    }


@pytest.fixture(scope="module")
def fastas(tmp_path_factory: pytest.TempPathFactory, contigs: dict[str, str]) -> tuple[Path, ...]:
    """Two files: plain with CRLF and blank lines, and gzipped with long lines."""
    folder = tmp_path_factory.mktemp("fasta")
    records = {name: f">{name} real\r\n" for name in ("a", "b")}
    for name in records:
        lines = [contigs[name][i : i + 61] for i in range(0, len(contigs[name]), 61)]
        records[name] += "\r\n".join(lines) + "\r\n\r\n"
    (folder / "1.fa").write_text("".join(records.values()), newline="")
    rest = "".join(f">{name}\n{contigs[name]}\n" for name in ("tiny", "c"))
    (folder / "2.fa.gz").write_bytes(gzip.compress(rest.encode()))
    return folder / "1.fa", folder / "2.fa.gz"


@pytest.fixture
def options(
    tmp_path: Path, fastas: tuple[Path, ...], tokenizer_path: Path
) -> Callable[..., PreprocessOptions]:
    """Makes options; held-out regions and both strands unless told otherwise."""

    def make(**changes: Any) -> PreprocessOptions:
        defaults: dict[str, Any] = {
            "fasta": fastas,
            "tokenizer": tokenizer_path,
            "output_prefix": tmp_path / "out" / "p",
            "reverse_complement": True,
            "holdout": HOLDOUT,
        }
        return PreprocessOptions(**(defaults | changes))

    return make


def read(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(str(prefix))
    return [dataset[i].tolist() for i in range(len(dataset))]


def files(folder: Path) -> dict[str, bytes]:
    """Name and content of everything in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def clean(sequence: str) -> str:
    return "".join(base if base in "ACGT" else "N" for base in sequence.upper())


def reverse_complement(sequence: str) -> str:
    return sequence.translate(COMPLEMENT)[::-1]


def encode(tokenizer_path: Path, sequence: str) -> list[int]:
    """Ids by Hugging Face `tokenizers`."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    return list(tokenizer.encode(sequence, add_special_tokens=False).ids)


def check_documents(
    prefix: Path, manifest: dict[str, Any], contigs: dict[str, str], tokenizer_path: Path
) -> None:
    """Every document of the files is its interval of the FASTA, encoded by `tokenizers`."""
    for split, documents in manifest["documents"].items():
        found = read(Path(f"{prefix}_{split}"))
        assert len(found) == len(documents)
        for ids, document in zip(found, documents, strict=True):
            sequence = clean(contigs[document["contig"]])[document["start"] : document["end"]]
            if document["strand"] == "-":
                sequence = reverse_complement(sequence)
            assert ids == encode(tokenizer_path, sequence)
            assert len(ids) == document["tokens"]


def test_documents_are_their_intervals_as_tokenizers_encodes_them(
    options: Callable[..., PreprocessOptions], contigs: dict[str, str], tokenizer_path: Path
) -> None:
    """A failure would train on sequence that is not what the manifest says."""
    manifest = preprocess(options())
    prefix = options().output_prefix
    check_documents(prefix, manifest, contigs, tokenizer_path)
    rows = {
        split: [
            (row["contig"], row["start"], row["end"]) for row in documents if row["strand"] == "+"
        ]
        for split, documents in manifest["documents"].items()
    }
    assert rows == {
        "train": [
            ("a", 0, 5_000),
            ("a", 5_012, 20_000),
            ("a", 30_020, 58_999),
            ("a", 60_050, 70_010),
            ("tiny", 0, 30),
            ("c", 30, 20_000),
        ],
        "valid": [
            ("a", 20_000, 24_000),
            ("a", 24_500, 29_995),
            ("a", 58_999, 60_000),
            ("a", 60_010, 60_050),
            ("b", 0, 10_000),
        ],
    }
    assert all(
        [row["strand"] for row in documents] == ["+", "-"] * (len(documents) // 2)
        for documents in manifest["documents"].values()
    )
    assert json.loads(Path(f"{prefix}.json").read_text()) == manifest


def kmers(sequence: str, k: int = 64) -> set[str]:
    return {sequence[i : i + k] for i in range(len(sequence) - k + 1)}


def test_nothing_held_out_is_in_training(
    options: Callable[..., PreprocessOptions], contigs: dict[str, str], tokenizer_path: Path
) -> None:
    """A failure is a leak: the held-out loss would be of sequence that was trained on."""
    manifest = preprocess(options())
    held_out = {name: [False] * len(sequence) for name, sequence in contigs.items()}
    for name, start, end in [("a", 20_000, 30_000), ("b", 0, 10_000), ("a", 58_999, 60_050)]:
        held_out[name][start:end] = [True] * (end - start)
    for row in manifest["documents"]["train"]:
        assert not any(held_out[row["contig"]][row["start"] : row["end"]])
    for row in manifest["documents"]["valid"]:
        assert all(held_out[row["contig"]][row["start"] : row["end"]])
    assert manifest["holdout"] == [
        {"contig": "a", "start": 20_000, "end": 30_000},
        {"contig": "a", "start": 58_999, "end": 60_050},
        {"contig": "b", "start": 0, "end": 10_000},
    ]
    # Every 64-mer with at least one held-out base, unless the training reference has it too.
    reference, secret = set(), set()
    for name, sequence in contigs.items():
        cleaned = clean(sequence)
        for start in range(len(cleaned) - 63):
            kmer = cleaned[start : start + 64]
            (secret if any(held_out[name][start : start + 64]) else reference).add(kmer)
    reference |= {reverse_complement(kmer) for kmer in reference}
    secret |= {reverse_complement(kmer) for kmer in secret}
    secret -= reference
    assert len(secret) > 40_000
    spelling = {i: t for t, i in Tokenizer.from_file(str(tokenizer_path)).get_vocab().items()}
    for ids in read(Path(f"{options().output_prefix}_train")):
        assert not secret & kmers("".join(spelling[i] for i in ids))


def test_the_manifest_counts_and_names_everything(
    options: Callable[..., PreprocessOptions], contigs: dict[str, str], tokenizer_path: Path
) -> None:
    given = options(min_length=100, command=("preprocess", "x"))
    manifest = preprocess(given)
    assert manifest["command"] == ["preprocess", "x"]
    assert [row["sha256"] for row in manifest["inputs"]] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in given.fasta
    ]
    assert [row["bytes"] for row in manifest["inputs"]] == [p.stat().st_size for p in given.fasta]
    assert manifest["tokenizer"] == {
        "path": str(tokenizer_path),
        "sha256": hashlib.sha256(tokenizer_path.read_bytes()).hexdigest(),
        "vocab_size": 512,
    }
    assert manifest["dtype"] == "uint16"
    assert {"megatron_dna", "python", "numpy"} <= manifest["versions"].keys()
    rows = {row["name"]: row for row in manifest["contigs"]}
    assert {name: row["bases"] for name, row in rows.items()} == {
        name: len(sequence) for name, sequence in contigs.items()
    }
    assert rows["a"]["ambiguous_bases"] == 4
    assert rows["a"]["runs_of_n_dropped"] == 4
    assert rows["a"]["bases_in_runs_of_n_dropped"] == 12 + 500 + 25 + 10
    assert rows["c"]["bases_in_runs_of_n_dropped"] == 41
    assert rows["a"]["short_stretches_dropped"] == 1
    assert rows["a"]["bases_in_short_stretches_dropped"] == 40
    assert rows["tiny"]["bases_in_short_stretches_dropped"] == 30
    for split, documents in manifest["documents"].items():
        tokens = [len(ids) for ids in read(Path(f"{given.output_prefix}_{split}"))]
        assert [row["tokens"] for row in documents] == tokens
        for name, row in [*rows.items(), ("all", manifest["totals"])]:
            kept = [d for d in documents if name in (d["contig"], "all")]
            bases = sum(d["end"] - d["start"] for d in kept)
            count = sum(d["tokens"] for d in kept)
            assert row[split] == {
                "documents": len(kept),
                "bases": bases,
                "tokens": count,
                "bases_per_token": pytest.approx(bases / count, abs=1e-4) if kept else None,
            }
    for row in rows.values():  # every base is somewhere, on both strands
        documents = row["train"]["bases"] + row["valid"]["bases"]
        dropped = row["bases_in_runs_of_n_dropped"] + row["bases_in_short_stretches_dropped"]
        assert documents == 2 * (row["bases"] - dropped)


def test_the_number_of_workers_does_not_change_a_byte(
    options: Callable[..., PreprocessOptions], tmp_path: Path
) -> None:
    for workers in (1, 2, 5):
        preprocess(options(workers=workers, output_prefix=tmp_path / str(workers) / "p"))
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "5")
    assert len(files(tmp_path / "1")) == 5


def test_many_small_contigs_stay_in_order(
    options: Callable[..., PreprocessOptions], contigs: dict[str, str], tmp_path: Path
) -> None:
    """More documents than are read ahead at once."""
    names = [f"s{i}" for i in range(2_000)]
    small = {name: contigs["b"][i : i + 20 + i % 7] for i, name in enumerate(names)}
    path = tmp_path / "small.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in small.items()))
    given = options(fasta=(path,), holdout=("s7", "s1999"), workers=2, reverse_complement=False)
    manifest = preprocess(given)
    assert [row["contig"] for row in manifest["documents"]["valid"]] == ["s7", "s1999"]
    assert len(manifest["documents"]["train"]) == 1_998
    check_documents(given.output_prefix, manifest, small, given.tokenizer)


def test_without_holdout_there_is_no_valid_file(options: Callable[..., PreprocessOptions]) -> None:
    """An older held-out file must go: the new training file has its bases."""
    folder = options().output_prefix.parent
    preprocess(options())
    assert "p_valid.idx" in files(folder)
    manifest = preprocess(options(holdout=()))
    assert files(folder).keys() == {"p.json", "p_train.bin", "p_train.idx"}
    assert manifest["documents"]["valid"] == []
    assert manifest["totals"]["valid"]["documents"] == 0
    assert manifest["totals"]["train"]["bases"] == 2 * (100_010 + 41 - 12 - 500 - 25 - 10 - 41)


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
    assert not options().output_prefix.parent.exists()
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
    assert not options().output_prefix.parent.exists()


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
    letter: str,
    message: str,
) -> None:
    """A failure would write [UNK] in place of sequence."""
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
from megatron_dna.data.preprocess import PreprocessOptions, preprocess
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


def child_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path.cwd())}


@pytest.mark.parametrize(
    ("name", "calls"),
    [("add_document", 4), ("prepare", 2), ("publish", 1), ("publish", 2), ("replace", 1)],
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
            pair = (f"p_{split}.bin", f"p_{split}.idx")
            assert [left[key] for key in pair] in ([old[k] for k in pair], [new[k] for k in pair])
    preprocess(given)
    assert files(folder) == new


def run_tool(*arguments: str | Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/preprocess_genome.py", *map(str, arguments)]
    return subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, check=False, **changes
    )


def test_the_tool_on_the_example_genome(tmp_path: Path, tokenizer_path: Path) -> None:
    """The command of the documentation, on real sequence, from the shell."""
    prefix = tmp_path / "new" / "human"
    done = run_tool(
        *("--fasta", EXAMPLE, "--tokenizer", tokenizer_path, "--output-prefix", prefix),
        *("--reverse-complement", "--holdout", "20:3000001-4000000", "--workers", "2"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 documents, 5,880,000 bases" in done.stdout
    assert "60,000 bases in runs of N" in done.stdout
    assert f"'data.train=[{{prefix: {prefix}_train}}]'" in done.stdout.splitlines()[-1]
    manifest = json.loads(Path(f"{prefix}.json").read_text())
    assert "--holdout" in manifest["command"]
    with pysam.FastaFile(str(EXAMPLE)) as example:
        held_out = example.fetch("20", 3_000_000, 4_000_000)
        train = example.fetch("20", 60_000, 3_000_000)
    forward, reverse = read(Path(f"{prefix}_valid"))
    assert forward == encode(tokenizer_path, held_out)
    assert reverse == encode(tokenizer_path, reverse_complement(held_out))
    lengths = np.zeros(512, np.int64)
    spelling = {i: t for t, i in Tokenizer.from_file(str(tokenizer_path)).get_vocab().items()}
    for i, token in spelling.items():
        lengths[i] = len(token)
    for ids, sequence in zip(
        read(Path(f"{prefix}_train")), (train, reverse_complement(train)), strict=True
    ):
        assert "".join(spelling[i] for i in ids) == sequence
        assert lengths[ids].sum() == 2_940_000


def test_the_tool_reports_an_error_in_one_line(tmp_path: Path, tokenizer_path: Path) -> None:
    done = run_tool(
        *("--fasta", EXAMPLE, "--tokenizer", tokenizer_path, "--output-prefix", tmp_path / "x"),
        *("--holdout", "chr20:1-5"),
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("preprocess_genome: region 'chr20:1-5': there is no contig 'chr20'")
    assert not files(tmp_path)


def test_a_full_disk_is_one_clear_error(tmp_path: Path, tokenizer_path: Path) -> None:
    """The limit on file size stands for the disk's."""
    command = (
        f"ulimit -f 500; exec {sys.executable} tools/preprocess_genome.py --fasta {EXAMPLE} "
        f"--tokenizer {tokenizer_path} --output-prefix {tmp_path}/x"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert not files(tmp_path)


TERMINATED = """
import os, runpy, signal, sys
from megatron_dna.data.writer import IndexedWriter

original = IndexedWriter.add_document

def add_document(self, ids):
    original(self, ids)
    os.kill(os.getpid(), signal.SIGTERM)

IndexedWriter.add_document = add_document
runpy.run_path("tools/preprocess_genome.py", run_name="__main__")
"""


def test_a_terminated_run_cleans_up(tmp_path: Path, tokenizer_path: Path) -> None:
    """SIGTERM is how a batch system ends a job."""
    arguments = ["--fasta", EXAMPLE, "--tokenizer", tokenizer_path]
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, *arguments, "--output-prefix", tmp_path / "x"],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "preprocess_genome: terminated\n")
    assert not files(tmp_path)
