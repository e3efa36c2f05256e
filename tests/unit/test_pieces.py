"""Encoding in pieces: the ids of the whole, for every cut, from `tokenizers` as the oracle."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dna.data.encode import encode_in_order
from megatron_dna.genome.corpus import Document
from megatron_dna.genome.fasta import ContigPiece
from megatron_dna.genome.store import ReverseComplement, SequenceStore
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from megatron_dna.tokenizer.pieces import PIECE_LENGTH, Piece, Stitcher, cut_pieces
from tests.unit.genome_files import EXAMPLE, ROOT, encode, reverse_complement

GENA = ROOT.parent / "shared/data/tokenizers/gena_t2t_1000h_multi_32k.json"


def encode_in_pieces(
    tokenizer: DnaTokenizer, sequence: str, *, workers: int = 2, piece_length: int, overlap: int
) -> tuple[list[int], list[int]]:
    """Ids of both strands of a sequence."""
    found: dict[str, list[int]] = {"+": [], "-": []}
    with SequenceStore(Path()) as store:
        store.append(ContigPiece("x", 0, sequence.encode(), 0))
        items = [
            (Document("x", 0, len(sequence), "+", "train"), store.stretch("x")),
            (Document("x", 0, len(sequence), "-", "train"), ReverseComplement(store.stretch("x"))),
        ]
        ended = []
        for document, ids, is_last in encode_in_order(
            items, tokenizer, workers, piece_length, overlap
        ):
            found[document.strand] += ids.tolist()
            ended += [document.strand] * is_last
    assert ended == ["+", "-"]
    return found["+"], found["-"]


@pytest.fixture(scope="module")
def kmer_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Tokenizers of k-mers, by k."""
    folder = tmp_path_factory.mktemp("kmers")
    for k in range(1, 9):
        write_kmer_tokenizer(k, folder / f"{k}.json")
    return {k: folder / f"{k}.json" for k in range(1, 9)}


def real(start: int, end: int) -> str:
    with pysam.FastaFile(str(EXAMPLE)) as example:
        return example.fetch("20", start, end)


def repeats(seed: int) -> str:
    """Sequence whose pieces share few borders: tandem repeats between real sequence and N."""
    rng = random.Random(seed)
    text = real(2_000_000, 2_060_000)
    parts = []
    for _ in range(12):
        start = rng.randrange(len(text) - 500)
        unit = "".join(rng.choices("ACGT", k=rng.choice([1, 1, 2, 3, 5, 7, 31, 64, 171])))
        parts += [
            text[start : start + rng.randrange(500)],
            unit * rng.randrange(1, 900 // len(unit)),
        ]
        parts += ["N" * rng.choice([0, 0, 1, 9])]
    sequence = "".join(parts)
    while "N" * 10 in sequence:
        sequence = sequence.replace("N" * 10, "N" * 5)
    return sequence


@pytest.mark.parametrize(("piece_length", "overlap"), [(1_000, 96), (777, 300), (10_000, 1_024)])
def test_real_sequence_in_pieces_is_the_whole(
    tokenizer_path: Path, piece_length: int, overlap: int
) -> None:
    """A failure would make the ids depend on how the work was divided."""
    sequence = real(1_000_000, 1_200_000)
    forward, reverse = encode_in_pieces(
        DnaTokenizer.from_file(tokenizer_path), sequence, piece_length=piece_length, overlap=overlap
    )
    assert forward == encode(tokenizer_path, sequence)
    assert reverse == encode(tokenizer_path, reverse_complement(sequence))


def test_real_sequence_with_tokens_of_64_bases(tmp_path: Path) -> None:
    if not GENA.exists():
        pytest.skip(f"{GENA} is not there")
    sequence = real(60_000, 560_000)
    forward, reverse = encode_in_pieces(
        DnaTokenizer.from_file(GENA), sequence, piece_length=2_000, overlap=96
    )
    assert forward == encode(GENA, sequence)
    assert reverse == encode(GENA, reverse_complement(sequence))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(300, 2_000), st.integers(96, 299), st.integers(1, 3))
def test_repeats_and_runs_of_n_in_pieces_are_the_whole(
    tokenizer_path: Path, seed: int, piece_length: int, overlap: int, workers: int
) -> None:
    """Within a long tandem repeat the pieces have no border in common."""
    sequence = repeats(seed)
    forward, reverse = encode_in_pieces(
        DnaTokenizer.from_file(tokenizer_path),
        sequence,
        workers=workers,
        piece_length=piece_length,
        overlap=overlap,
    )
    assert forward == encode(tokenizer_path, sequence)
    assert reverse == encode(tokenizer_path, reverse_complement(sequence))


@pytest.mark.parametrize("unit", ["A", "AC", "AAC", "ACGTTGCATT"])
def test_nothing_but_a_repeat(tokenizer_path: Path, unit: str) -> None:
    """No two pieces agree anywhere, so each is encoded again from the one before."""
    sequence = unit * (20_011 // len(unit))
    forward, reverse = encode_in_pieces(
        DnaTokenizer.from_file(tokenizer_path), sequence, piece_length=501, overlap=97
    )
    assert forward == encode(tokenizer_path, sequence)
    assert reverse == encode(tokenizer_path, reverse_complement(sequence))


@pytest.mark.parametrize("k", [1, 3, 6, 8])
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    piece_length=st.integers(5, 400),
    overlap=st.integers(1, 60),
    often=st.sampled_from([0, 0.004, 0.05, 0.4]),
)
def test_kmers_in_pieces_are_those_of_the_whole(
    kmer_paths: dict[int, Path], k: int, seed: int, piece_length: int, overlap: int, often: float
) -> None:
    """Two single bases may be neighbours, three may not be: pairs alone do not prove a join."""
    rng = random.Random(seed)
    sequence = real(2_000_000 + seed, 2_000_000 + seed + rng.randrange(1, 2_000))
    sequence = "".join(
        "N" * rng.choice([1, 1, 2, 9]) + base if rng.random() < often else base
        for base in sequence
    ) + rng.choice(["", "N"])  # fmt: skip
    while "N" * 10 in sequence:
        sequence = sequence.replace("N" * 10, "N" * 5)
    forward, reverse = encode_in_pieces(
        DnaTokenizer.from_file(kmer_paths[k]), sequence, piece_length=piece_length, overlap=overlap
    )
    assert forward == encode(kmer_paths[k], sequence)
    assert reverse == encode(kmer_paths[k], reverse_complement(sequence))


@pytest.mark.parametrize("k", range(1, 9))
def test_pieces_of_kmers_meet_without_being_encoded_twice(
    kmer_paths: dict[int, Path], k: int
) -> None:
    """The default pieces of sequence without N begin where the k-mers of the whole do."""
    tokenizer = DnaTokenizer.from_file(kmer_paths[k])
    text = real(1_000_000, 1_000_000 + 2 * PIECE_LENGTH + 100)
    stitcher = Stitcher(tokenizer, lambda start, end: pytest.fail(f"again: {start}-{end}"))
    ids = []
    for piece in cut_pieces(len(text)):
        ids += stitcher.add(tokenizer.encode(text[piece.start : piece.end]), piece).tolist()
    assert ids + stitcher.finish().tolist() == tokenizer.encode(text).tolist()


def test_pieces_cover_a_sequence() -> None:
    assert list(cut_pieces(10, 4, 2)) == [Piece(0, 4), Piece(2, 8), Piece(6, 10)]
    assert list(cut_pieces(4, 4, 2)) == [Piece(0, 4)]
    assert not list(cut_pieces(0, 4, 2))


def test_a_border_that_is_no_join_is_not_taken(tokenizer_path: Path) -> None:
    """A failure would put two tokens beside each other that the encoder would have merged."""
    tokenizer = DnaTokenizer.from_file(tokenizer_path)
    text = real(1_500_000, 1_500_400)
    whole = tokenizer.encode(text)
    calls = []

    def encode_part(start: int, end: int):
        calls.append((start, end))
        return tokenizer.encode(text[start:end])

    stitcher = Stitcher(tokenizer, encode_part)
    # Pieces that only touch: the one border that they share is (here) no join.
    cut = next(
        cut
        for cut in range(150, 250)
        if not tokenizer.may_join(
            int(tokenizer.encode(text[:cut])[-1]), int(tokenizer.encode(text[cut:])[0])
        )
    )
    ids = stitcher.add(tokenizer.encode(text[:cut]), Piece(0, cut)).tolist()
    ids += stitcher.add(tokenizer.encode(text[cut:]), Piece(cut, 400)).tolist()
    assert ids + stitcher.finish().tolist() == whole.tolist()
    assert calls


def test_a_sequence_costs_no_table_of_the_vocabulary(kmer_paths: dict[int, Path]) -> None:
    """Else the one thread that gives out short documents is busy with nothing but such tables."""
    tokenizer = DnaTokenizer.from_file(kmer_paths[8])  # 65,000 ids: a table has 520,000 bytes
    tracemalloc.start()
    for _ in range(10):
        Stitcher(tokenizer, lambda start, end: tokenizer.encode(""))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000
