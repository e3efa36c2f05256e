"""BPE ids are those of Hugging Face `tokenizers`, on every string, in linear time."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from megatron_dna.genome.fasta import read_fasta
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.train import train_tokenizer
from tests.oracles import bpe_ids

ROOT = Path(__file__).parents[2]
EXAMPLE_FASTA = ROOT / "examples/data/human_chr20_1-4000000.fa.gz"
CHR20_FASTA = ROOT.parent / "shared/data/human_chr20/20.fa.gz"
GENA = ROOT.parent / "shared/data/tokenizers/gena_t2t_1000h_multi_32k.json"
DNABERT2 = GENA.with_name("dnabert2_117M_tokenizer.json")

SPECIALS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "-")


class Pair:
    """The tokenizer under test, the oracle that no one here wrote, and the file of both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ours = DnaTokenizer.from_file(path)
        self.theirs = Tokenizer.from_file(str(path))

    def check(self, text: str) -> None:
        expected = self.theirs.encode(text, add_special_tokens=False).ids
        assert self.ours.encode(text).tolist() == expected, text[:200]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    train_tokenizer([EXAMPLE_FASTA], 2048, path, sample_bases=1_000_000)
    return Pair(path)


@pytest.fixture(scope="module", params=["trained", "gena"])
def pair(request: pytest.FixtureRequest) -> Pair:
    if request.param == "trained":
        return request.getfixturevalue("trained")
    if not GENA.exists():
        pytest.skip("GENA's tokenizer is not in ../shared/data/tokenizers")
    return Pair(GENA)


@pytest.fixture(scope="module")
def chr20() -> str:
    """5 Mbp with satellites and the start of the centromere's gap, or the 4 Mbp of the example."""
    if CHR20_FASTA.exists():
        (contig,) = read_fasta(CHR20_FASTA)
        return contig.sequence[21_500_000:26_500_000].decode()
    (contig,) = read_fasta(EXAMPLE_FASTA)
    return contig.sequence.decode()


def write_spec(path: Path, merges: list[tuple[str, str]], letters: str = "ACGTN") -> Path:
    """A tokenizer.json of GENA's structure with the given merges."""
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    vocab = {token: i for i, token in enumerate((*SPECIALS, *letters))}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    gaps = {"type": "Replace", "pattern": {"Regex": "N{10,}"}, "content": "-"}
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "special": True, **added}
            for i, token in enumerate(SPECIALS)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [strip, gaps]},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": "-"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": vocab,
            "merges": [list(merge) for merge in merges],
        },
    }
    path.write_text(json.dumps(spec))
    return path


def random_merges(
    rng: random.Random, num_merges: int, max_length: int, num_parts: int | None = None
) -> list[tuple[str, str]]:
    """Merges of tokens that are there; some can never happen, some make a token twice.

    Args:
        num_parts: only so many tokens, the first ones, are merged with others.
    """
    tokens = list("ACGTN")
    merges: dict[tuple[str, str], None] = {}
    while len(merges) < num_merges:
        parts = tokens[:num_parts]
        left = rng.choice(parts)
        right = left if rng.random() < 0.3 else rng.choice(parts)
        if len(left + right) <= max_length and (left, right) not in merges:
            merges[left, right] = None
            tokens.append(left + right)
    return list(merges)


FRAGMENTS = st.one_of(
    st.text("ACGT", max_size=40),
    st.text("ACGTN", max_size=20),
    st.text("ACGTNRYSWKMBDHVacgtn", max_size=12),
    st.builds(lambda unit, times: unit * times, st.text("ACGTN", max_size=6), st.integers(1, 60)),
    st.builds("N".__mul__, st.integers(8, 12)),
    st.sampled_from([*SPECIALS, "[CLS", " ", "\n", "\t", "\u00a0", "\u3000", "\x1c", "é", "\0"]),
)
STRINGS = st.lists(FRAGMENTS, max_size=8).map("".join)


@pytest.mark.parametrize("piece_length", [1_000, 10_000, 100_000])
def test_ids_of_a_real_chromosome(pair: Pair, chr20: str, piece_length: int) -> None:
    """Else models would be trained on other tokens than `tokenizers` gives them afterwards."""
    for start in range(0, len(chr20), piece_length):
        pair.check(chr20[start : start + piece_length])


@settings(deadline=None)
@given(text=STRINGS)
def test_ids_of_generated_strings(pair: Pair, text: str) -> None:
    pair.check(text)


@settings(deadline=None)
@given(text=st.lists(FRAGMENTS, max_size=3).map("".join))
def test_ids_follow_the_definition_of_bpe(trained: Pair, text: str) -> None:
    """Against ten lines of Python, in case `tokenizers` and the C++ core share a mistake."""
    spec = json.loads(trained.path.read_text())
    assert trained.ours.encode(text).tolist() == bpe_ids(spec, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "A - C",
        "  ACGT\n",
        "A\nC",
        "acgt",
        "ACRYDHVT",
        "N" * 9,
        "N" * 10,
        "A" + "N" * 12 + "C",
        "N" * 10 + "-" + "N" * 9,
        "[CLS]ACGT[SEP]",
        "[CLSACGT",
        "\u3000ACG\u3000 T\x85",
        "\x1cACGT\x1f",
    ],
)
def test_ids_of_corner_cases(pair: Pair, text: str) -> None:
    pair.check(text)
    assert pair.ours.encode(text.encode()).tolist() == pair.ours.encode(text).tolist()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), text=st.text("ACGTN", max_size=80))
def test_any_possible_merge_list(
    tmp_path_factory: pytest.TempPathFactory, seed: int, text: str
) -> None:
    """Merges that never happen and merges to the same token do not disturb the proof."""
    rng = random.Random(seed)
    merges = random_merges(rng, rng.randrange(40), 20)
    path = write_spec(tmp_path_factory.getbasetemp() / "random.json", merges)
    try:
        pair = Pair(path)
    except ValueError as error:  # a token's first merge never happens, but a later one does
        assume("must come after" not in str(error))
        raise
    for repeat in (text, text[:5] * 12, "".join(rng.choices("AC", k=80))):
        pair.check(repeat)


def test_every_letter_at_every_place(pair: Pair) -> None:
    """Letters are looked at eight at a time: one that is no base must be seen at each place."""
    bases = "ACGTTGCAACGTTGCAACG"
    for letter in [*map(chr, range(128)), *"éÁÄćŁŃ\u2003"]:
        for at in range(len(bases)):
            pair.check(bases[:at] + letter + bases[at:])


def test_time_is_linear(pair: Pair, chr20: str) -> None:
    """A quadratic or n log n step, or backtracking without bound, would stall on whole contigs."""

    def seconds(text: str, repeats: int) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            for _ in range(repeats):
                pair.ours.encode(text)
            times.append(time.process_time() - start)
        return min(times)

    repeats = ("A", "AC", "AATGG", "ACN", "AR", "N" * 9 + "C", "B", "N")
    for text in (
        chr20[1_000_000:3_000_000],
        *(unit * (2_000_000 // len(unit)) for unit in repeats),
    ):
        in_pieces = seconds(text[: len(text) // 100], 100)
        assert seconds(text, 1) < 3 * in_pieces + 0.02, text[:20]


def test_gil_is_released(trained: Pair, chr20: str) -> None:
    """Else worker threads would encode one after the other."""
    text = chr20[:4_000_000] * 5
    span = []

    def encode() -> None:
        span.append(time.monotonic())
        trained.ours.encode(text)
        span.append(time.monotonic())

    thread = threading.Thread(target=encode)
    thread.start()
    moments = []
    while thread.is_alive():
        moments.append(time.monotonic())
        time.sleep(1e-4)
    start, end = span
    margin = (end - start) / 5
    assert any(start + margin < moment < end - margin for moment in moments)


def test_facade(pair: Pair) -> None:
    tokenizer, vocab = pair.ours, pair.theirs.get_vocab()
    assert tokenizer.vocab_size == len(vocab)
    ids = [tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id]
    assert [*ids, tokenizer.mask_id, tokenizer.gap_id] == [0, 1, 2, 3, 4, 5]
    assert tokenizer.special_ids == {0, 1, 2, 3, 4, 5}
    assert tokenizer.sha256 == hashlib.sha256(pair.path.read_bytes()).hexdigest()
    assert tokenizer.token_lengths.dtype == np.int32
    for token, token_id in islice(vocab.items(), 1000):
        length = 0 if token_id in tokenizer.special_ids else len(token)
        assert tokenizer.token_lengths[token_id] == length
    encoded = tokenizer.encode("ACGTTNNACCGTA")
    assert encoded.dtype == np.int32
    assert tokenizer.decode(encoded) == "ACGTTNNACCGTA"
    assert tokenizer.decode(tokenizer.encode("[CLS]AC-GT[MASK][SEP]")) == "ACGT"
    for bad_id in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="between 0 and"):
            tokenizer.decode([bad_id])


def test_bytes_that_are_not_text(trained: Pair) -> None:
    for bad in (b"AC\xff", b"\xc3", b"AC\xe2\x82", b"\x80A"):
        with pytest.raises(ValueError, match="UTF-8"):
            trained.ours.encode(bad)


def set_key(spec: dict, key: str, value: object) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        spec = spec[int(parent)] if parent.isdigit() else spec[parent]
    spec[last] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", None, "model must be a JSON object"),
        ("model.type", "WordPiece", r'model.type \("WordPiece"\) must be "BPE"'),
        ("model.dropout", 0.1, "model.dropout"),
        ("model.fuse_unk", True, "model.fuse_unk"),
        ("model.byte_fallback", True, "model.byte_fallback"),
        ("model.ignore_merges", True, "model.ignore_merges"),
        ("model.end_of_word_suffix", "</w>", "model.end_of_word_suffix"),
        ("model.continuing_subword_prefix", "##", "model.continuing_subword_prefix"),
        ("model.unk_token", None, "model.unk_token"),
        ("truncation", {"max_length": 636}, "truncation"),
        ("padding", {"pad_id": 3}, "padding"),
        ("normalizer", None, "normalizer"),
        ("normalizer", {"type": "Lowercase"}, "normalizer"),
        ("normalizer.normalizers.1.pattern.Regex", "N{5,}", "normalizer"),
        ("normalizer.normalizers.0.strip_left", False, "normalizer"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer"),
        ("pre_tokenizer.behavior", "Removed", "pre_tokenizer"),
        ("added_tokens", None, "added_tokens must be a JSON list"),
        ("added_tokens.0.normalized", True, r"added_tokens\[0\].normalized"),
        ("added_tokens.0.id", 3, r"added_tokens\[0\] \('\[UNK\]', id 3\)"),
        ("added_tokens.0.content", "", r"added_tokens\[0\]"),
        ("model.vocab", [], "model.vocab must be a JSON object"),
        ("model.vocab.A", 999, "must have the ids 0 to 12"),
        ("model.vocab.A", 8, "must have the ids 0 to 12"),
        ("model.vocab.A", "6", "must have the ids 0 to 12"),
        ("model.vocab.é", 13, "must be ASCII"),
        ("model.merges", {}, "model.merges must be a JSON list"),
        ("model.merges", ["A C G"], r"model.merges\[0\]"),
        ("model.merges", [["A"]], r"model.merges\[0\]"),
        ("model.merges", ["A A"], "needs 'AA' in model.vocab"),
        ("model.merges", ["A C", "AC G", "A C"], r"repeats model.merges\[0\]"),
        ("model.merges", ["AC G", "A C"], "must come after"),
    ],
)
def test_other_tokenizers_are_refused(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    """One error that names the file and the key; never ids that differ in silence."""
    path = write_spec(tmp_path / "tokenizer.json", [("A", "C"), ("AC", "G")])
    assert DnaTokenizer.from_file(path).vocab_size == 13
    spec = json.loads(path.read_text())
    set_key(spec, key, value)
    path.write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=message) as caught:
        DnaTokenizer.from_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x80\x04\x95", b">20\nACGT\n"])
def test_files_that_are_not_tokenizers_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="JSON"):
        DnaTokenizer.from_file(path)


def test_missing_special_token(tmp_path: Path) -> None:
    path = write_spec(tmp_path / "tokenizer.json", [])
    spec = json.loads(path.read_text())
    del spec["added_tokens"][-1], spec["model"]["vocab"]["-"]
    spec["model"]["vocab"] = {token: i for i, token in enumerate(spec["model"]["vocab"])}
    path.write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=r"lacks \['-'\]"):
        DnaTokenizer.from_file(path)


def test_dnabert2_is_refused() -> None:
    if not DNABERT2.exists():
        pytest.skip("DNABERT-2's tokenizer is not in ../shared/data/tokenizers")
    with pytest.raises(ValueError, match="truncation"):
        DnaTokenizer.from_file(DNABERT2)


def test_old_and_new_file_format_agree(tmp_path: Path) -> None:
    """Merges are "A C" in files of old `tokenizers`, as GENA's, and ["A", "C"] in new ones."""
    path = write_spec(tmp_path / "tokenizer.json", [("A", "C"), ("AC", "G")])
    new = DnaTokenizer.from_file(path).encode("ACGAC")
    spec = json.loads(path.read_text())
    spec["model"]["merges"] = ["A C", "AC G"]
    path.write_text(json.dumps(spec))
    assert DnaTokenizer.from_file(path).encode("ACGAC").tolist() == new.tolist() == [12, 11]
