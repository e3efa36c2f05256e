"""A text that is encoded from several places at once has the ids of `tokenizers` all the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_dna.tokenizer.train import train_tokenizer
from tests.unit.test_bpe import EXAMPLE_FASTA, GENA, Pair, random_merges, write_spec


def long_texts(rng: random.Random) -> Iterator[str]:
    """Texts that are encoded in lanes: random ones, repeats of a unit, which look the same from
    wherever a lane begins, and letters that are no bases here and there, at lanes' borders too."""
    for letters in ("ACGT", "AC", "A", "ACGTACGTACGTN"):
        yield "".join(rng.choices(letters, k=rng.randrange(500, 4000)))
    for length in (1, 2, 3, 5, 7, 11):
        unit = "".join(rng.choices("ACGT", k=length))
        yield unit * rng.randrange(500 // length, 3000 // length)
        yield unit * (600 // length) + "".join(rng.choices("ACGT", k=400)) + unit * (700 // length)
    for length in (256, 511, 512, 513, 767, 768, 1024, 2048):
        text = rng.choices("ACGT", k=length)
        yield "".join(text)
        for at in (length // 4, length // 2, length - 1, length - 64, rng.randrange(length)):
            text[at] = "N"
            yield "".join(text)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5, 7, 8])
def test_lanes_meet(tmp_path: Path, seed: int) -> None:
    """What is encoded from several places at once is one encoding, for any merges."""
    rng = random.Random(seed)
    merges = random_merges(rng, rng.choice([3, 10, 30, 100, 400, 2000]), rng.choice([4, 12, 64]))
    pair = Pair(write_spec(tmp_path / "random.json", merges))
    for text in long_texts(rng):
        pair.check(text)


@pytest.mark.parametrize("kind", ["trained", "gena"])
def test_lanes_of_real_merges_meet(tmp_path: Path, kind: str) -> None:
    path = GENA
    if kind == "trained":
        path = tmp_path / "tokenizer.json"
        train_tokenizer([EXAMPLE_FASTA], 2048, path, sample_bases=1_000_000)
    elif not GENA.exists():
        pytest.skip("GENA's tokenizer is not in ../shared/data/tokenizers")
    pair = Pair(path)
    for text in long_texts(random.Random(0)):
        pair.check(text)
