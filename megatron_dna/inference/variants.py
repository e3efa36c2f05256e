"""How much less likely a model finds a genome with a variant than without, variant by variant.

    log_ratio = log p(alt tokens | context) - log p(ref tokens | context)
                + (len(alt) - len(ref)) log 4
    distance  = | mean state of the context around alt - the same around ref |

both averaged over the two strands; see docs/variants.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dna.inference.alleles import (
    FLANK_BASES_PER_TOKEN,
    Tokens,
    place,
    tokenise,
)
from megatron_dna.inference.genome import Genome
from megatron_dna.inference.masked import MaskedModel

OUTCOMES = ("scored", "symbolic", "ambiguous", "too long")
"""What can become of an alternative; only those `scored` have values."""
SCORE = np.dtype([("log_ratio", "<f8"), ("distance", "<f8"), ("outcome", "u1")])
Scores = npt.NDArray[np.void]

_SEQUENCE = re.compile(r"[ACGTRYSWKMBDHVN]+")


class Variant(NamedTuple):
    """The bases `ref` at `start` (0-based) of a contig become `alt`; both are as in a VCF file."""

    contig: str
    start: int
    ref: str
    alt: str


class Scorer:
    """Scores variants of a genome with a model."""

    def __init__(self, model: MaskedModel, genome: Genome, batch_size: int) -> None:
        """`batch_size`: inputs that go through the model at once."""
        if batch_size < 1:
            raise ValueError(f"--batch-size ({batch_size}) must be at least 1")
        self.model, self.genome, self.batch_size = model, genome, batch_size
        self._spans = model.tokenizer.token_spans

    def __call__(self, variants: Sequence[Variant]) -> Scores:
        """Score variants whose `ref` is what the genome has.

        Returns:
            `SCORE` [variants]: `outcome` is an index into `OUTCOMES`; values are NaN where there
            is none. `distance` is also NaN where a variant leaves no context.

        Raises:
            ValueError: there is a letter around a variant that is not a nucleotide.
        """
        scores = np.zeros(len(variants), SCORE)
        scores["log_ratio"] = scores["distance"] = np.nan
        strands: list[tuple[int, Tokens, Tokens]] = []
        for i, variant in enumerate(variants):
            outcome, found = self._tokens(variant)
            scores["outcome"][i] = OUTCOMES.index(outcome)
            strands += [(i, ref, alt) for ref, alt in found]
        if not strands:
            return scores
        numbers: dict[Tokens, int] = {}
        pairs = np.array(
            [
                [numbers.setdefault(tokens, len(numbers)) for tokens in (ref, alt)]
                for _, ref, alt in strands
            ]
        ).reshape(-1, 2, 2)  # [variants, strands, alleles]
        alleles = list(numbers)
        log_p = self.model.log_probabilities(alleles, self.batch_size)[pairs]
        pooled = self.model.pool_flanks(alleles, self.batch_size)[pairs]
        where = [i for i, _, _ in strands[::2]]
        gained = np.array([len(variants[i].alt) - len(variants[i].ref) for i in where])
        scores["log_ratio"][where] = np.diff(log_p)[..., 0].mean(1) + gained * np.log(4)
        moved = np.linalg.norm(np.diff(pooled, axis=2)[:, :, 0], axis=-1)
        scores["distance"][where] = moved.mean(1)
        return scores

    def _tokens(self, variant: Variant) -> tuple[str, list[tuple[Tokens, Tokens]]]:
        """What becomes of a variant; reference and alternative on both strands if it is scored."""
        contig, start, *texts = variant
        ref, alt = (text.upper() for text in texts)
        if not _SEQUENCE.fullmatch(alt):
            return "symbolic", []
        if not set(ref + alt) <= set("ACGT"):
            return "ambiguous", []
        change = place(
            lambda first, last: self.genome.read(contig, first, last),
            self.genome.lengths[contig], start, ref.encode(), alt.encode(),
            FLANK_BASES_PER_TOKEN * self.model.segment_size,
        )  # fmt: skip
        if change is None:
            return "too long", []
        strands = [
            tokenise(strand, self.model.tokenizer, self._spans, self.model.segment_size)
            for strand in (change, change.other_strand())
        ]
        found = [pair for pair in strands if pair is not None]
        return ("scored", found) if len(found) == 2 else ("too long", [])
