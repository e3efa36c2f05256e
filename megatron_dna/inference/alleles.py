"""The two alleles of a variant, as bases in their surroundings and as tokens.

Nothing here depends on which allele is the reference, nor on how a VCF file writes an indel that
can be aligned in several places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from megatron_dna.genome.sequence import MIN_GAP_LENGTH, find_stretches, reverse_complement
from megatron_dna.inference.genome import Ids
from megatron_dna.tokenizer.bpe import DnaTokenizer

FLANK_BASES_PER_TOKEN = 4
"""Bases on either side that are tokenised, for each token of a segment: 8 bases a token in all."""
MAX_REACH = 128
"""Bases beside a variant within which its alleles must be made of the same tokens again."""


@dataclass(frozen=True)
class Change:
    """Bases of one strand: `left + ref + right` becomes `left + alt + right`."""

    left: bytes
    ref: bytes
    alt: bytes
    right: bytes

    def other_strand(self) -> Change:
        """The same, read from the other strand."""
        return Change(*map(reverse_complement, (self.right, self.ref, self.alt, self.left)))


@dataclass(frozen=True)
class Tokens:
    """An allele of one strand as ids; `left` and `right` are those of the other allele too."""

    left: tuple[int, ...]
    changed: tuple[int, ...]
    right: tuple[int, ...]


def place(
    read: Callable[[int, int], bytes], length: int, start: int, ref: bytes, alt: bytes, flank: int
) -> Change | None:
    """A variant in its surroundings.

    Bases that both alleles begin or end with are left out. What is then a pure insertion or
    deletion gets all bases over which it could be shifted, so that it is the same wherever it was
    aligned, and one more on either side, so that none of the alleles is empty.

    Source: the fully-justified alleles of SPDI (Holmes et al. 2020); differs: the base more.

    Args:
        read: cleaned bases [start, end) of the contig.
        length: of the contig.
        start: first base of `ref`, 0-based.
        ref: what the contig has there; A, C, G and T only.
        alt: what it has instead; A, C, G and T only.
        flank: bases on either side; fewer at the contig's ends and at runs of 10 or more N.

    Returns:
        None if the variant could be shifted by `flank` bases or more.
    """
    end = start + len(ref)
    reach = 2 * flank + MIN_GAP_LENGTH
    offset = max(0, start - reach)
    text = read(offset, min(length, end + reach))
    start, end = start - offset, end - offset
    first, last = next((a, b) for a, b in find_stretches(text) if a <= start and end <= b)
    front = _num_shared(ref, alt)
    back = _num_shared(ref[front:][::-1], alt[front:][::-1])
    start, end = start + front, end - back
    unit = ref[front : len(ref) - back] + alt[front : len(alt) - back]
    before = after = 0
    is_indel = len(unit) in (end - start, len(alt) - front - back)  # one of the alleles is empty
    if is_indel:
        if unit:
            before = _num_shared(text[first:start][::-1], (text[first:start] + unit)[::-1])
            after = _num_shared(text[end:last], unit + text[end:last])
        if max(before, after) >= flank:
            return None
        before, after = min(before + 1, start - first), min(after + 1, last - end)
    shared = text[start - before : start], text[end : end + after]
    return Change(
        text[max(first, start - before - flank) : start - before],
        shared[0] + ref[front : len(ref) - back] + shared[1],
        shared[0] + alt[front : len(alt) - back] + shared[1],
        text[end + after : min(last, end + after + flank)],
    )


def _num_shared(a: bytes, b: bytes) -> int:
    """Letters that both begin with."""
    shorter = min(len(a), len(b))
    differ = np.frombuffer(a, np.uint8, shorter) != np.frombuffer(b, np.uint8, shorter)
    return int(differ.argmax()) if differ.any() else shorter


def tokenise(
    change: Change, tokenizer: DnaTokenizer, spans: Ids, segment_size: int
) -> tuple[Tokens, Tokens] | None:
    """Both alleles of a strand as tokens of a segment.

    Each allele is encoded with its flanks. `changed` are the tokens between the last border before
    the variant up to which, and the first behind it from which on, both encodings are the same. If
    that is more than `MAX_REACH` bases away, the flank is encoded by itself instead. Context is
    taken alike for both alleles: what the segment has room for beside the longer one, half on
    either side where there is enough.

    Args:
        change: of one strand.
        tokenizer: encodes.
        spans: bases of each of its ids; see `DnaTokenizer.token_spans`.
        segment_size: tokens of an input, [CLS] and [SEP] included.

    Returns:
        Reference and alternative; None if an allele alone takes more than half of the segment.
    """
    apart = (False, False)
    while True:
        ref, alt = (
            _encode(change, allele, tokenizer, apart) for allele in (change.ref, change.alt)
        )
        left = _common(ref, alt, spans, len(change.left))
        right = _common(ref[::-1], alt[::-1], spans, len(change.right))
        reach_left = len(change.left) - int(spans[ref[:left]].sum())
        reach_right = len(change.right) - int(spans[ref[len(ref) - right :]].sum())
        too_far = (apart[0] or reach_left > MAX_REACH, apart[1] or reach_right > MAX_REACH)
        if too_far == apart:
            break
        apart = too_far
    longer = max(len(ref), len(alt)) - left - right
    room = segment_size - 2
    if longer > room // 2:
        return None
    keep_left = min(left, max((room - longer) // 2, room - longer - right))
    keep_right = min(right, room - longer - keep_left)
    allele_ref, allele_alt = (
        Tokens(
            tuple(ids[left - keep_left : left].tolist()),
            tuple(ids[left : len(ids) - right].tolist()),
            tuple(ids[len(ids) - right : len(ids) - right + keep_right].tolist()),
        )
        for ids in (ref, alt)
    )
    return allele_ref, allele_alt


def _encode(
    change: Change, allele: bytes, tokenizer: DnaTokenizer, apart: tuple[bool, bool]
) -> Ids:
    """Ids of an allele with its flanks, those encoded by themselves that are to be `apart`."""
    texts = [change.left, allele] if apart[0] else [change.left + allele]
    texts = [*texts, change.right] if apart[1] else [*texts[:-1], texts[-1] + change.right]
    return np.concatenate([tokenizer.encode(text).astype(np.int64) for text in texts])


def _common(a: Ids, b: Ids, spans: Ids, bases: int) -> int:
    """Tokens that both begin with and that end within so many bases."""
    shorter = min(len(a), len(b))
    differ = a[:shorter] != b[:shorter]
    num = int(differ.argmax()) if differ.any() else shorter
    return int(np.searchsorted(np.cumsum(spans[a[:num]]), bases, side="right"))
