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

from megatron_dna.genome.sequence import StretchFinder, clean_sequence
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.pieces import (
    OVERLAP,
    PIECE_LENGTH,
    Stitcher,
    cut_pieces,
)

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
        finder = StretchFinder()
        length = self.lengths[contig]
        for start in range(0, length, PIECE_LENGTH):
            finder.add(self.read(contig, start, min(length, start + PIECE_LENGTH)))
        return finder.stretches()


def encode_stretch(
    read: Callable[[int, int], bytes],
    start: int,
    end: int,
    tokenizer: DnaTokenizer,
    piece_length: int = PIECE_LENGTH,
    overlap: int = OVERLAP,
) -> Iterator[tuple[Ids, Ids]]:
    """The ids of a stretch, exactly those of encoding it at once, and where each token ends.

    Args:
        read: bases [start, end) of the contig.
        start: of the stretch, or the end of one of its tokens: what follows a border of tokens is
            encoded by itself as it is in the whole.
        end: of the stretch.
        tokenizer: encodes.
        piece_length, overlap: see `cut_pieces`; the ids do not depend on them.

    Yields:
        ids and ends (in bases of the contig), both [tokens].
    """

    def encode(first: int, last: int) -> npt.NDArray[np.int32]:
        return tokenizer.encode(read(start + first, start + last))

    stitcher = Stitcher(tokenizer, encode)
    spans = tokenizer.token_spans
    done = start
    for piece in cut_pieces(end - start, piece_length, overlap):
        parts = [stitcher.add(encode(*piece), piece)]
        if start + piece.end == end:
            parts.append(stitcher.finish())
        for ids in parts:
            ends = done + np.cumsum(spans[ids], dtype=np.int64)
            yield ids.astype(np.int64), ends
            done = int(ends[-1]) if len(ends) else done


@dataclass(frozen=True)
class Position:
    """Where a contig's reader goes on."""

    stretch: int = 0
    """Number of the stretch."""
    base: int = 0
    """End of the last token that was used; 0 at the start of a stretch."""


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
    spans = tokenizer.token_spans
    for number in range(at.stretch, len(stretches)):
        start, end = stretches[number]
        is_first = number != at.stretch or not at.base
        pieces = encode_stretch(
            lambda first, last: genome.read(contig, first, last),
            start if is_first else at.base,
            end,
            tokenizer,
        )
        for ids, ends in _regroup(pieces, segment_size - 2):
            following = Position(number, int(ends[-1]))
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
