"""Trains a BPE tokenizer on sampled subsequences of genomes, through Hugging Face `tokenizers`.

The result has the structure of GENA-LM's tokenizer.json: the same special tokens with the same ids,
the same normalizer, pre-tokenizer and post-processor. `DnaTokenizer` and `PreTrainedTokenizerFast`
both load it.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from tqdm import tqdm

from megatron_dna.genome.corpus import Document, plan_documents, read_documents, scan
from megatron_dna.genome.sequence import MIN_GAP_LENGTH
from megatron_dna.tokenizer.bpe import CLS, GAP, SEP, SPECIAL_TOKENS, UNK

LETTERS = ("A", "C", "G", "N", "T")
"""Always in the vocabulary, so that no cleaned sequence has an [UNK]."""

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + len(LETTERS)

MAX_TOKEN_LENGTH = 64
"""Bases in the longest token, as in GENA's: satellites would fill the vocabulary otherwise."""

MIN_FREQUENCY = 2
"""A pair seen once is an accident of the sample, not a word."""


@dataclass(frozen=True)
class TrainingSample:
    """What a tokenizer was trained on."""

    num_sequences: int
    """Sampled subsequences."""
    num_bases: int
    """Bases in them."""
    num_reverse_complement: int
    """How many of them were read from the other strand."""


def train_tokenizer(
    fasta: Sequence[str | Path],
    vocab_size: int,
    output: str | Path,
    *,
    sample_length: int = 1_000,
    num_samples: int = 50_000,
    seed: int = 0,
    holdout: Sequence[str] = (),
) -> TrainingSample:
    """Writes a tokenizer.json; the same arguments give the same bytes.

    The sequence between runs of 10 or more N, without the held-out regions, is cut into windows of
    at most `sample_length`; `num_samples` of them, or all if there are fewer, are drawn without
    replacement, a random half as reverse complement. Memory: the longest contig and some 60 bytes
    a sampled base. `tokenizers` scans whole windows for every merge: short ones train faster.

    Args:
        fasta: FASTA files, plain, gzipped or bgzipped.
        vocab_size: number of ids in all, special tokens and single letters included.
        output: the file to write; it appears when it is complete.
        sample_length: longest window in bases.
        num_samples: most windows to train on.
        seed: of the draw.
        holdout: regions that training must not see: `20` or `20:3000001-4000000` (1-based, both
            ends included).

    Raises:
        ValueError: a bad option or file, or too little sequence for the vocabulary.
        OSError: a file cannot be read or written.
    """
    output = Path(output)
    _check_at_least("vocab_size", vocab_size, MIN_VOCAB_SIZE, "6 special tokens and A C G N T")
    _check_at_least("sample_length", sample_length, 2, "a pair of letters")
    _check_at_least("num_samples", num_samples, 1, "something to train on")
    if not output.parent.is_dir() or output.is_dir():
        raise ValueError(f"output ({output}) must be a file in a folder that is there")
    windows, sequences = _sample(
        [Path(path) for path in fasta], holdout, sample_length, num_samples, seed
    )
    tokenizer = _train(sequences, vocab_size)
    _write_atomic(output, tokenizer.to_str(pretty=True) + "\n")
    return TrainingSample(
        num_sequences=len(windows),
        num_bases=sum(map(len, sequences)),
        num_reverse_complement=sum(window.strand == "-" for window in windows),
    )


def _check_at_least(key: str, value: int, minimum: int, reason: str) -> None:
    if value < minimum:
        flag = "--" + key.replace("_", "-")
        raise ValueError(f"{key} ({value}) must be at least {minimum} ({reason}); raise {flag}")


def _sample(
    paths: Sequence[Path], holdout: Sequence[str], sample_length: int, num_samples: int, seed: int
) -> tuple[list[Document], list[str]]:
    """Windows in the order of the files, and the sequence of each on its strand."""
    with tqdm(desc="scanning", unit="bp", unit_scale=True, disable=None) as progress:
        plan = plan_documents(scan(paths, progress.update), holdout)
    windows = [
        window
        for document in plan.documents
        if document.split == "train"
        for window in _cut(document, sample_length)
    ]
    rng = random.Random(seed)
    chosen = sorted(rng.sample(range(len(windows)), min(num_samples, len(windows))))
    reverse = set(rng.sample(chosen, len(chosen) // 2))
    windows = [replace(windows[i], strand="-" if i in reverse else "+") for i in chosen]
    num_bases = sum(window.length for window in windows)
    sequences = []
    with tqdm(
        desc="sampling", total=num_bases, unit="bp", unit_scale=True, disable=None
    ) as progress:
        for window, forward in read_documents(paths, replace(plan, documents=tuple(windows))):
            sequences.append(window.on_its_strand(forward).decode())
            progress.update(window.length)
    return windows, sequences


def _cut(document: Document, sample_length: int) -> list[Document]:
    """Windows of nearly equal length, at most `sample_length`, that together are the document."""
    num_windows = -(-document.length // sample_length)
    bounds = [document.start + document.length * i // num_windows for i in range(num_windows + 1)]
    return [replace(document, start=start, end=end) for start, end in itertools.pairwise(bounds)]


def _train(sequences: Sequence[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of GENA's structure with exactly `vocab_size` tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    gap = Regex(f"N{{{MIN_GAP_LENGTH},}}")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Replace(gap, GAP)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(GAP, "isolated")
    tokenizer.decoder = decoders.BPEDecoder(suffix=" ")
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        max_token_length=MAX_TOKEN_LENGTH,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=list(LETTERS),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(sequences, trainer, length=len(sequences))
    if tokenizer.get_vocab_size() < vocab_size:
        num_bases = sum(map(len, sequences))
        raise ValueError(
            f"vocab_size ({vocab_size}): only {tokenizer.get_vocab_size()} tokens occur at least "
            f"{MIN_FREQUENCY} times in the {num_bases} sampled bases; lower --vocab-size, or give "
            "more sequence"
        )
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.BertProcessing((SEP, ids[SEP]), (CLS, ids[CLS]))
    return tokenizer


def _write_atomic(path: Path, text: str) -> None:
    """Writes beside `path`, then renames: whoever sees the file sees all of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
