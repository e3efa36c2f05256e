"""Trains a BPE tokenizer on sampled subsequences of genomes, through Hugging Face `tokenizers`.

The result has the structure of GENA-LM's tokenizer.json: the same special tokens with the same ids,
the same normalizer, pre-tokenizer and post-processor. `DnaTokenizer` and `PreTrainedTokenizerFast`
both load it.
"""

from __future__ import annotations

import gzip
import itertools
import os
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from tqdm import tqdm

from megatron_dna.tokenizer.bpe import CLS, GAP, MIN_GAP_LENGTH, SEP, SPECIAL_TOKENS, UNK

LETTERS = ("A", "C", "G", "N", "T")
"""Always in the vocabulary, so that no cleaned sequence has an [UNK]."""

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + len(LETTERS)

MAX_TOKEN_LENGTH = 64
"""Bases in the longest token, as in GENA's: satellites would fill the vocabulary otherwise."""

MIN_FREQUENCY = 2
"""A pair seen once is an accident of the sample, not a word."""

_COMPLEMENT = bytes.maketrans(b"ACGNT", b"TGCNA")


@dataclass(frozen=True)
class TrainingSample:
    """What a tokenizer was trained on."""

    num_windows: int
    """Sampled subsequences."""
    num_bases: int
    """Bases in them."""
    num_reverse_complement: int
    """How many of them were read from the other strand."""


@dataclass(frozen=True)
class _Window:
    """A subsequence to train on; 0-based half-open."""

    contig: str
    start: int
    end: int


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
    replacement, a random half as reverse complement. Memory is the longest contig and some 60 bytes
    a sampled base. `tokenizers` scans whole windows: short ones train faster.

    Args:
        fasta: FASTA files, plain or gzipped.
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
    _check_at_least("vocab_size", vocab_size, MIN_VOCAB_SIZE, "6 special tokens, A C G N T")
    _check_at_least("sample_length", sample_length, 2, "a pair of letters")
    _check_at_least("num_samples", num_samples, 1, "something to train on")
    if not output.parent.is_dir():
        raise ValueError(f"output ({output}): there is no folder {output.parent}; make it first")
    windows = _draw(_find_windows(fasta, holdout, sample_length), num_samples, seed)
    reverse = set(random.Random(seed).sample(range(len(windows)), len(windows) // 2))
    sequences = [
        sequence.translate(_COMPLEMENT)[::-1] if i in reverse else sequence
        for i, sequence in enumerate(_read_windows(fasta, windows))
    ]
    tokenizer = _train([sequence.decode() for sequence in sequences], vocab_size)
    _write_atomic(output, tokenizer.to_str(pretty=True) + "\n")
    return TrainingSample(len(windows), sum(map(len, sequences)), len(reverse))


def _check_at_least(key: str, value: int, minimum: int, reason: str) -> None:
    if value < minimum:
        flag = "--" + key.replace("_", "-")
        raise ValueError(f"{key} ({value}) must be at least {minimum} ({reason}); raise {flag}")


def _find_windows(
    fasta: Sequence[str | Path], holdout: Sequence[str], sample_length: int
) -> list[_Window]:
    """Cuts all sequence that may be trained on into windows of equal size within a stretch."""
    regions = [_parse_region(text) for text in holdout]
    windows: list[_Window] = []
    seen: set[str] = set()
    for name, sequence in _read_contigs(fasta, "finding sequence"):
        if name in seen:
            raise ValueError(
                f"contig {name!r} is there twice; names must differ in all FASTA files"
            )
        seen.add(name)
        for start, end in _stretches(sequence, [r for r in regions if r.contig == name]):
            num_windows = -(-(end - start) // sample_length)
            cuts = [start + (end - start) * i // num_windows for i in range(num_windows + 1)]
            windows += [_Window(name, a, b) for a, b in itertools.pairwise(cuts)]
    absent = sorted({region.contig for region in regions} - seen)
    if absent:
        raise ValueError(f"holdout: contig {absent[0]!r} is in none of the FASTA files")
    if not windows:
        raise ValueError("holdout: nothing is left to train on; hold out less")
    return windows


def _stretches(sequence: bytes, holdout: Sequence[_Window]) -> Iterator[tuple[int, int]]:
    """Start and end of each maximal stretch without a gap and outside the held-out regions."""
    gaps = [match.span() for match in re.finditer(rb"N{%d,}" % MIN_GAP_LENGTH, sequence)]
    start = 0
    for gap_start, gap_end in sorted([*gaps, *((region.start, region.end) for region in holdout)]):
        if gap_start > start:
            yield start, gap_start
        start = max(start, gap_end)
    if start < len(sequence):
        yield start, len(sequence)


def _draw(windows: list[_Window], num_samples: int, seed: int) -> list[_Window]:
    """At most `num_samples` of the windows, in their order."""
    chosen = random.Random(seed).sample(range(len(windows)), min(num_samples, len(windows)))
    return [windows[i] for i in sorted(chosen)]


def _read_windows(fasta: Sequence[str | Path], windows: Sequence[_Window]) -> Iterator[bytes]:
    """The sequence of each window; they must be in the order of the files."""
    by_contig: dict[str, list[_Window]] = {}
    for window in windows:
        by_contig.setdefault(window.contig, []).append(window)
    for name, sequence in _read_contigs(fasta, "sampling"):
        for window in by_contig.get(name, []):
            yield sequence[window.start : window.end]


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


_CLEAN = bytes(
    ord(chr(byte).upper()) if chr(byte) in "ACGTNacgtn" else ord("N") for byte in range(256)
)


def _parse_region(text: str) -> _Window:
    match = re.fullmatch(r"(.+):([\d,]+)-([\d,]+)", text)
    if match is None:
        return _Window(text, 0, sys.maxsize)
    start, end = (int(number.replace(",", "")) for number in match.groups()[1:])
    if not 1 <= start <= end:
        raise ValueError(
            f"holdout ({text}) must be CONTIG or CONTIG:START-END with 1 <= START <= END"
        )
    return _Window(match[1], start - 1, end)


def _read_contigs(fasta: Sequence[str | Path], action: str) -> Iterator[tuple[str, bytes]]:
    """Name and cleaned sequence of every contig, with a progress bar on a terminal."""
    with tqdm(desc=action, unit="bp", unit_scale=True, disable=None) as progress:
        for path in fasta:
            is_gzip = Path(path).suffix == ".gz"
            name, lines = "", list[bytes]()
            with gzip.open(path) if is_gzip else Path(path).open("rb") as file:
                for line in itertools.chain(file, [b">"]):
                    if not line.startswith(b">"):
                        lines.append(line.strip())
                        continue
                    if name:
                        sequence = b"".join(lines).translate(_CLEAN)
                        progress.update(len(sequence))
                        yield name, sequence
                    name, lines = (
                        line[1:].decode().split(maxsplit=1)[0] if line[1:].strip() else "",
                        [],
                    )
