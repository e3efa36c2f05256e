"""The trainer in C++ learns the merges that Hugging Face `tokenizers` learns from the same text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer as ReferenceTrainer

from megatron_dna._core import BpeTrainer
from megatron_dna.genome.fasta import read_fasta

ROOT = Path(__file__).parents[2]
EXAMPLE_FASTA = ROOT / "examples/data/human_chr20_1-4000000.fa.gz"
LETTERS = "ACGNT"

Merges = list[tuple[str, str]]


def learn(
    texts: list[str], num_merges: int, min_frequency: int, max_length: int, step: int = 10**6
) -> Merges:
    """Merges by the trainer under test, `step` of them at a time."""
    trainer = BpeTrainer(LETTERS, min_frequency=min_frequency, max_length=max_length)
    for text in texts:
        trainer.add(text.encode())
    tokens, merges = list(LETTERS), []
    while len(merges) < num_merges:
        pairs = trainer.merge(min(step, num_merges - len(merges)))
        if not pairs:
            break
        for left, right in pairs:
            merges.append((tokens[left], tokens[right]))
            tokens.append(tokens[left] + tokens[right])
    return merges


def reference(texts: list[str], num_merges: int, min_frequency: int, max_length: int) -> Merges:
    """Merges by `tokenizers`, whose limit of length is one that no token reaches."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split("-", "isolated")
    trainer = ReferenceTrainer(
        vocab_size=len(LETTERS) + num_merges,
        min_frequency=min_frequency,
        max_token_length=max_length + 1,
        initial_alphabet=list(LETTERS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


TEXTS = st.lists(
    st.one_of(
        st.text("ACGNT", max_size=60),
        st.text("AC", max_size=60),
        st.builds(
            lambda unit, times: unit * times, st.text("ACGT", max_size=7), st.integers(1, 40)
        ),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(
    texts=TEXTS,
    num_merges=st.integers(0, 60),
    min_frequency=st.integers(1, 4),
    max_length=st.sampled_from([2, 3, 5, 64]),
    step=st.sampled_from([1, 7, 1000]),
)
def test_merges_of_generated_texts(
    texts: list[str], num_merges: int, min_frequency: int, max_length: int, step: int
) -> None:
    """Runs of one letter, ends of texts, ties and limits of length are where trainers differ."""
    ours = learn(texts, num_merges, min_frequency, max_length, step)
    assert ours == reference(texts, num_merges, min_frequency, max_length)


def test_merges_of_a_real_chromosome() -> None:
    """Enough text for pairs of every frequency: scanned for, tracked, and left out at first."""
    (contig,) = read_fasta(EXAMPLE_FASTA)
    text = contig.sequence[60_000:1_060_000].decode()
    pieces = [text[start : start + 1_000] for start in range(0, len(text), 1_000)]
    assert learn(pieces, 3_000, 2, 64) == reference(pieces, 3_000, 2, 64)


def test_merges_of_long_repeats() -> None:
    """Satellites: tokens up to the limit of length, many equal counts."""
    rng = random.Random(0)
    units = ["".join(rng.choices("ACGT", k=rng.randrange(1, 40))) for _ in range(40)]
    texts = [unit * rng.randrange(2, 200) for unit in units]
    ours = learn(texts, 900, 2, 64)
    assert ours == reference(texts, 900, 2, 64)
    assert max(len(left + right) for left, right in ours) == 64


def test_misuse() -> None:
    trainer = BpeTrainer(LETTERS, min_frequency=2, max_length=64)
    with pytest.raises(ValueError, match="letter 'a' is not in the alphabet"):
        trainer.add(b"ACGa")
    trainer.add(b"ACAC")
    with pytest.raises(ValueError, match="at most 65,534 tokens"):
        trainer.merge(65_530)
    assert trainer.merge(10) == [(0, 1)]
    assert trainer.merge(10) == []
    with pytest.raises(ValueError, match="before the first merge"):
        trainer.add(b"ACGT")
