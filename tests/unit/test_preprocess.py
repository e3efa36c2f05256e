"""Genomes to .bin/.idx: what is in the files is what the manifest says, and nothing held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pysam
import pytest
from tokenizers import Tokenizer

from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from tests.unit.genome_files import (
    EXAMPLE,
    clean,
    encode,
    files,
    read,
    reverse_complement,
    run_tool,
)


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


@pytest.mark.parametrize("how", ["regions", "bed", "deduplicated"])
def test_nothing_held_out_is_in_training(
    options: Callable[..., PreprocessOptions],
    contigs: dict[str, str],
    tokenizer_path: Path,
    tmp_path: Path,
    how: str,
) -> None:
    """A failure is a leak: the held-out loss would be of sequence that was trained on."""
    bed = tmp_path / "held.bed"
    bed.write_text("a\t20000\t30000\nb\t0\t10000\na\t58999\t60050\n")
    changes: dict[str, Any] = {"bed": {"holdout": (str(bed),)}}.get(how, {})
    if how == "deduplicated":
        changes["drop_duplicate_windows"] = 64
    manifest = preprocess(options(**changes))
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
    assert len(files(tmp_path / "1")) == 7


def test_many_small_contigs_stay_in_order(
    options: Callable[..., PreprocessOptions], contigs: dict[str, str], tmp_path: Path
) -> None:
    """More documents than are read ahead at once."""
    names = [f"s{i}" for i in range(10_000)]
    small = {name: contigs["b"][i % 9_000 : i % 9_000 + 20 + i % 7] for i, name in enumerate(names)}
    path = tmp_path / "small.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in small.items()))
    given = options(fasta=(path,), holdout=("s7", "s9999"), workers=2, reverse_complement=False)
    manifest = preprocess(given)
    assert [row["contig"] for row in manifest["documents"]["valid"]] == ["s7", "s9999"]
    assert len(manifest["documents"]["train"]) == 9_998
    check_documents(given.output_prefix, manifest, small, given.tokenizer)


def test_without_holdout_there_is_no_valid_file(options: Callable[..., PreprocessOptions]) -> None:
    """An older held-out file must go: the new training file has its bases."""
    folder = options().output_prefix.parent
    preprocess(options())
    assert "p_valid.idx" in files(folder)
    manifest = preprocess(options(holdout=()))
    assert files(folder).keys() == {
        "p.json",
        "p_train.bin",
        "p_train.idx",
        "p_train.coordinates.npz",
    }
    assert manifest["documents"]["valid"] == []
    assert manifest["totals"]["valid"]["documents"] == 0
    assert manifest["totals"]["train"]["bases"] == 2 * (100_010 + 41 - 12 - 500 - 25 - 10 - 41)


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
    spelling = {i: t for t, i in Tokenizer.from_file(str(tokenizer_path)).get_vocab().items()}
    for ids, sequence in zip(
        read(Path(f"{prefix}_train")), (train, reverse_complement(train)), strict=True
    ):
        assert "".join(spelling[i] for i in ids) == sequence
