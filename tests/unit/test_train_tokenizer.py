"""Training a tokenizer: the file is GENA's in structure, the same for a seed, blind to held-out."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from megatron_dna.data.corpora import list_genomes, read_corpus
from megatron_dna.tokenizer import template, train
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.train import train_on_genomes, train_tokenizer

ROOT = Path(__file__).parents[2]
EXAMPLE_FASTA = ROOT / "examples/data/human_chr20_1-4000000.fa.gz"
GENA = ROOT.parent / "shared/data/tokenizers/gena_t2t_1000h_multi_32k.json"
SPECIALS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "-"]

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def write_fasta(path: Path, **contigs: str) -> Path:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()))
    return path


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, str(ROOT / "tools/train_tokenizer.py"), *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def random_dna(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=length))


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "tokenizer.json"
    sample = train_tokenizer([EXAMPLE_FASTA], 512, path, sample_length=2_000, sample_bases=203_000)
    assert sample.num_sequences == 101
    assert sample.num_reverse_complement == 50
    assert 190_000 < sample.num_bases <= 202_000
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sequences that training is given."""
    sequences: list[str] = []

    class Spy(train.BpeTrainer):
        def add(self, text: bytes) -> None:
            sequences.append(text.decode())
            super().add(text)

    monkeypatch.setattr(train, "BpeTrainer", Spy)
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
        train_tokenizer(
            [EXAMPLE_FASTA], 512, path, sample_length=2_000, sample_bases=203_000, seed=seed
        )
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


def test_every_base_is_as_likely(tmp_path: Path, seen: list[str]) -> None:
    """A sample by contig, or of the first file, would make a vocabulary of small contigs."""
    letters = dict(zip("ACGT", (160_000, 80_000, 40_000, 20_000), strict=True))
    files = [write_fasta(tmp_path / f"{x}.fa", **{x: x * n}) for x, n in letters.items()]
    train_tokenizer(files, 14, tmp_path / "t.json", sample_length=10, sample_bases=150_000)
    text = "".join(seen)
    assert len(text) == 150_000
    assert text.count("A") + text.count("T") == pytest.approx(90_000, rel=0.03)  # either strand
    assert text.count("C") + text.count("G") == pytest.approx(60_000, rel=0.03)
    assert text.count("A") == pytest.approx(45_000, rel=0.06)


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


def test_what_is_excluded_is_never_seen(tmp_path: Path, seen: list[str]) -> None:
    contigs = {"a": random_dna(3_000), "a_alt": random_dna(3_000, seed=1)}
    fasta = write_fasta(tmp_path / "g.fa", **contigs)
    train_tokenizer([fasta], 30, tmp_path / "t.json", exclude=["*_alt"])
    assert sum(map(len, seen)) == 3_000
    known = contigs["a"] + contigs["a"].translate(COMPLEMENT)[::-1]
    assert all(sequence in known for sequence in seen)
    with pytest.raises(ValueError, match=r"g\.fa: exclude \(chrUn\) must match a contig"):
        train_tokenizer([fasta], 30, tmp_path / "t.json", exclude=["chrUn"])


def test_a_corpus_of_genomes_with_the_same_names(tmp_path: Path, seen: list[str]) -> None:
    """As Ensembl's human and mouse: each with what it holds out, and each file once."""
    parts = {name: random_dna(1_000, seed) for seed, name in enumerate("abcde")}
    write_fasta(tmp_path / "human.fa", **{"1": parts["a"] + parts["b"], "alt": parts["c"]})
    write_fasta(tmp_path / "mouse.fa", **{"1": parts["d"] + parts["e"]})
    (tmp_path / "held.bed").write_text("1\t1000\t2000\n")
    human = {"fasta": "human.fa", "holdout": "1:1-1000", "exclude": "alt"}
    sources = {"human": human, "mouse": {"fasta": "mouse.fa", "holdout": "held.bed"}}
    sources["human_again"] = human | {"weight": 3}
    path = tmp_path / "corpus.yaml"
    path.write_text(yaml.safe_dump({"tokenizer": "t.json", "sources": sources}))
    genomes = list_genomes(read_corpus(path, tmp_path / "out"))
    sample = train_on_genomes(genomes, 30, tmp_path / "t.json")
    assert sample.num_bases == 2_000
    strands = [bases for name in "bd" for bases in (parts[name], parts[name][::-1])]
    strands = [s if i % 2 == 0 else s.translate(COMPLEMENT) for i, s in enumerate(strands)]
    assert all(sequence in strands for sequence in seen)
    assert len(seen) == 2
    done = run_tool(
        *("--corpus", str(path), "--vocab-size", "30", "--output", str(tmp_path / "shell.json"))
    )
    assert "trained on 2,000 bases in 2 samples" in done.stdout, done.stderr
    assert (tmp_path / "shell.json").read_bytes() == (tmp_path / "t.json").read_bytes()
    assert not (tmp_path / "out").exists()


def test_progress_bars_are_for_terminals_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fasta = write_fasta(tmp_path / "g.fa", a=random_dna(1_000))
    train_tokenizer([fasta], 30, tmp_path / "t.json")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 10}, r"vocab_size \(10\) must be at least 11 .*change --vocab-size"),
        ({"vocab_size": 5_000}, r"vocab_size \(5000\): only \d+ tokens occur at least 2 times"),
        ({"sample_length": 1}, r"sample_length \(1\) must be at least 2"),
        ({"sample_bases": 0}, r"sample_bases \(0\) must be at least 1; change --sample-bases"),
        ({"vocab_size": 65_537}, r"vocab_size \(65537\) .* at most 65536"),
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

    monkeypatch.setattr(template.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        train_tokenizer([fasta], 30, output)
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.fa", "t.json"]


def test_command_line(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "g.fa", a=random_dna(3_000), b=random_dna(500))
    output = tmp_path / "new folder" / "t.json"
    command = ["--fasta", str(fasta), "--output", str(output), "--holdout", "b", "--vocab-size"]
    done = run_tool(*command, "40", "--sample-length", "100", "--sample-bases", "2000")
    assert "40 tokens, trained on 2,000 bases in 20 samples; 10 of these" in done.stdout
    assert DnaTokenizer.from_file(output).vocab_size == 40
    failed = run_tool(*command, "4")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "vocab_size (4) must be at least 11" in failed.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [("--kind kmer", "4,107 tokens, 6-mers"), ("--kind kmer --k 3", "75 tokens, 3-mers"),
     ("--kind char", "11 tokens")],
)  # fmt: skip
def test_command_line_of_other_kinds(tmp_path: Path, options: str, said: str) -> None:
    """Made without a genome, in the words of the issue."""
    output = tmp_path / "new" / "t.json"
    done = run_tool(*options.split(), "--output", str(output))
    assert done.stdout == f"{output}: {said}\n"
    ours, theirs = DnaTokenizer.from_file(output), Tokenizer.from_file(str(output))
    text = random_dna(500) + "NNN" + random_dna(100, seed=1)
    assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--kind kmer --k 9", r"k (9) must be between 1 and 8; change --k"),
        ("--kind kmer --vocab-size 30", "--vocab-size is for --kind bpe; leave it out for --kind"),
        ("--kind char --k 2", "--k is for --kind kmer; leave it out for --kind char"),
        ("--k 2 --vocab-size 30", "--k is for --kind kmer; leave it out for --kind bpe"),
        ("--vocab-size 30", "--fasta or --corpus is needed for --kind bpe"),
        ("--vocab-size 30 --fasta a --corpus b", "--fasta or --corpus is needed for --kind bpe"),
        ("--vocab-size 30 --corpus b --exclude c", "--exclude goes with --fasta, which is not"),
        ("--vocab-size 30 --fasta b --data-dir c", "--data-dir goes with --corpus, which is not"),
    ],
)
def test_command_line_refuses(tmp_path: Path, options: str, message: str) -> None:
    """An option that would be ignored is a mistake of the user's."""
    failed = run_tool(*options.split(), "--output", str(tmp_path / "t.json"))
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert message in failed.stderr
    assert not list(tmp_path.iterdir())
