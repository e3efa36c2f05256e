"""Vocabularies that fill the tables of DNA tokens, and those that do not fit into them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_bpe import Pair, random_merges, write_spec


def borders(rng: random.Random, merges: list[tuple[str, str]], count: int) -> Iterator[str]:
    """Two tokens side by side, such that some merge could join the end of one to the other."""
    ending: dict[str, list[str]] = {}
    starting: dict[str, list[str]] = {}
    for left, right in merges:
        ending.setdefault(right, [right]).append(left + right)
        starting.setdefault(left, [left]).append(left + right)
    for left, right in merges:
        for _ in range(count):
            yield rng.choice(ending.get(left, [left])) + rng.choice(starting.get(right, [right]))


@pytest.mark.parametrize(
    ("seed", "num_parts"), [(0, None), (1, None), (2, None), (0, 900), (2, 900), (3, 900)]
)
def test_large_random_merge_lists(tmp_path: Path, seed: int, num_parts: int | None) -> None:
    """Enough tokens for the tables of late merges, and tokens up to the tables' 64 bases.

    With few parts, every one has several merges: those about the 768th, where late ones begin, too.
    """
    rng = random.Random(seed)
    merges = random_merges(rng, 6000, 64, num_parts)
    pair = Pair(write_spec(tmp_path / "random.json", merges))
    assert pair.ours.token_lengths.max() > 40
    tokens = sorted(pair.theirs.get_vocab())
    texts = ["".join(rng.choices("ACGT", k=2000)) for _ in range(50)]
    texts += ["".join(t for t in rng.choices(tokens, k=200) if t.isalpha()) for _ in range(100)]
    texts += [token * rng.randrange(2, 9) for token in tokens if token.isalpha()]
    meeting = list(borders(rng, merges, 4))
    used = [merge for merge in merges if len(pair.theirs.encode("".join(merge))) == 1]
    assert used[800:] or seed == 3
    meeting += borders(rng, used, 16)
    texts += meeting
    # Long enough to be encoded in lanes, which check the pairs in a loop of their own.
    texts += ["".join(meeting[i : i + 100]) for i in range(0, len(meeting), 100)]
    for text in texts:
        pair.check(text)


def test_tokens_too_long_for_the_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The plain way gives the same ids, and says that it is slower."""
    merges = [("A" * 2**i, "A" * 2**i) for i in range(7)] + [("C", "A" * 64), ("N", "C")]
    pair = Pair(write_spec(tmp_path / "long.json", merges))
    assert "slower" in caplog.text
    rng = random.Random(0)
    for _ in range(200):
        pair.check("".join(letter * rng.randrange(140) for letter in rng.choices("AACGN", k=6)))
