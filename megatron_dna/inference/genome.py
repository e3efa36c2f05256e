"""A genome as a stream of segments: FASTA read in pieces, exact tokens, coordinates.

A document is a stretch between runs of 10 or more N, as in training; segments do not cross them.
Nothing here grows with the length of a contig.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pysam
import pysam.utils

from megatron_dna.genome.sequence import MIN_GAP_LENGTH, clean_sequence, find_stretches
from megatron_dna.tokenizer.bpe import DnaTokenizer

PIECE_BASES = 1 << 20
"""Bases that are read and encoded at once."""
OVERLAP_BASES = 1 << 12
"""Bases before a piece that are encoded again, to go on exactly; more where it takes more."""

Ids = npt.NDArray[np.int64]


class Genome:
    """Contigs of an indexed FASTA file, plain or bgzipped, at random access.

    Attributes:
        lengths: bases of each contig by name, in the file's order.
    """

    def __init__(self, path: Path, index_folder: Path) -> None:
        """Open the file; its index is made in `index_folder`.

        Raises:
            ValueError: it is not there, not FASTA, empty or gzipped without blocks.
        """
        if not path.is_file():
            raise ValueError(f"--fasta ({path}) is not a file")
        fai, gzi = (index_folder / f"genome{ending}" for ending in (".fai", ".gzi"))
        try:
            pysam.faidx(str(path), "--fai-idx", str(fai), "--gzi-idx", str(gzi))
            self._file = pysam.FastaFile(
                str(path),
                filepath_index=str(fai),
                filepath_index_compressed=str(gzi) if gzi.exists() else None,
            )
        except (pysam.utils.SamtoolsError, OSError, ValueError) as error:
            raise ValueError(
                f"--fasta ({path}) cannot be indexed: it must be FASTA, plain or compressed with "
                "bgzip (not gzip), each contig with lines of one length"
            ) from error
        self.path = path
        self.lengths = dict(zip(self._file.references, self._file.lengths, strict=True))
        if not sum(self.lengths.values()):
            raise ValueError(f"--fasta ({path}) has no sequence in it")

    def read(self, contig: str, start: int, end: int) -> bytes:
        """Cleaned bases [start, end), 0-based half-open.

        Raises:
            ValueError: a letter is not a nucleotide.
        """
        raw = self._file.fetch(contig, start, end).encode()
        try:
            return clean_sequence(raw, start)[0]
        except ValueError as error:
            raise ValueError(
                f"{self.path}: contig {contig!r}: {error}; is this DNA, not protein or RNA?"
            ) from error

    def stretches(self, contig: str) -> list[tuple[int, int]]:
        """Intervals between runs of 10 or more N, 0-based half-open."""
        found: list[tuple[int, int]] = []
        length = self.lengths[contig]
        for start in range(0, length, PIECE_BASES):
            piece = self.read(contig, start, min(length, start + PIECE_BASES))
            for first, last in find_stretches(piece, 1):
                if found and start + first - found[-1][1] < MIN_GAP_LENGTH:
                    found[-1] = (found[-1][0], start + last)
                else:
                    found.append((start + first, start + last))
        return found


def encode_stretch(
    read: Callable[[int, int], bytes],
    start: int,
    end: int,
    tokenizer: DnaTokenizer,
    resume: tuple[int, int] | None = None,
) -> Iterator[tuple[Ids, Ids]]:
    """The ids of a stretch, exactly those of encoding it at once, and where each token ends.

    Each piece is encoded from somewhat before where the last one stopped. An encoding is the one in
    which all neighbours are valid; so where the new piece has the very token that the last one
    stopped at, what follows it goes on exactly.

    Args:
        read: bases [start, end) of the contig.
        start: of the stretch.
        end: of the stretch.
        tokenizer: encodes.
        resume: end and length of the last token that was used; None starts with the stretch.

    Yields:
        ids and ends (in bases of the contig), both [tokens].
    """
    spans = token_spans(tokenizer)
    done, last = resume or (start, 0)
    while done < end:
        stop = min(end, done + PIECE_BASES)
        back = OVERLAP_BASES
        while True:
            first = start if last == 0 else max(start, done - back)
            ids = tokenizer.encode(read(first, stop)).astype(np.int64)
            ends = first + np.cumsum(spans[ids])
            where = int(np.searchsorted(ends, done)) if last else -1
            if not last or (ends[where] == done and spans[ids[where]] == last):
                break
            assert first > start, "the encoding of a stretch goes on from its own tokens"
            back *= 4
        keep = ends > done
        if stop < end:  # the last tokens may change with what comes after them
            keep &= ends <= stop - OVERLAP_BASES
        yield ids[keep], ends[keep]
        done = int(ends[keep][-1])
        last = int(spans[ids[keep][-1]])


def token_spans(tokenizer: DnaTokenizer) -> Ids:
    """Bases of the sequence behind each id: an unknown letter is one base."""
    spans = tokenizer.token_lengths.astype(np.int64)
    spans[tokenizer.unk_id] = 1
    return spans


@dataclass(frozen=True)
class Position:
    """Where a contig's reader goes on."""

    stretch: int = 0
    """Number of the stretch."""
    base: int = 0
    """End of the last token that was used; of no meaning where `span` is 0."""
    span: int = 0
    """Bases of that token; 0 at the start of a stretch."""


@dataclass(frozen=True)
class Segment:
    """One input of the model."""

    ids: Ids
    """[CLS], at most C - 2 tokens, [SEP]."""
    starts: Ids
    """[tokens] first base of each token, 0-based."""
    ends: Ids
    """[tokens] base after its last."""
    is_first: bool
    """Whether a stretch begins here: memory starts afresh."""
    following: Position
    """Where to go on after it."""


def read_segments(
    genome: Genome, contig: str, tokenizer: DnaTokenizer, segment_size: int, at: Position
) -> Iterator[Segment]:
    """The segments of a contig from a position on."""
    stretches = genome.stretches(contig)
    spans = token_spans(tokenizer)
    for number in range(at.stretch, len(stretches)):
        start, end = stretches[number]
        resume = (at.base, at.span) if number == at.stretch and at.span else None
        is_first = resume is None
        pieces = encode_stretch(
            lambda first, last: genome.read(contig, first, last), start, end, tokenizer, resume
        )
        for ids, ends in _regroup(pieces, segment_size - 2):
            following = Position(number, int(ends[-1]), int(spans[ids[-1]]))
            if following.base == end:
                following = Position(number + 1)
            framed = np.concatenate(([tokenizer.cls_id], ids, [tokenizer.sep_id]))
            yield Segment(framed, ends - spans[ids], ends, is_first, following)
            is_first = False


def _regroup(pieces: Iterator[tuple[Ids, Ids]], size: int) -> Iterator[tuple[Ids, Ids]]:
    """The same tokens in groups of `size`, the last one as long as it is."""
    ids, ends = np.empty(0, np.int64), np.empty(0, np.int64)
    for more_ids, more_ends in pieces:
        ids, ends = np.concatenate((ids, more_ids)), np.concatenate((ends, more_ends))
        whole = len(ids) // size * size
        for i in range(0, whole, size):
            yield ids[i : i + size], ends[i : i + size]
        ids, ends = ids[whole:], ends[whole:]
    if len(ids):
        yield ids, ends
