"""Preprocessed genomes to micro-batches, the same samples at every number of ranks and workers.

Sample n of a split is a pure function of (data.seed, n): the blend says which source it is from,
the source's window index which stretch of which document, the masker what is masked. So nothing
about the loader needs saving but the number of consumed samples, and a run resumes at the exact
sample under another data-parallel size, micro-batch size or number of workers.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from megatron_dna.config import BlendSource, Config, ConfigError
from megatron_dna.data.blend import Blend
from megatron_dna.data.indexed import IndexedTokens
from megatron_dna.data.masking import MaskedSegments, Masker, VocabularyError
from megatron_dna.data.recall import RecallTask
from megatron_dna.data.windows import WindowIndex
from megatron_dna.tokenizer.bpe import DnaTokenizer

logger = logging.getLogger(__name__)

Split = Literal["train", "valid"]

FRAME_TOKENS = 2
"""[CLS] and [SEP] of a segment."""

_STREAMS: dict[Split, int] = {"train": 0, "valid": 1}


@dataclass(frozen=True)
class Batch:
    """One micro-batch of S-segment windows, CPU tensors."""

    input_ids: Tensor
    """int64 [S, micro_batch, C]: masked [CLS] + C - 2 tokens + [SEP], padded in short documents."""
    attention_mask: Tensor | None
    """bool [S, micro_batch, C], True where not padding; None when nothing is padded."""
    masked_positions: Tensor
    """int64 [S, micro_batch, k] positions in the segment, ascending; unused slots 0."""
    labels: Tensor
    """int64 [S, micro_batch, k] original ids at those positions; unused slots 0."""
    loss_mask: Tensor
    """float32 [S, micro_batch, k] 1 for used slots, 0 for unused."""
    num_tokens: Tensor
    """int64 [S, micro_batch] content tokens: no frame, no padding."""
    num_bases: Tensor
    """int64 [S, micro_batch] bases they spell."""
    samples: Tensor
    """int64 [micro_batch] sample numbers."""
    first_segment: int = 0
    """Segments of the samples' windows that were cut off before this part of them."""


def build_loader(
    config: Config,
    split: Split,
    consumed_samples: int,
    dp_rank: int,
    dp_size: int,
    log: bool = True,
) -> Iterator[Batch]:
    """Endless micro-batches of one data-parallel rank, from sample `consumed_samples` on.

    Micro-batch t starts at sample consumed_samples + (t * dp_size + dp_rank) * micro_batch_size: so
    the samples of a global batch do not depend on dp_size. Training windows have a random phase
    each epoch, validation windows none, and each evaluation from 0 on is the same.

    Raises:
        ConfigError: the split has no source, a pair is damaged, or was made with another tokenizer.
        ValueError: (from the iterator) a token id is outside the tokenizer's vocabulary.
    """
    if consumed_samples < 0 or not 0 <= dp_rank < dp_size:
        raise ValueError(
            f"consumed_samples ({consumed_samples}) must not be negative, and dp_rank ({dp_rank}) "
            f"must be below dp_size ({dp_size})"
        )
    if config.data.kind == "recall":
        return RecallBatches(config, split, consumed_samples, dp_rank, dp_size)
    dataset = _MicroBatches(config, split, consumed_samples, dp_rank, dp_size)
    reader = dataset.open()
    if log:
        reader.log_summary()
    # Workers send NumPy arrays: through a pipe, while each tensor would cost a file descriptor.
    loader: DataLoader[MaskedSegments] = DataLoader(
        dataset,
        batch_size=None,
        sampler=_Forever(),
        num_workers=config.data.num_workers,
        collate_fn=_unchanged,
        # The loader seeds its workers from this; the global generator stays untouched.
        generator=torch.Generator(),
    )
    return map(to_batch, loader)


class RecallBatches(Iterator[Batch]):
    """Endless micro-batches of recall data, of as many segments as asked for."""

    def __init__(
        self, config: Config, split: Split, consumed_samples: int, dp_rank: int, dp_size: int
    ) -> None:
        """See `build_loader`."""
        self.task = RecallTask.of(config, _STREAMS[split])
        self._num_segments = config.memory.max_n_segments
        self._micro_batch_size = config.train.micro_batch_size
        self._first, self._dp_rank, self._dp_size = consumed_samples, dp_rank, dp_size
        self._numbers = itertools.count()

    def __next__(self) -> Batch:
        """The next micro-batch, of max_n_segments segments."""
        return next(self.with_segments(self._num_segments))

    def with_segments(self, num_segments: int) -> Iterator[Batch]:
        """The same micro-batches from here on, but of `num_segments` segments.

        All iterators of this object take from one sequence of samples.
        """
        return (
            to_batch(self.task.make(samples, num_segments)) for samples in self.sample_numbers()
        )

    def sample_numbers(self) -> Iterator[npt.NDArray[np.int64]]:
        """The samples of each coming micro-batch, int64 [micro_batch]; takes them."""
        for number in self._numbers:
            count = self._micro_batch_size
            first = self._first + (number * self._dp_size + self._dp_rank) * count
            yield np.arange(first, first + count, dtype=np.int64)


class Place(NamedTuple):
    """Where a sample is read: tokens [start, start + length) of a document."""

    prefix: str
    document: int
    start: int
    length: int


class SampleReader:
    """Reads any samples of a split. Holds memory maps: each process opens its own."""

    def __init__(self, config: Config, split: Split) -> None:
        """Opens and checks all sources of a split.

        Raises:
            ConfigError: the split has no source, a pair is damaged, or was made with another
                tokenizer.
            ValueError: data.tokenizer is not a tokenizer of GENA's kind.
        """
        sources = {"train": config.data.train, "valid": config.data.valid}[split]
        if not sources:
            raise ConfigError(f"data.{split} ([]) must list at least one {{prefix, weight}}")
        self._split = split
        self._window_tokens = config.memory.max_n_segments * (config.data.segment_size - 2)
        self._tokenizer = DnaTokenizer.from_file(config.data.tokenizer)
        self._sources = [
            _open_source(f"data.{split}[{i}].prefix", source, self._tokenizer)
            for i, source in enumerate(sources)
        ]
        self._indexes = [
            WindowIndex(
                tokens.lengths, self._window_tokens, seed=config.data.seed, source=i,
                random_phase=split == "train",
            )
            for i, tokens in enumerate(self._sources)
        ]  # fmt: skip
        self._blend = Blend([source.weight for source in sources])
        self._masker = Masker(config, self._tokenizer, stream=_STREAMS[split])

    def read(self, first: int, count: int) -> MaskedSegments:
        """Samples [first, first + count) as a micro-batch.

        Raises:
            ValueError: a token id is outside the tokenizer's vocabulary; names file and fix.
        """
        samples = np.arange(first, first + count, dtype=np.int64)
        places = self._locate(samples.tolist())
        windows = [self._sources[source].read(*place) for source, place in places]
        try:
            return self._masker.mask(windows, samples)
        except VocabularyError as error:
            prefix = self._sources[places[error.slot][0]].prefix
            raise ValueError(
                f"{prefix}.bin: {error}; it was made with another tokenizer than data.tokenizer, "
                "or is damaged: give the tokenizer it was made with"
            ) from error

    def places(self, samples: Iterable[int]) -> list[Place]:
        """Where samples are read."""
        return [
            Place(self._sources[source].prefix, *place) for source, place in self._locate(samples)
        ]

    def _locate(self, samples: Iterable[int]) -> list[tuple[int, tuple[int, int, int]]]:
        """Source, and document, first token and number of tokens, of each sample."""
        located = [self._blend.locate(n) for n in samples]
        places: dict[int, tuple[int, tuple[int, int, int]]] = {}
        for source in {source for source, _ in located}:
            slots = [slot for slot, place in enumerate(located) if place[0] == source]
            numbers = np.array([located[slot][1] for slot in slots], np.int64)
            found = zip(*(a.tolist() for a in self._indexes[source].locate(numbers)), strict=True)
            for slot, (document, start, length) in zip(slots, found, strict=True):
                places[slot] = source, (document, start, length)
        return [places[slot] for slot in range(len(located))]

    def log_summary(self) -> None:
        """One line a source: what there is, and how much of it is padded."""
        for tokens, index in zip(self._sources, self._indexes, strict=True):
            num_short = int(((tokens.lengths > 0) & (tokens.lengths < self._window_tokens)).sum())
            logger.info(
                "data.%s %s: %d documents, %d tokens, %d windows of %d tokens an epoch, %d padded",
                self._split, tokens.prefix, len(tokens), tokens.num_tokens, len(index),
                self._window_tokens, num_short,
            )  # fmt: skip


class _MicroBatches(Dataset[MaskedSegments]):
    """Micro-batch number -> micro-batch of one rank. Pickles without what it has opened."""

    def __init__(
        self, config: Config, split: Split, first: int, dp_rank: int, dp_size: int
    ) -> None:
        self._config, self._split, self._first = config, split, first
        self._dp_rank, self._dp_size = dp_rank, dp_size
        self._reader: SampleReader | None = None

    def open(self) -> SampleReader:
        """The reader of this process."""
        if self._reader is None:
            self._reader = SampleReader(self._config, self._split)
        return self._reader

    def __getitem__(self, number: int) -> MaskedSegments:
        count = self._config.train.micro_batch_size
        first = self._first + (number * self._dp_size + self._dp_rank) * count
        return self.open().read(first, count)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


class _Forever(Sampler[int]):
    """0, 1, 2, ..."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


def _unchanged(segments: Any) -> Any:
    return segments


def to_batch(segments: MaskedSegments) -> Batch:
    """The same arrays as tensors, without a copy."""
    segment_size = segments.input_ids.shape[-1]
    num_real = torch.from_numpy(segments.num_real)
    is_padded = bool((num_real < segment_size).any())
    return Batch(
        input_ids=torch.from_numpy(segments.input_ids),
        attention_mask=torch.arange(segment_size) < num_real.unsqueeze(-1) if is_padded else None,
        masked_positions=torch.from_numpy(segments.masked_positions),
        labels=torch.from_numpy(segments.labels),
        loss_mask=torch.from_numpy(segments.loss_mask),
        num_tokens=num_real.long() - FRAME_TOKENS,
        num_bases=torch.from_numpy(segments.num_bases),
        samples=torch.from_numpy(segments.samples),
    )


def _open_source(key: str, source: BlendSource, tokenizer: DnaTokenizer) -> IndexedTokens:
    try:
        tokens = IndexedTokens(source.prefix)
        _check_manifest(source.prefix, tokenizer)
    except ValueError as error:
        raise ConfigError(f"{key} ({source.prefix}): {error}") from error
    return tokens


def _check_manifest(prefix: str, tokenizer: DnaTokenizer) -> None:
    """Compares tokenizers, if the manifest that preprocessing wrote is beside the pair."""
    stem = prefix.removesuffix("_train").removesuffix("_valid")
    path = Path(f"{stem}.json")
    if not path.is_file():
        logger.info("%s has no manifest %s: its tokenizer is not checked", prefix, path)
        return
    try:
        manifest = json.loads(path.read_bytes())
        sha256 = manifest["tokenizer"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"manifest {path} must be JSON with tokenizer.sha256 ({error!r}); restore it or make "
            "the data again with tools/preprocess_genome.py"
        ) from error
    if sha256 != tokenizer.sha256:
        raise ValueError(
            f"it was made with another tokenizer (sha256 {sha256}, by {path}) than data.tokenizer "
            f"(sha256 {tokenizer.sha256}); give that one, or make the data again"
        )
