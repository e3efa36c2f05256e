"""Trains a BPE tokenizer on sampled subsequences of genomes.

The result has the structure of GENA-LM's tokenizer.json: the same special tokens with the same ids,
the same normalizer, pre-tokenizer and post-processor. `DnaTokenizer` and `PreTrainedTokenizerFast`
both load it. The merges are those that Hugging Face `tokenizers` would learn from the same sample,
found in a tenth of its memory (`csrc/bpe_trainer.hpp`).
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import models
from tqdm import tqdm

from megatron_dna._core import BpeTrainer
from megatron_dna.genome.corpus import plan_documents, scan
from megatron_dna.genome.folders import output_folder
from megatron_dna.genome.sequence import reverse_complement
from megatron_dna.genome.store import SequenceStore, Stretch
from megatron_dna.tokenizer.spec import LETTERS, SPECIAL_TOKENS, UNK
from megatron_dna.tokenizer.template import check_output, save_tokenizer

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + len(LETTERS)

MAX_VOCAB_SIZE = 65_536
"""The trainer numbers tokens with two bytes; from 65,500 ids on, a .bin takes four for each."""

MAX_TOKEN_LENGTH = 64
"""Bases in the longest token, as in GENA's: satellites would fill the vocabulary otherwise."""

MIN_FREQUENCY = 2
"""A pair seen once is an accident of the sample, not a word."""

MERGES_AT_A_TIME = 16
"""Between two looks at the keyboard, and steps of the progress bar."""


@dataclass(frozen=True)
class Genome:
    """What to train on.

    Attributes:
        fasta: FASTA files, plain, gzipped or bgzipped; contig names unique over all of them, but
            not over those of other genomes.
        holdout: regions that training must not see: `20`, `20:3000001-4000000` (1-based, both ends
            included) or a BED file.
        exclude: contigs that it must not see, by name or shell pattern (`*_alt`).
    """

    fasta: tuple[Path, ...]
    holdout: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


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
    sample_bases: int = 50_000_000,
    seed: int = 0,
    holdout: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> TrainingSample:
    """Writes a tokenizer.json trained on one genome; see `Genome` and `train_on_genomes`."""
    genome = Genome(tuple(Path(path) for path in fasta), tuple(holdout), tuple(exclude))
    return train_on_genomes(
        [genome],
        vocab_size,
        output,
        sample_length=sample_length,
        sample_bases=sample_bases,
        seed=seed,
    )


def train_on_genomes(
    genomes: Sequence[Genome],
    vocab_size: int,
    output: str | Path,
    *,
    sample_length: int = 1_000,
    sample_bases: int = 50_000_000,
    seed: int = 0,
) -> TrainingSample:
    """Writes a tokenizer.json; the same arguments give the same bytes.

    The sequence between runs of 10 or more N, without the held-out regions, is cut into windows of
    at most `sample_length`. As many of them as have some `sample_bases` are drawn without
    replacement, so every base of all files is as likely to be seen; a random half as reverse
    complement. Memory: some 8 bytes a sampled base; on the disk, beside `output`, scratch files of
    one byte a base.

    Args:
        genomes: at least one.
        vocab_size: number of ids in all, special tokens and single letters included.
        output: the file to write, and its folder; it appears when it is complete.
        sample_length: longest window in bases.
        sample_bases: bases to train on; all where there are no more.
        seed: of the draw.

    Raises:
        ValueError: a bad option or file, or too little sequence for the vocabulary.
        OSError: a file cannot be read or written.
    """
    output = Path(output)
    _check_range("vocab_size", vocab_size, MIN_VOCAB_SIZE, MAX_VOCAB_SIZE)
    _check_range("sample_length", sample_length, 2)
    _check_range("sample_bases", sample_bases, 1)
    check_output(output)
    with output_folder(output.parent):
        with ExitStack() as stack:
            stores = [stack.enter_context(SequenceStore(output.parent)) for _ in genomes]
            windows = _Windows(genomes, stores, sample_length)
            trainer, sample = _take_sample(windows, sample_length, sample_bases, seed)
        merges = _learn_merges(trainer, vocab_size, sample.num_bases)
        tokens = [*SPECIAL_TOKENS, *LETTERS, *(left + right for left, right in merges)]
        vocab = {token: i for i, token in enumerate(tokens)}
        save_tokenizer(models.BPE(vocab, merges, unk_token=UNK), output)
    return sample


def _check_range(key: str, value: int, minimum: int, maximum: int | None = None) -> None:
    if value < minimum or (maximum is not None and value > maximum):
        flag = "--" + key.replace("_", "-")
        at_most = "" if maximum is None else f" and at most {maximum}"
        raise ValueError(f"{key} ({value}) must be at least {minimum}{at_most}; change {flag}")


class _Windows:
    """All training sequence in windows of nearly equal length, numbered in the order of the files.

    Attributes:
        num_bases: of all of them.
    """

    def __init__(
        self, genomes: Sequence[Genome], stores: Sequence[SequenceStore], sample_length: int
    ) -> None:
        """Reads the files once, each genome into its own store."""
        self._stretches: list[Stretch] = []
        with _progress("scanning", None, "bp") as bar:
            for genome, store in zip(genomes, stores, strict=True):
                self._stretches += _read(genome, store, bar.update)
        self._counts = [-(-stretch.length // sample_length) for stretch in self._stretches]
        self._ends = list(itertools.accumulate(self._counts))
        self.num_bases = sum(stretch.length for stretch in self._stretches)

    def __len__(self) -> int:
        """Number of windows."""
        return self._ends[-1]

    def read(self, index: int) -> bytes:
        """The forward strand of a window."""
        number = bisect.bisect_right(self._ends, index)
        stretch, count = self._stretches[number], self._counts[number]
        window = index - self._ends[number] + count
        start, end = (stretch.length * i // count for i in (window, window + 1))
        return stretch.read(start, end)


def _read(
    genome: Genome, store: SequenceStore, advance: Callable[[int], object]
) -> Iterator[Stretch]:
    """All that training may see of a genome."""
    contigs = scan(genome.fasta, advance, store.append, exclude=genome.exclude)
    try:
        plan = plan_documents(contigs, genome.holdout, exclude=genome.exclude)
    except ValueError as error:
        raise ValueError(f"{genome.fasta[0]}: {error}") from error
    for document in plan.documents:
        if document.split == "train":
            yield store.stretch(document.contig, document.start, document.end)


def _take_sample(
    windows: _Windows, sample_length: int, sample_bases: int, seed: int
) -> tuple[BpeTrainer, TrainingSample]:
    """A trainer that has read a share of the windows, half of them from the other strand."""
    num_windows = len(windows) * sample_bases // windows.num_bases
    rng = random.Random(seed)
    chosen = sorted(rng.sample(range(len(windows)), min(max(num_windows, 1), len(windows))))
    reverse = frozenset(rng.sample(chosen, len(chosen) // 2))
    trainer = BpeTrainer("".join(LETTERS), min_frequency=MIN_FREQUENCY, max_length=MAX_TOKEN_LENGTH)
    trainer.reserve(len(chosen) * sample_length, len(chosen))
    num_bases = 0
    with _progress("sampling", len(chosen), "window") as bar:
        for index in chosen:
            bases = windows.read(index)
            trainer.add(reverse_complement(bases) if index in reverse else bases)
            num_bases += len(bases)
            bar.update()
    return trainer, TrainingSample(len(chosen), num_bases, len(reverse))


def _learn_merges(trainer: BpeTrainer, vocab_size: int, num_bases: int) -> list[tuple[str, str]]:
    """As many merges as make the vocabulary full, in order."""
    tokens = list(LETTERS)
    merges: list[tuple[str, str]] = []
    with _progress("merging", vocab_size - MIN_VOCAB_SIZE, "token") as bar:
        while missing := vocab_size - MIN_VOCAB_SIZE - len(merges):
            pairs = trainer.merge(min(missing, MERGES_AT_A_TIME))
            if not pairs:
                raise ValueError(
                    f"vocab_size ({vocab_size}): only {vocab_size - missing} tokens occur at least "
                    f"{MIN_FREQUENCY} times in the {num_bases} sampled bases; lower --vocab-size, "
                    "or give more sequence"
                )
            for left, right in pairs:
                merges.append((tokens[left], tokens[right]))
                tokens.append(tokens[left] + tokens[right])
            bar.update(len(pairs))
    return merges


def _progress(action: str, total: int | None, unit: str) -> tqdm[Any]:
    """A progress bar, on a terminal only."""
    return tqdm(total=total, desc=action, unit=unit, unit_scale=True, disable=None)
