"""Training a tokenizer: the file is GENA's in structure, the same for a seed, blind to held-out."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from megatron_dna.tokenizer import train
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.train import train_tokenizer

ROOT = Path(__file__).parents[2]
EXAMPLE_FASTA = ROOT / "examples/data/human_chr20_1-4000000.fa.gz"
GENA = ROOT.parent / "shared/data/tokenizers/gena_t2t_1000h_multi_32k.json"
SPECIALS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "-"]

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def write_fasta(path: Path, **contigs: str) -> Path:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()))
    return path


def random_dna(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=length))


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "tokenizer.json"
    sample = train_tokenizer([EXAMPLE_FASTA], 512, path, sample_length=2_000, num_samples=101)
    assert sample.num_sequences == 101
    assert sample.num_reverse_complement == 50
    assert 190_000 < sample.num_bases <= 202_000
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sequences that training is given."""
    sequences: list[str] = []

    def spy(given: list[str], vocab_size: int) -> Tokenizer:
        sequences.extend(given)
        return real(given, vocab_size)

    real = train._train
    monkeypatch.setattr(train, "_train", spy)
    return sequences


def test_structure_is_genas(tokenizer_path: Path) -> None:
    """Code that knows GENA's tokenizer finds the same ids and the same rules."""
    spec = json.loads(tokenizer_path.read_text())
    vocab = spec["model"].pop("vocab")
    merges = spec["model"].pop("merges")
    assert list(vocab)[:11] == [*SPECIALS, "A", "C", "G", "N", "T"]
    assert sorted(vocab.values()) == list(range(512))
    assert len(merges) == 512 - 11
    assert max(map(len, vocab)) <= train.MAX_TOKEN_LENGTH
    if not GENA.exists():
        pytest.skip("GENA's tokenizer is not in ../shared/data/tokenizers")
    gena = json.loads(GENA.read_text())
    model = gena.pop("model")
    assert (
        spec["model"].items() >= {k: model[k] for k in model.keys() - {"vocab", "merges"}}.items()
    )
    del spec["model"]
    assert spec == gena


def test_loads_in_transformers(tokenizer_path: Path) -> None:
    """What is trained here is used from Hugging Face, with [CLS] and [SEP] around."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_path),
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )
    ours = DnaTokenizer.from_file(tokenizer_path)
    sequence = random_dna(500) + "N" * 20 + random_dna(300, seed=1)
    assert tokenizer(sequence)["input_ids"] == [1, *ours.encode(sequence), 2]
    assert tokenizer.decode(tokenizer(sequence)["input_ids"], skip_special_tokens=True) == (
        ours.decode(ours.encode(sequence))
    )
    assert len(tokenizer) == ours.vocab_size == 512
    assert tokenizer.pad_token_id == ours.pad_id
    assert tokenizer.mask_token_id == ours.mask_id


def test_same_seed_same_bytes(tokenizer_path: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.json" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        train_tokenizer([EXAMPLE_FASTA], 512, path, sample_length=2_000, num_samples=101, seed=seed)
    assert paths[0].read_bytes() == tokenizer_path.read_bytes()
    assert paths[1].read_bytes() != tokenizer_path.read_bytes()


def test_windows_cover_all_when_enough_are_drawn(tmp_path: Path, seen: list[str]) -> None:
    """Half of the windows, as reverse complement, and together every base once."""
    first, second = random_dna(4_321), random_dna(777, seed=1)
    contigs = {"1": first + "n" * 10 + second, "2": "ACGTRYNNNNAC" * 3}
    fasta = write_fasta(tmp_path / "g.fa", **contigs)
    sample = train_tokenizer([fasta], 30, tmp_path / "t.json", sample_length=500)
    forward = second_strand = ""
    for sequence in seen:
        assert len(sequence) <= 500
        is_forward = any(sequence in stretch for stretch in (first, second))
        forward += sequence if is_forward else sequence.translate(COMPLEMENT)[::-1]
        second_strand += "" if is_forward else sequence
    assert forward.startswith(first + second)
    assert sample.num_sequences == len(seen) == 9 + 2 + 1
    assert sample.num_reverse_complement == 6
    assert sample.num_bases == len(forward) == 4_321 + 777 + 36
    assert second_strand


def test_holdout_is_never_seen(tmp_path: Path, seen: list[str]) -> None:
    """A tokenizer that knows held-out sequence would flatter every score on it."""
    left, held_out, right = random_dna(3_000), random_dna(2_000, seed=1), random_dna(999, seed=2)
    fasta = write_fasta(tmp_path / "g.fa", a=left + held_out + right, b=held_out)
    train_tokenizer([fasta], 30, tmp_path / "t.json", holdout=["a:3001-5000", "b"])
    forbidden = held_out + held_out.translate(COMPLEMENT)[::-1]
    known = left + left.translate(COMPLEMENT)[::-1] + right + right.translate(COMPLEMENT)[::-1]
    assert sum(map(len, seen)) == len(left + right)
    for sequence in seen:
        assert sequence in known
        assert sequence not in forbidden


def test_progress_bars_are_for_terminals_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fasta = write_fasta(tmp_path / "g.fa", a=random_dna(1_000))
    train_tokenizer([fasta], 30, tmp_path / "t.json")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 10}, r"vocab_size \(10\) must be at least 11 .*raise --vocab-size"),
        ({"vocab_size": 5_000}, r"vocab_size \(5000\): only \d+ tokens occur at least 2 times"),
        ({"sample_length": 1}, r"sample_length \(1\) must be at least 2"),
        ({"num_samples": 0}, r"num_samples \(0\) must be at least 1"),
        ({"holdout": ["b"]}, "no contig 'b'"),
        ({"holdout": ["a:5-4"]}, "must be CONTIG:START-END"),
        ({"holdout": ["a"]}, "all is held out"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict, message: str) -> None:
    """One clear error, and no file."""
    fasta = write_fasta(tmp_path / "g.fa", a=random_dna(1_000))
    output = tmp_path / "t.json"
    with pytest.raises(ValueError, match=message):
        train_tokenizer(**{"fasta": [fasta], "vocab_size": 30, "output": output, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["g.fa"]


def test_bad_files(tmp_path: Path) -> None:
    """What is wrong with a FASTA file is said of it here as in preprocessing."""
    output = tmp_path / "t.json"
    empty = write_fasta(tmp_path / "empty.fa")
    good = write_fasta(tmp_path / "good.fa", a=random_dna(1_000))
    cut = tmp_path / "cut.fa.gz"
    cut.write_bytes(gzip.compress(good.read_bytes())[:-100])
    for files, message in (
        ([empty], "no sequence"),
        ([good, good], "unique"),
        ([cut], "truncated"),
        ([tmp_path / "none.fa"], "is not there"),
    ):
        with pytest.raises(ValueError, match=message):
            train_tokenizer(files, 30, output)
        assert not output.exists()
    with pytest.raises(ValueError, match="must be a file in a folder"):
        train_tokenizer([good], 30, good / "t.json")


def test_an_old_file_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the old tokenizer as it was, and nothing beside it."""
    fasta = write_fasta(tmp_path / "g.fa", a=random_dna(1_000))
    output = tmp_path / "t.json"
    output.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        train_tokenizer([fasta], 30, output)
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.fa", "t.json"]


def test_command_line(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "g.fa", a=random_dna(3_000), b=random_dna(500))
    command = [sys.executable, str(ROOT / "tools/train_tokenizer.py"), "--fasta", str(fasta)]
    output = tmp_path / "new folder" / "t.json"
    command += ["--output", str(output), "--holdout", "b", "--vocab-size"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    done = subprocess.run(
        [*command, "40", "--sample-length", "100", "--num-samples", "20", "--seed", "3"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert "40 tokens, trained on 2,000 bases in 20 samples; 10 of these" in done.stdout
    assert DnaTokenizer.from_file(output).vocab_size == 40
    failed = subprocess.run([*command, "4"], capture_output=True, text=True, env=environment)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "vocab_size (4) must be at least 11" in failed.stderr
