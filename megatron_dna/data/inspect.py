"""What is in a .bin/.idx pair: how much, of what, from where, and which bases any tokens spell.

Tokens are counted in a few MB of memory, whatever their number; what it takes for each document is
in docs/data.md. Where sequence comes from is known from the manifest and the coordinate map that
preprocessing wrote beside it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_dna.data.coordinates import DocumentCoordinates
from megatron_dna.data.counts import count_tokens
from megatron_dna.data.indexed import IndexedTokens
from megatron_dna.genome.coordinates import Positions
from megatron_dna.genome.corpus import SPLITS
from megatron_dna.tokenizer.bpe import DnaTokenizer

BASES = "ACGTN"
REFERENCE = "reference"
"""The name of what is from no sample."""
_CHUNK_TOKENS = 1 << 22
_NONE = (0, 0, 0)  # documents, bases, tokens


@dataclass(frozen=True)
class Origin:
    """A stretch of the reference, 0-based half-open, forward strand; "-" is read backwards.

    Attributes:
        sample: whose haplotype lies there; "" for the reference itself.
        haplotype: 1 or 2; 0 for the reference itself.
    """

    contig: str
    start: int
    end: int
    strand: str
    sample: str = ""
    haplotype: int = 0

    def __str__(self) -> str:
        place = f"{self.contig}:{self.start}-{self.end} ({self.strand})"
        return f"{place} {self.sample} haplotype {self.haplotype}" if self.sample else place


@dataclass(frozen=True)
class Share:
    """How much of a dataset is from a contig, a FASTA file (all its contigs), or a sample."""

    name: str
    fasta: str
    """Empty for a sample."""
    length: int
    """Bases of the contig or file, on one strand; 0 for a sample."""
    documents: int
    bases: int
    """Of the documents; both strands count where both are there."""
    tokens: int


@dataclass(frozen=True)
class Window:
    """Some tokens of a document, decoded.

    Attributes:
        document: its number.
        start: first token in the document.
        ids: int32 [tokens].
        bases: what they spell, on the document's strand.
        origin: where that lies, if the manifest tells.
    """

    document: int
    start: int
    ids: npt.NDArray[np.int32]
    bases: str
    origin: Origin | None


class Dataset:
    """A pair, its tokenizer, and its manifest if there is one.

    Attributes:
        prefix: of the pair.
        tokens: its documents.
        tokenizer: spells them.
        contigs: what is from each contig and its haplotypes, or None without a manifest.
        samples: what is from the haplotypes of each sample, and from the reference.
    """

    def __init__(self, prefix: str, tokenizer: Path | None = None) -> None:
        """Opens a pair.

        Args:
            prefix: without extension, such as `runs/chr20_train`.
            tokenizer: its tokenizer.json; by default the one that the manifest names.

        Raises:
            ValueError: the pair, the manifest or the tokenizer is not there, damaged, or not of the
                others; names file and fix.
        """
        if not Path(f"{prefix}.idx").exists() and Path(f"{prefix}_train.idx").exists():
            raise ValueError(f"{prefix} has more than one pair: give {prefix}_train or _valid")
        self.prefix = prefix
        self.tokens = IndexedTokens(prefix)
        path, split = _find_manifest(prefix)
        manifest = _read_manifest(path) if path else None
        self.tokenizer = _open_tokenizer(prefix, tokenizer, manifest)
        self.contigs: list[Share] | None = None
        self.samples: list[Share] = []
        self._places: DocumentCoordinates | None = None
        if path and manifest:
            self._places = places = DocumentCoordinates.open(Path(prefix))
            listed = [row["tokens"] for row in manifest["documents"][split]]
            if (
                len(places) != len(self.tokens)
                or listed != self.tokens.lengths[: len(listed)].tolist()
            ):
                raise ValueError(
                    f"manifest {path} or {places.path} lists other documents than {prefix}.idx "
                    "has; one of them is of another run: make the data again with "
                    "tools/preprocess_genome.py"
                )
            by_contig = self._sum(places, "contig")
            self.contigs = [
                Share(row["name"], row["fasta"], row["bases"], *by_contig.get(row["name"], _NONE))
                for row in manifest["contigs"]
            ]
            self.samples = [
                Share(name or REFERENCE, "", 0, *sums)
                for name, sums in self._sum(places, "sample").items()
            ]

    @cached_property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """How often each id occurs, int64 [vocab_size].

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        return count_tokens(self.tokens, self.tokenizer)

    @property
    def num_bases(self) -> int:
        """Bases that all tokens spell."""
        return int(self.token_counts @ self.tokenizer.token_lengths.astype(np.int64))

    @cached_property
    def base_counts(self) -> dict[str, int]:
        """How often A, C, G, T and N occur, exactly."""
        spelt = [self.tokenizer.decode([i]) for i in range(self.tokenizer.vocab_size)]
        table = np.array([[bases.count(base) for base in BASES] for bases in spelt], np.int64)
        return dict(zip(BASES, (self.token_counts @ table).tolist(), strict=True))

    @property
    def gc(self) -> float | None:
        """Share of G and C among A, C, G and T; None if there is none of them."""
        known = sum(self.base_counts[base] for base in "ACGT")
        return (self.base_counts["G"] + self.base_counts["C"]) / known if known else None

    @property
    def sources(self) -> list[Share]:
        """What is from each FASTA file, the largest first."""
        sources: dict[str, Share] = {}
        for contig in self.contigs or ():
            known = sources.get(contig.fasta, Share(contig.fasta, contig.fasta, 0, 0, 0, 0))
            sources[contig.fasta] = replace(
                known,
                length=known.length + contig.length,
                documents=known.documents + contig.documents,
                bases=known.bases + contig.bases,
                tokens=known.tokens + contig.tokens,
            )
        return sorted(sources.values(), key=lambda source: -source.tokens)

    def window(self, number: int, length: int) -> Window:
        """Window `number` of `length` tokens, in the order of the file.

        A document's last window may be shorter; no window has tokens of two documents.

        Raises:
            ValueError: there is no such window.
        """
        if length < 1:
            raise ValueError(f"length ({length}) must be at least 1 token")
        ends = self.tokens.lengths // np.int64(-length)
        np.negative(ends, out=ends)  # windows of each document, rounded up
        np.cumsum(ends, out=ends)
        if not 0 <= number < ends[-1]:
            raise ValueError(
                f"window ({number}) must be between 0 and {ends[-1] - 1}: {self.prefix} has "
                f"{ends[-1]} windows of {length} tokens"
            )
        document = int(np.searchsorted(ends, number, side="right"))
        first = int(ends[document - 1]) if document else 0
        start = (number - first) * length
        return self.decode(document, start, length)

    def decode(self, document: int, start: int, length: int) -> Window:
        """Tokens [start, start + length) of a document, or as many of them as it has.

        Raises:
            ValueError: there is no such document, or no token at `start`.
        """
        if not 0 <= document < len(self.tokens):
            raise ValueError(
                f"document ({document}) must be between 0 and {len(self.tokens) - 1}: "
                f"{self.prefix} has {len(self.tokens)} documents"
            )
        num_tokens = int(self.tokens.lengths[document])
        if length < 1 or not 0 <= start < num_tokens:
            raise ValueError(
                f"start ({start}) must be between 0 and {num_tokens - 1} and length ({length}) at "
                f"least 1: document {document} has {num_tokens} tokens"
            )
        ids = self.tokens.read(document, start, min(length, num_tokens - start)).astype(np.int32)
        bases = self.tokenizer.decode(ids)
        return Window(document, start, ids, bases, self._origin(document, start, len(bases)))

    def origin(self, document: int) -> Origin | None:
        """Where a document lies, or None without a manifest."""
        if self._places is None:
            return None
        return self._locate(
            self._places, document, 0, int(self._places.arrays["document_length"][document])
        )

    def stretches(self, contig: str) -> Iterator[tuple[Positions, Positions]]:
        """Starts and ends, on the reference, of what documents have of a contig.

        Those of one sequence at a time: of the contig itself, or of a haplotype.
        """
        if self._places is None:
            return
        bounds = self._places.first_documents()
        for sequence, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
            if self._places.sequence(sequence)[0] == contig:
                of = self._places.arrays
                starts = of["document_start"][first:last].astype(np.int64)
                ends = starts + of["document_length"][first:last]
                found = self._places.sequence_edits(sequence).to_reference(starts, ends)
                yield found.starts, found.ends

    def _origin(self, document: int, start: int, num_bases: int) -> Origin | None:
        """Where the bases from token `start` of a document lie, if there are any."""
        if self._places is None or not num_bases:
            return None
        lengths = self.tokenizer.token_lengths
        before = sum(
            int(lengths[self.tokens.read(document, at, min(_CHUNK_TOKENS, start - at))].sum())
            for at in range(0, start, _CHUNK_TOKENS)
        )
        return self._locate(self._places, document, before, before + num_bases)

    def _locate(self, places: DocumentCoordinates, document: int, start: int, end: int) -> Origin:
        """Where some bases of a document lie."""
        of = places.origin(document)
        found = places.locate(document, np.array([start]), np.array([end]))
        first, last = int(found.starts[0]), int(found.ends[0])
        return Origin(of.contig, first, last, of.strand, of.sample, of.haplotype)

    def _sum(self, places: DocumentCoordinates, key: str) -> dict[str, tuple[int, int, int]]:
        """Documents, bases and tokens by contig or sample."""
        bounds, lengths = places.first_documents(), places.arrays["document_length"]
        by_sequence = np.stack(
            [
                np.diff(bounds),
                np.add.reduceat(lengths, bounds[:-1]),
                np.add.reduceat(self.tokens.lengths, bounds[:-1], dtype=np.int64),
            ],
            axis=1,
        )
        names = places.arrays[f"{key}s"].tolist()
        sums = np.zeros((len(names), 3), np.int64)
        np.add.at(sums, places.arrays[f"sequence_{key}"], by_sequence)
        rows = [(documents, bases, tokens) for documents, bases, tokens in sums.tolist()]
        return dict(zip(names, rows, strict=True))


def _find_manifest(prefix: str) -> tuple[Path | None, str]:
    """The manifest of a prefix, if it is there, and the split that the prefix is."""
    for split in SPLITS:
        path = Path(prefix.removesuffix(f"_{split}") + ".json")
        if prefix.endswith(f"_{split}") and path.is_file():
            return path, split
    return None, ""


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
        _ = manifest["tokenizer"]["sha256"], manifest["documents"], manifest["contigs"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be the manifest that tools/preprocess_genome.py wrote ({error!r}); "
            "restore it, or move it away to do without coordinates"
        ) from error
    assert isinstance(manifest, dict)
    return manifest


def _open_tokenizer(
    prefix: str, path: Path | None, manifest: dict[str, Any] | None
) -> DnaTokenizer:
    if path is None:
        if manifest is None:
            raise ValueError(
                f"{prefix} has no manifest that names its tokenizer; give it with --tokenizer"
            )
        path = Path(manifest["tokenizer"]["path"])
    if not path.is_file():
        raise ValueError(f"tokenizer {path} of {prefix} is not there; give it with --tokenizer")
    tokenizer = DnaTokenizer.from_file(path)
    if manifest is not None and tokenizer.sha256 != manifest["tokenizer"]["sha256"]:
        raise ValueError(
            f"tokenizer {path} is not the one that {prefix} was made with (sha256 "
            f"{manifest['tokenizer']['sha256']}); give that one with --tokenizer"
        )
    return tokenizer
