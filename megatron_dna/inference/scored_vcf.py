"""A VCF file with scores: every record as it was and in its place, with INFO fields more."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pysam

from megatron_dna.genome.fasta import sha256_of
from megatron_dna.genome.sequence import clean_sequence
from megatron_dna.inference.genome import Genome
from megatron_dna.inference.masked import MaskedModel
from megatron_dna.inference.score_log import ScoreLog, partial_folder
from megatron_dna.inference.variants import OUTCOMES, Scorer, Variant

logger = logging.getLogger(__name__)

FIELDS = {
    "MDNA_LLR": (
        "log_ratio",
        "Masked log-likelihood ratio of ALT against REF in nats, mean of both strands",
    ),
    "MDNA_DIST": (
        "distance",
        "L2 distance of the mean final states around ALT and REF, mean of both strands",
    ),
}
"""INFO field: the score's name, and its description."""
MAX_TABIX_LENGTH = 1 << 29
"""Bases of a contig that a .tbi index can address."""


def score_vcf(
    model: MaskedModel,
    fasta: Path,
    vcf: Path,
    output: Path,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Score every alternative allele of a VCF or BCF file.

    The whole input is checked before the first variant is scored. A run that was killed goes on.

    Args:
        model: scores.
        fasta: what the file's REF are of; plain or bgzipped.
        vcf: sorted or not, with or without samples.
        output: `.vcf.gz`, bgzipped; with an index (.tbi, or .csi for contigs of more than 512
            Mbp) if the records are sorted.
        batch_size: inputs that go through the model at once.
        progress: told the alternatives that are done since its last call, and how many there are.

    Returns:
        Number of alternatives by outcome; see `OUTCOMES`.

    Raises:
        ValueError: bad input; names file, contig and position.
        OSError: the output cannot be written.
    """
    if not output.name.endswith(".vcf.gz"):
        raise ValueError(f"--output ({output}) must end in .vcf.gz")
    if output.exists() and vcf.exists() and output.samefile(vcf):
        raise ValueError(f"--output ({output}) is the input; give it another name")
    with partial_folder(output) as folder:
        genome = Genome(fasta, folder)
        survey = _survey(vcf, genome)
        about = {"model": model.sha256(), "segment_size": model.segment_size}
        about |= {"fasta": sha256_of(fasta), "vcf": sha256_of(vcf)}
        log = ScoreLog(Scorer(model, genome, batch_size), folder, about)
        if log.num_known:
            logger.info("%d alternatives are scored already; going on", log.num_known)
        for name, (_, description) in FIELDS.items():
            survey.header.info.add(name, "A", "Float", description)
        survey.header.add_line(f"##megatron_dna_model_sha256={about['model']}")
        counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        written = folder / output.name
        # Written as text: pysam's records would be changed on the way (INFO/END).
        with pysam.BGZFile(str(written), "wb", None) as file:
            file.write(str(survey.header).encode())
            for records in _chunks(vcf, batch_size):
                file.write(b"".join(_annotate(records, log, counts)))
                progress(sum(len(record.alts or ()) for record in records), survey.num_alternatives)
        _publish(written, output, genome, survey.is_sorted)
    return {name: counts[name] for name in OUTCOMES}


@dataclass(frozen=True)
class _Survey:
    """What a VCF file has in it."""

    header: Any
    """With a line for everything that records refer to."""
    num_alternatives: int
    is_sorted: bool


def _survey(path: Path, genome: Genome) -> _Survey:
    """Read a file once, and check each record against the genome."""
    num_alternatives = 0
    is_sorted, seen, last = True, set[str](), ("", 0)
    header = None
    for records in _chunks(path, 1000):
        for record in records:
            _check(path, record, genome)
            is_sorted &= record.contig not in seen or (last[0] == record.contig)
            is_sorted &= last[0] != record.contig or last[1] <= record.start
            seen.add(record.contig)
            last = record.contig, record.start
            num_alternatives += len(record.alts or ())
        header = records[-1].header
    if header is None:
        raise ValueError(f"--vcf ({path}): there is no record in it; is the file complete?")
    for name in FIELDS:
        if name in header.info:
            raise ValueError(
                f"--vcf ({path}) has the INFO field {name} already: it was scored before; remove "
                f"it first (bcftools annotate -x {','.join('INFO/' + name for name in FIELDS)})"
            )
    return _Survey(header.copy(), num_alternatives, is_sorted)


def _check(path: Path, record: Any, genome: Genome) -> None:
    where = f"--vcf ({path}): contig {record.contig!r}, position {record.start + 1}"
    length = genome.lengths.get(record.contig)
    if length is None:
        known = ", ".join(list(genome.lengths)[:5]) + (", ..." if len(genome.lengths) > 5 else "")
        raise ValueError(
            f"{where}: there is no such contig in {genome.path}, but {known}; rename the VCF's "
            "(bcftools annotate --rename-chrs), or leave its records out (bcftools view -t)"
        )
    end = record.start + len(record.ref)
    if not 0 <= record.start < end <= length:
        raise ValueError(f"{where}: REF must lie inside the contig, which has {length} bases")
    try:
        ref = clean_sequence(record.ref.encode())[0]
    except ValueError as error:
        raise ValueError(f"{where}: REF {record.ref[:20]!r}: {error}") from error
    there = genome.read(record.contig, record.start, end)
    if ref != there:
        raise ValueError(
            f"{where}: REF is {record.ref[:20]!r}, but {genome.path} has {there[:20].decode()!r}; "
            "is it another assembly? (bcftools norm --check-ref)"
        )


def _chunks(path: Path, size: int) -> Iterator[list[Any]]:
    """The records of a file, `size` at once.

    Raises:
        ValueError: not a VCF or BCF file, or a damaged one.
    """
    if not path.is_file():
        raise ValueError(f"--vcf ({path}) is not a file")
    verbosity = pysam.set_verbosity(0)  # what matters is raised
    number = 0
    try:
        with pysam.VariantFile(str(path)) as file:
            chunk: list[Any] = []
            for number, record in enumerate(file, 1):  # noqa: B007 (counts for the error)
                chunk.append(record)
                if len(chunk) == size:
                    yield chunk
                    chunk = []
            if chunk:
                yield chunk
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--vcf ({path}) is no whole VCF or BCF file, behind record {number}: {error}"
        ) from error
    finally:
        pysam.set_verbosity(verbosity)


def _annotate(records: list[Any], log: ScoreLog, counts: Counter[str]) -> Iterator[bytes]:
    """Score records, count outcomes; lines with the fields, missing where there is no score."""
    variants = [
        Variant(record.contig, record.start, record.ref, alt)
        for record in records
        for alt in record.alts or ()
    ]
    scores = log(variants)
    counts.update(OUTCOMES[i] for i in scores["outcome"])
    first = 0
    for record in records:
        part = scores[first : first + len(record.alts or ())]
        first += len(part)
        columns = str(record).split("\t")
        fields = [] if columns[7].rstrip() == "." else [columns[7].rstrip()]
        for name, (key, _) in FIELDS.items():
            if len(part):
                values = ("." if np.isnan(x) else f"{x:.6g}" for x in part[key])
                fields.append(f"{name}={','.join(values)}")
        columns[7] = ";".join(fields) or "."
        yield ("\t".join(columns).rstrip("\n") + "\n").encode()


def _publish(written: Path, output: Path, genome: Genome, is_sorted: bool) -> None:
    """Give file and index their names; an index of an older file goes."""
    endings = {".tbi": False, ".csi": True}
    is_long = max(genome.lengths.values()) > MAX_TABIX_LENGTH
    ending = ".csi" if is_long else ".tbi"
    if is_sorted:
        pysam.tabix_index(str(written), preset="vcf", force=True, csi=is_long)
    else:
        logger.warning("the records are not sorted: %s has no index (bcftools sort)", output)
    for old in endings:
        output.with_name(output.name + old).unlink(missing_ok=True)
    written.replace(output)
    if is_sorted:
        written.with_name(written.name + ending).replace(output.with_name(output.name + ending))
