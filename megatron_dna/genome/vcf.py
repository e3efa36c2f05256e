"""VCF and BCF files: their samples, and their lines one contig after the other.

Files are read from start to end, so no index is needed, and each is checked to be whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import pysam

from megatron_dna.genome.compressed import read_chunks

RECORDS_PER_CHUNK = 1000
_NUM_FIXED_COLUMNS = 9


@dataclass(frozen=True)
class SampleChoice:
    """Which samples of a VCF file to read: all, those of a list, or some drawn at random.

    Attributes:
        names: of samples; all if empty.
        num_samples: draw that many of all; None reads all that are named.
        seed: of the draw; it depends on nothing else than the samples' names.
    """

    names: tuple[str, ...] = ()
    num_samples: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class VcfFile:
    """A file whose header was read.

    Attributes:
        path: of the file.
        samples: names in the order of their columns.
    """

    path: Path
    samples: tuple[str, ...]

    def read_lines(self) -> Iterator[bytes]:
        """The records as text, in chunks of whole lines.

        Raises:
            ValueError: the file is truncated or damaged.
            OSError: it cannot be read.
        """
        for lines in _read_lines(self.path):
            yield from _without_header(lines)


def open_vcf(path: Path) -> VcfFile:
    """Reads the header of a VCF file, plain, gzipped or bgzipped, or of a BCF file.

    Raises:
        ValueError: not such a file, truncated or damaged, without samples, or with a sample twice.
        OSError: the file cannot be read.
    """
    for lines in _read_lines(path):
        for line in lines.splitlines():
            if line.startswith(b"#CHROM"):
                return VcfFile(path, _parse_columns(path, line))
            if not line.startswith(b"##"):
                raise ValueError(
                    f"{path}: there is no line #CHROM before the first record, but "
                    f"{line[:20]!r}; is this a VCF file?"
                )
    raise ValueError(f"{path}: there is no line #CHROM in it; the file is empty or no VCF file")


def choose_samples(vcf: VcfFile, choice: SampleChoice) -> tuple[str, ...]:
    """The samples to read, in the order of the file.

    Raises:
        ValueError: a sample is not in the file or named twice, or there are too few.
    """
    wanted = set(choice.names)
    if len(wanted) < len(choice.names):
        twice = next(name for name in choice.names if choice.names.count(name) > 1)
        raise ValueError(f"samples has {twice!r} twice; name each sample once")
    unknown = [name for name in choice.names if name not in vcf.samples]
    if unknown:
        known = ", ".join(vcf.samples[:5]) + (", ..." if len(vcf.samples) > 5 else "")
        raise ValueError(f"{vcf.path}: there is no sample {unknown[0]!r}; it has {known}")
    names = [name for name in vcf.samples if not wanted or name in wanted]
    if choice.num_samples is None:
        return tuple(names)
    if not 1 <= choice.num_samples <= len(names):
        raise ValueError(
            f"num_samples ({choice.num_samples}) must be between 1 and {len(names)}, the samples "
            f"of {vcf.path}"
        )
    drawn = set(
        sorted(names, key=lambda name: name_key(f"{choice.seed} {name}"))[: choice.num_samples]
    )
    return tuple(name for name in names if name in drawn)


def read_sample_names(path: Path) -> tuple[str, ...]:
    """The names in a file of one sample a line; blank lines are left out.

    Raises:
        ValueError: it has none.
        OSError: the file cannot be read.
    """
    names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if not names:
        raise ValueError(f"samples file {path} has no name; write one sample a line")
    return names


def name_key(name: str) -> int:
    """64 bits that stand for a name in random draws: the same everywhere, and for good."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _parse_columns(path: Path, line: bytes) -> tuple[str, ...]:
    columns = line.decode().rstrip("\r\n").split("\t")
    samples = columns[_NUM_FIXED_COLUMNS:]
    if not samples:
        raise ValueError(
            f"{path}: the line #CHROM names no samples; haplotypes need genotypes, so give a file "
            "with samples"
        )
    if len(set(samples)) < len(samples):
        twice = next(name for name in samples if samples.count(name) > 1)
        raise ValueError(
            f"{path}: sample {twice!r} is in the header twice; rename one (bcftools reheader)"
        )
    return tuple(samples)


def _without_header(lines: bytes) -> Iterator[bytes]:
    """Cuts lines that begin with '#' off the front of a chunk."""
    start = 0
    while lines.startswith(b"#", start):
        start = lines.find(b"\n", start) + 1 or len(lines)
    if start < len(lines):
        yield lines[start:]


def _read_lines(path: Path) -> Iterator[bytes]:
    """The file's text, header and all, in chunks of whole lines."""
    chunks = read_chunks(path, "VCF file")
    first = next(chunks, b"")
    if first.startswith(b"BCF"):
        yield from _read_bcf(path)
        return
    rest = b""
    for chunk in chain([first], chunks):
        text = rest + chunk
        end = text.rfind(b"\n") + 1
        rest = text[end:]
        if end:
            yield text[:end]
    if rest:
        yield rest


def _read_bcf(path: Path) -> Iterator[bytes]:
    """A BCF file as the text of a VCF file."""
    try:
        with pysam.VariantFile(str(path)) as file:
            yield str(file.header).encode()
            records: Iterator[object] = iter(file)
            while lines := "".join(map(str, islice(records, RECORDS_PER_CHUNK))):
                yield lines.encode()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: the BCF file is truncated or damaged ({error})") from error
