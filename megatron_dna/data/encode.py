"""Documents to ids by several threads, in order, whatever the length of a document."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from megatron_dna.genome.corpus import Document
from megatron_dna.genome.store import SequenceLike
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.pieces import OVERLAP, PIECE_LENGTH, Ids, Piece, Stitcher, cut_pieces

MAX_PENDING_PER_WORKER = 64
"""Pieces that are encoded ahead for each worker, where they are short."""


class _Task(NamedTuple):
    """A piece that a thread encodes, or will."""

    document: Document
    stitcher: Stitcher
    piece: Piece
    is_last: bool
    ids: Future[Ids]


def encode_in_order(
    items: Iterable[tuple[Document, SequenceLike]],
    tokenizer: DnaTokenizer,
    workers: int,
    piece_length: int = PIECE_LENGTH,
    overlap: int = OVERLAP,
) -> Iterator[tuple[Document, Ids, bool]]:
    """The ids of each document, a part at a time.

    Memory: some pieces for each worker.

    Args:
        items: documents, each with its sequence on its own strand.
        tokenizer: encodes them.
        workers: threads.
        piece_length, overlap: see `cut_pieces`; the ids do not depend on them.

    Yields:
        The document, its next ids, and whether they are its last.

    Raises:
        ValueError: the tokenizer cannot spell a letter; names contig and position.
    """
    pending: deque[_Task] = deque()
    num_bases = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    try:
        for task in _submit(items, tokenizer, pool, piece_length, overlap):
            pending.append(task)
            num_bases += task.piece.end - task.piece.start
            while (
                num_bases > 2 * workers * piece_length
                or len(pending) > workers * MAX_PENDING_PER_WORKER
            ):
                first = pending.popleft()
                num_bases -= first.piece.end - first.piece.start
                yield from _join(first)
        while pending:
            yield from _join(pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(
    items: Iterable[tuple[Document, SequenceLike]],
    tokenizer: DnaTokenizer,
    pool: ThreadPoolExecutor,
    piece_length: int,
    overlap: int,
) -> Iterator[_Task]:
    """Gives every piece to the threads, when it is asked for."""
    for document, sequence in items:
        encode = partial(_encode, tokenizer, document, sequence)
        stitcher = Stitcher(tokenizer, encode)
        for piece in cut_pieces(sequence.length, piece_length, overlap):
            is_last = piece.end == sequence.length
            yield _Task(document, stitcher, piece, is_last, pool.submit(encode, *piece))


def _join(task: _Task) -> Iterator[tuple[Document, Ids, bool]]:
    """What is certain of a document's ids with this piece."""
    ids = task.stitcher.add(task.ids.result(), task.piece)
    if len(ids):
        yield task.document, ids, False
    if task.is_last:
        yield task.document, task.stitcher.finish(), True


def _encode(
    tokenizer: DnaTokenizer, document: Document, sequence: SequenceLike, start: int, end: int
) -> Ids:
    """Ids of a part of a document; raises ValueError unless they spell it in full."""
    bases = sequence.read(start, end)
    ids = tokenizer.encode(bases)
    lengths = tokenizer.token_lengths[ids]
    if lengths.sum(dtype=np.int64) != len(bases):
        spelt = int(lengths[: int(np.argmin(lengths))].sum(dtype=np.int64))
        offset = start + spelt
        position = document.start + offset if document.strand == "+" else document.end - 1 - offset
        raise ValueError(
            f"{document.sequence}, position {position + 1} (1-based): the tokenizer has no token "
            f"for {bases[spelt : spelt + 1].decode()!r}; train one whose alphabet has it"
        )
    return ids
