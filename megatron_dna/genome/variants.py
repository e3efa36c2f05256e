"""Phased variants as haplotypes: a typed facade over `csrc/contig_haplotypes.cpp`.

A VCF file is read once for all samples that are wanted, contig by contig. Every haplotype is then
there to be read at any place, by any thread, and keeps 4 bytes for each of its variants.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_dna import _core
from megatron_dna.genome.coordinates import CoordinateMap, Positions
from megatron_dna.genome.store import SequenceLike
from megatron_dna.genome.vcf import VcfFile, name_key

Which = Literal["both", "1", "2"]
TAB = b"\t"


@dataclass(frozen=True)
class VariantOptions:
    """How genotypes become haplotypes.

    Attributes:
        haplotypes: the first or the second allele of the genotypes, or both.
        unphased: a genotype whose alleles differ and are parted by '/' is an error, is left as the
            reference (skip), or gets a phase by lot (random).
        on_ref_mismatch: a record whose REF is not what the FASTA has is an error, or is left out.
        seed: of the lots for `unphased`; each depends on it, contig, position and sample alone.
    """

    haplotypes: Which = "both"
    unphased: Literal["error", "skip", "random"] = "error"
    on_ref_mismatch: Literal["error", "skip"] = "error"
    seed: int = 0


@dataclass(frozen=True)
class Haplotype:
    """One of a sample's two sequences of a contig: a `SequenceLike`.

    Attributes:
        sample: its name.
        number: 1 or 2, which allele of the genotypes.
        contig: its name.
        reference: the contig.
        length: bases.
        counts: what became of its alleles: applied, overlapping, symbolic, missing, unphased.
    """

    sample: str
    number: int
    contig: str
    reference: SequenceLike
    length: int
    counts: Mapping[str, int]
    _core: _core.ContigHaplotypes
    _index: int

    def read(self, start: int, end: int) -> bytes:
        """The bases from `start` to `end`, 0-based half-open, 0 <= start <= end <= length."""
        if start == end:
            return b""
        first, last = self._core.reference_span(self._index, start, end)
        bases = self.reference.read(first, last)
        return self._core.spell(self._index, start, end, first, bases)

    def edits(self) -> tuple[Positions, Positions, Positions]:
        """Where it differs: the start, the length on the reference and here of every edit."""
        return self._core.edits(self._index)

    def edits_beside_n(self) -> Positions:
        """Which of `edits` have an N in them or next to them, on the reference or here."""
        return self._core.edits_beside_n(self._index)

    def coordinates(self) -> CoordinateMap:
        """To the reference and back; made anew by each call."""
        starts, ref_lengths, alt_lengths = self.edits()
        moving = ref_lengths != alt_lengths
        return CoordinateMap(starts[moving], ref_lengths[moving], alt_lengths[moving])


@dataclass(frozen=True)
class ContigVariants:
    """The haplotypes of a contig.

    Attributes:
        path: the VCF file that has it.
        contig: its name.
        haplotypes: sample by sample in the order of the file. A sample whose genotypes have one
            allele has no haplotype 2.
        num_records: in the file.
        num_ref_mismatches: of these, left out since REF is not what the FASTA has.
    """

    path: Path
    contig: str
    haplotypes: tuple[Haplotype, ...]
    num_records: int
    num_ref_mismatches: int


def read_variants(
    vcfs: Sequence[VcfFile],
    samples: Sequence[str],
    contigs: Mapping[str, SequenceLike],
    options: VariantOptions,
    excluded: Collection[str] = (),
) -> Iterator[ContigVariants]:
    """The haplotypes of some samples, contig by contig in the order of the files.

    Memory: the edits of the contig at hand, if the caller has let go of the one before.

    Args:
        vcfs: a contig's records must all be in one file.
        samples: names; every file must have them.
        contigs: the reference by name.
        options: see there.
        excluded: names of contigs that are not in `contigs` and whose records are passed over.

    Raises:
        ValueError: a file is truncated or damaged, is not sorted, has no record, or has one that
            does not fit the reference, its header or the options, or all records are of excluded
            contigs. Names file, contig and position.
        OSError: a file cannot be read.
    """
    owners: dict[str, Path] = {}
    for vcf in vcfs:
        reader = _Reader(vcf, samples, contigs, options, owners, excluded)
        yield from reader.read()
    if all(contig in excluded for contig in owners):
        raise ValueError(
            f"vcf ({', '.join(str(vcf.path) for vcf in vcfs)}) must have records of contigs that "
            "exclude does not leave out; give other files, or exclude less"
        )


class _Reader:
    """Reads one file."""

    def __init__(
        self,
        vcf: VcfFile,
        samples: Sequence[str],
        contigs: Mapping[str, SequenceLike],
        options: VariantOptions,
        owners: dict[str, Path],
        excluded: Collection[str],
    ) -> None:
        columns = {name: column for column, name in enumerate(vcf.samples)}
        missing = [name for name in samples if name not in columns]
        if missing:
            raise ValueError(f"{vcf.path}: there is no sample {missing[0]!r} in this file")
        self._vcf = vcf
        self._samples = sorted((columns[name], name) for name in samples)
        self._contigs = contigs
        self._options = options
        self._owners = owners
        self._excluded = excluded

    def read(self) -> Iterator[ContigVariants]:
        contig, core = "", None
        for lines in self._vcf.read_lines():
            used = 0
            while used < len(lines):
                if core is None:
                    previous, contig = contig, lines[used : lines.find(TAB, used)].decode()
                    if contig != previous:
                        core = self._start(contig, lines[used : used + 200])
                if core is None:
                    used = _pass_over(contig, lines, used)
                    continue
                try:
                    used += core.add(lines, used)
                except ValueError as error:
                    raise ValueError(f"{self._vcf.path}: contig {contig!r}, {error}") from error
                if used < len(lines):
                    yield self._finish(contig, core)
                    core = None
        if not contig:
            raise ValueError(f"{self._vcf.path}: there is no record in it; is the file complete?")
        if core is not None:
            yield self._finish(contig, core)

    def _start(self, contig: str, line: bytes) -> _core.ContigHaplotypes | None:
        """Opens a contig, unless it is excluded; `line` is the start of its first record."""
        path = self._vcf.path
        where = f"{path}: contig {contig!r}, position {b''.join(line.split(TAB)[1:2]).decode()}"
        reference = self._contigs.get(contig)
        if reference is None and contig not in self._excluded:
            known = ", ".join(list(self._contigs)[:5]) + (", ..." if len(self._contigs) > 5 else "")
            raise ValueError(
                f"{where}: the FASTA files have no such contig, but {known}; rename the VCF's "
                "(bcftools annotate --rename-chrs), or leave its records out (bcftools view -t)"
            )
        owner = self._owners.get(contig)
        if owner == path:
            raise ValueError(
                f"{where}: the contig comes a second time, after another one; records must be "
                "sorted (bcftools sort)"
            )
        if owner is not None:
            raise ValueError(
                f"{where}: the contig is in {owner} too; a contig's records must be in one file "
                "(bcftools concat)"
            )
        self._owners[contig] = path
        if reference is None:
            return None
        return _core.ContigHaplotypes(
            samples=[(name, column, name_key(name)) for column, name in self._samples],
            num_columns=len(self._vcf.samples),
            contig=contig,
            length=reference.length,
            contig_key=name_key(contig),
            reference=reference.read,
            unphased=self._options.unphased,
            skip_ref_mismatch=self._options.on_ref_mismatch == "skip",
            seed=self._options.seed,
        )

    def _finish(self, contig: str, core: _core.ContigHaplotypes) -> ContigVariants:
        core.finish()
        wanted = (1, 2) if self._options.haplotypes == "both" else (int(self._options.haplotypes),)
        haplotypes = [
            Haplotype(
                name,
                number,
                contig,
                self._contigs[contig],
                core.length(index),
                core.counts(index),
                core,
                index,
            )
            for sample, (_, name) in enumerate(self._samples)
            for number in wanted
            if number <= (core.ploidy(sample) or 2)
            for index in [2 * sample + number - 1]
        ]
        return ContigVariants(
            self._vcf.path,
            contig,
            tuple(haplotypes),
            core.num_records,
            core.num_ref_mismatches,
        )


def _pass_over(contig: str, lines: bytes, start: int) -> int:
    """Where the records of a contig end that begin at `start`, blank lines among them."""
    theirs = (contig.encode() + TAB, b"\n", b"\r\n")
    while start < len(lines) and lines.startswith(theirs, start):
        start = lines.find(b"\n", start) + 1 or len(lines)
    return start
