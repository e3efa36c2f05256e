"""Ids of k-mers and single nucleotides are those of Hugging Face `tokenizers`, on every string."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from megatron_dna.genome.fasta import read_fasta
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from tests.unit.test_bpe import EXAMPLE_FASTA, SPECIALS, STRINGS, Pair, set_key


@pytest.fixture(scope="module", params=[1, 2, 3, 6, 8])
def k(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, k: int) -> Pair:
    path = tmp_path_factory.mktemp("kmer") / "tokenizer.json"
    assert write_kmer_tokenizer(k, path) == (11 + 4**k if k > 1 else 11)
    return Pair(path)


def cut(text: str, k: int) -> list[str]:
    """k-mers of each stretch of bases from its start, what is left of it letter by letter."""
    tokens = []
    for stretch in re.split("([^ACGT])", text):
        whole = len(stretch) // k * k
        tokens += [stretch[i : i + k] for i in range(0, whole, k)] + list(stretch[whole:])
    return tokens


def test_ids_of_a_real_chromosome(pair: Pair) -> None:
    """Else models would be trained on other tokens than `tokenizers` gives them afterwards."""
    (contig,) = read_fasta(EXAMPLE_FASTA)
    text = contig.sequence.decode()
    for length in (1_003, 200_000):
        for start in range(100, 400_000, length):
            pair.check(text[start : start + length])
    pair.check(text[:61_000])


@settings(deadline=None)
@given(text=STRINGS)
def test_ids_of_generated_strings(pair: Pair, text: str) -> None:
    pair.check(text)


def test_cuts_as_nucleotide_transformer_does(pair: Pair, k: int) -> None:
    """k-mers start anew after each N; what is shorter than k is spelt base by base."""
    rng = random.Random(0)
    names = {token_id: token for token, token_id in pair.theirs.get_vocab().items()}
    texts = ["ACGTACGTNACGTACGT", "N", "NNACG", "A" * k, "A" * (k - 1), "A" * (k + 1) + "N", ""]
    texts += ["".join(rng.choices("ACGTN", [9, 9, 9, 9, 1], k=n)) for n in range(200)]
    for text in texts:
        assert [names[i] for i in pair.ours.encode(text).tolist()] == cut(text, k)
        assert pair.ours.decode(pair.ours.encode(text)) == text


def test_facade(pair: Pair, k: int) -> None:
    """What the loader, masking and preprocessing take from a tokenizer."""
    tokenizer, vocab = pair.ours, pair.theirs.get_vocab()
    assert tokenizer.vocab_size == len(vocab)
    assert [vocab[token] for token in SPECIALS] == [0, 1, 2, 3, 4, 5]
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.gap_id) == (3, 4, 5)
    assert tokenizer.special_ids == {0, 1, 2, 3, 4, 5}
    assert sorted({int(n) for n in tokenizer.token_lengths}) == sorted({0, 1, k})
    assert tokenizer.encode("A" + "N" * 10 + "C" + "N" * 9).tolist() == [6, 5, 7] + [9] * 9
    assert tokenizer.encode("acgt[MASK]").tolist() == [0] * 4 + [4]
    by_id = sorted(vocab, key=vocab.__getitem__)
    kmers = [token for token in by_id if len(token) == k and set(token) <= set("ACGT")]
    assert kmers == ["".join(bases) for bases in itertools.product("ACGT", repeat=k)]


def test_loads_in_transformers(pair: Pair) -> None:
    """The file that conversion copies beside a model works there, with [CLS] and [SEP] around."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(pair.path), cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )
    text = "ACGTTGCATNGACT"
    ids = tokenizer(text)["input_ids"]
    assert ids == [1, *pair.ours.encode(text), 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_time_is_linear(pair: Pair) -> None:
    """Reserving memory run by run, say, would make it quadratic where runs are short."""
    for unit in ("ACGTTGCA", "ACGTN", "ACGTr", "-ACG"):

        def seconds(length: int, unit: str = unit) -> float:
            text = unit * (length // len(unit))
            times = []
            for _ in range(3):
                start = time.process_time()
                pair.ours.encode(text)
                times.append(time.process_time() - start)
            return min(times)

        assert seconds(8_000_000) < 24 * seconds(1_000_000) + 0.02, unit


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.vocab.AC", 999, "must have the ids 0 to 26"),
        ("model.unk_token", "[MASK]", "model.unk_token"),
        ("model.type", "BPE", r"pre_tokenizer \(.*\) must be"),
        ("model.type", "WordPiece", "model.type"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer"),
        ("pre_tokenizer.pattern.Regex", "[ACGT]{3}|[\\s\\S]", "lacks 64 of the 3-mers"),
        ("pre_tokenizer.pattern.Regex", "[ACGT]{9}|[\\s\\S]", "pre_tokenizer"),
        ("pre_tokenizer.pattern.Regex", "[ACGT]{0}|[\\s\\S]", "pre_tokenizer"),
        ("pre_tokenizer.pattern.Regex", "[ACGT]{2}|.", "pre_tokenizer"),
        ("pre_tokenizer.behavior", "Removed", "pre_tokenizer"),
        ("pre_tokenizer.invert", True, "pre_tokenizer"),
        ("normalizer", None, "normalizer"),
        ("truncation", {"max_length": 512}, "truncation"),
        ("added_tokens.5.id", 6, r"added_tokens\[5\]"),
    ],
)
def test_other_tokenizers_are_refused(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    """One error that names the file and the key; never ids that differ in silence."""
    path = tmp_path / "tokenizer.json"
    write_kmer_tokenizer(2, path)
    spec = json.loads(path.read_text())
    set_key(spec, key, value)
    path.write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=message) as caught:
        DnaTokenizer.from_file(path)
    assert str(path) in str(caught.value)


def test_a_missing_letter_or_kmer_is_refused(tmp_path: Path) -> None:
    """Whole k-mers would become [UNK]."""
    path = tmp_path / "tokenizer.json"
    for token in ("A", "GT"):
        write_kmer_tokenizer(2, path)
        spec = json.loads(path.read_text())
        tokens = [name for name in spec["model"]["vocab"] if name != token]
        spec["model"]["vocab"] = {name: i for i, name in enumerate(tokens)}
        path.write_text(json.dumps(spec))
        Tokenizer.from_file(str(path))
        with pytest.raises(ValueError, match="lacks 1 of the 2-mers and single bases"):
            DnaTokenizer.from_file(path)


@pytest.mark.parametrize("k", [0, 9])
def test_bad_k(tmp_path: Path, k: int) -> None:
    with pytest.raises(ValueError, match=rf"k \({k}\) must be between 1 and 8"):
        write_kmer_tokenizer(k, tmp_path / "t.json")
    assert not list(tmp_path.iterdir())
