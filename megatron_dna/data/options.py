"""What a preprocessing run is to make of which files: checked before it, described after it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from megatron_dna.data import manifest as manifests
from megatron_dna.data.coordinates import SUFFIX
from megatron_dna.data.haplotypes import HaplotypeOptions
from megatron_dna.genome.corpus import SPLITS
from megatron_dna.genome.fasta import sha256_of
from megatron_dna.genome.regions import is_bed
from megatron_dna.tokenizer.bpe import DnaTokenizer

WHOLE = (Fraction(0), Fraction(1))


@dataclass(frozen=True)
class PreprocessOptions:
    """What to make of which files.

    Attributes:
        fasta: FASTA files, plain, gzipped or bgzipped; contig names unique over all of them.
        tokenizer: a tokenizer.json.
        output_prefix: P; makes P_train.{bin,idx}, P_valid.{bin,idx} and the manifest P.json.
        reverse_complement: each document's reverse complement follows it, encoded from sequence.
        holdout: regions for P_valid, which P_train has nothing of: `20:3000001-4000000` (1-based,
            inclusive), a whole contig, or a BED file.
        exclude: contigs for neither, by name or shell pattern (`*_alt`).
        min_length: shorter stretches are dropped (bases).
        haplotypes: of VCF files; their documents follow those of the reference.
        drop_duplicate_windows: windows of so many bases (in the mean; 0: none) that training has
            already, on either strand, are left out of it.
        workers: threads that encode.
        species: recorded in the manifest.
        part: (start, end), shares of 1: only the documents that begin in this part of the whole.
        command: recorded in the manifest.
    """

    fasta: tuple[Path, ...]
    tokenizer: Path
    output_prefix: Path
    reverse_complement: bool = False
    holdout: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_length: int = 0
    haplotypes: HaplotypeOptions | None = None
    drop_duplicate_windows: int = 0
    workers: int = 1
    species: str = ""
    part: tuple[Fraction, Fraction] = WHOLE
    command: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Path, ...]:
        """FASTA files, then BED files, then VCF files."""
        beds = (Path(region) for region in self.holdout if is_bed(region))
        return (*self.fasta, *beds, *(self.haplotypes.vcf if self.haplotypes else ()))

    def output(self, suffix: str) -> Path:
        """A file (or, for `_train`, a prefix) of the output."""
        return self.output_prefix.with_name(self.output_prefix.name + suffix)


def check_options(options: PreprocessOptions) -> None:
    if not options.fasta:
        raise ValueError("fasta must name at least one file")
    for key, value, minimum in (
        ("workers", options.workers, 1),
        ("min_length", options.min_length, 0),
        ("drop_duplicate_windows", options.drop_duplicate_windows, 0),
    ):
        if value < minimum:
            raise ValueError(f"{key} ({value}) must be at least {minimum}")
    if not options.output_prefix.name or options.output_prefix.is_dir():
        raise ValueError(
            f"output_prefix ({options.output_prefix}) is a folder; add a name: files begin with it"
        )
    for path in (*options.inputs, options.tokenizer):
        if not path.is_file():
            raise ValueError(f"input file {path} is not there, or not a regular file")
    _check_outputs(options)


def _check_outputs(options: PreprocessOptions) -> None:
    """No output may take the place of a file that this tool did not make."""
    manifest = options.output(".json")
    outputs = [
        options.output(f"_{split}{suffix}")
        for split in SPLITS
        for suffix in (".bin", ".idx", SUFFIX)
    ]
    for path in (*options.inputs, options.tokenizer):
        if path.resolve() in [output.resolve() for output in (manifest, *outputs)]:
            raise ValueError(
                f"output_prefix ({options.output_prefix}) would overwrite input {path}"
            )
    manifests.check_replaceable(manifest)


def describe_run(options: PreprocessOptions, tokenizer: DnaTokenizer) -> dict[str, Any]:
    """All that shapes the output: where it is the same, an interrupted run can go on."""
    return {
        "versions": manifests.versions(),
        "options": describe_options(options),
        "species": options.species,
        "inputs": [
            {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in options.inputs
        ],
        "tokenizer": {
            "path": str(options.tokenizer),
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
        },
    }


def describe_options(options: PreprocessOptions) -> dict[str, Any]:
    """The `options` of `describe_run`; of it all, they alone tell a source's parts apart."""
    return {
        "reverse_complement": options.reverse_complement,
        "holdout": list(options.holdout),
        **({"exclude": list(options.exclude)} if options.exclude else {}),
        "min_length": options.min_length,
        **({"haplotypes": options.haplotypes.describe()} if options.haplotypes else {}),
        "drop_duplicate_windows": options.drop_duplicate_windows,
        **({} if options.part == WHOLE else {"part": [str(bound) for bound in options.part]}),
    }


def find_finished(options: PreprocessOptions) -> dict[str, Any] | None:
    """The manifest of these very options, inputs and versions, where all of its files are there.

    Raises:
        ValueError, OSError: see `preprocess`.
    """
    path = options.output(".json")
    if not path.exists():
        return None
    check_options(options)
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    head = json.dumps(describe_run(options, DnaTokenizer.from_file(options.tokenizer)))
    if any(manifest.get(key) != value for key, value in json.loads(head).items()):
        return None
    for split, total in manifest["totals"].items():
        files = [options.output(f"_{split}{end}") for end in (".bin", ".idx", SUFFIX)]
        if total["documents"] and not all(file.exists() for file in files):
            return None
    return manifest
