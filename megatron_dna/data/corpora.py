"""Corpora: many sources preprocessed by one file, on one machine or in shards that are then joined.

Laid end to end, by about the bases to be encoded, the sources make a line; shard i of n takes the
i-th of n equal parts of it. So each shard reads the sources that it has a part of, and no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from megatron_dna.data import manifest as manifests
from megatron_dna.data.haplotypes import (
    HAPLOTYPE_KEYS,
    HaplotypeOptions,
    count_haplotypes,
    parse_haplotype_options,
)
from megatron_dna.data.merge import merge_parts
from megatron_dna.data.options import PreprocessOptions, find_finished
from megatron_dna.data.preprocess import preprocess
from megatron_dna.genome.regions import is_bed, read_unresolved
from megatron_dna.tokenizer.train import Genome

BLEND_FILE = "blend.yaml"
VARIANT_SPACING = 1000
"""Bases between two variants of a haplotype, about those of a human one (4 to 5 million sites in a
genome of two times 3.1 billion bases: The 1000 Genomes Project Consortium, Nature 526, 68-74)."""
OPTION_KEYS = ("species", "reverse_complement", "min_length", "drop_duplicate_windows")
_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "fasta": ((str, list), "text, or a list of it"),
    "species": ((str,), "text"),
    "weight": ((int, float), "a number"),
    "holdout": ((str, list), "text, or a list of it"),
    "exclude": ((str, list), "text, or a list of it"),
    "reverse_complement": ((bool,), "true or false"),
    "min_length": ((int,), "a whole number"),
    "drop_duplicate_windows": ((int,), "a whole number"),
    "vcf": ((str, list), "text, or a list of it"),
    "samples": ((str, list), "text, or a list of it"),
    "samples_file": ((str,), "text"),
    "num_samples": ((int,), "a whole number"),
    "seed": ((int,), "a whole number"),
    "haplotypes": ((str, int), "both, 1 or 2"),
    "unphased": ((str,), "text"),
    "on_ref_mismatch": ((str,), "text"),
    "variant_context": ((str, int), "a whole number, or all"),
    "no_reference": ((bool,), "true or false"),
}
"""Of a source: what a value may be."""


@dataclass(frozen=True)
class Source:
    """A source of a corpus.

    Attributes:
        name: begins the names of its files.
        weight: in the blend that training draws from.
        options: what to make of it.
    """

    name: str
    weight: float
    options: PreprocessOptions


def read_corpus(
    path: Path, output_dir: Path, data_dir: Path | None = None, **common: Any
) -> list[Source]:
    """The sources that a corpus file names.

    Args:
        path: YAML; docs/data.md has its keys.
        output_dir: where all files go.
        data_dir: what the paths in the file are relative to; its own folder unless given.
        common: options for every source, such as workers.

    Raises:
        ValueError: the file, a key or a value is at fault; names it.
        OSError: the file cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"corpus {path} is not YAML: {error}") from error
    root = data_dir if data_dir is not None else path.parent
    _check_mapping(str(path), content, ("tokenizer", "sources"))
    if not isinstance(content.get("tokenizer"), str):
        raise ValueError(f"corpus {path}: tokenizer must be the path of a tokenizer.json")
    sources = content.get("sources")
    if not isinstance(sources, dict) or not sources:
        raise ValueError(f"corpus {path}: sources must map names to sources, at least one")
    tokenizer = root / content["tokenizer"]
    found = []
    for name, keys in sources.items():
        key = f"corpus {path}: sources.{name}"
        if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
            raise ValueError(f"{key}: a name must be letters, digits, _ and -, as it names files")
        options = PreprocessOptions(
            **_read_source(key, keys, root),
            tokenizer=tokenizer,
            output_prefix=output_dir / name,
            **common,
        )
        found.append(Source(name, float(keys.get("weight", 1)), options))
    _check_holdouts(path, found)
    return found


def _check_holdouts(path: Path, sources: Sequence[Source]) -> None:
    """What is held out of a FASTA file must be held out of all sources that read it.

    Raises:
        ValueError: two sources that share a file differ.
    """
    first_with: dict[Path, Source] = {}
    for source in sources:
        for fasta in source.options.fasta:
            first = first_with.setdefault(fasta.resolve(), source)
            regions, others = (list(s.options.holdout) for s in (source, first))
            if regions != others and read_unresolved(regions) != read_unresolved(others):
                raise ValueError(
                    f"corpus {path}: sources.{source.name}.holdout ({regions}) must name the "
                    f"regions of sources.{first.name}.holdout ({others}), since both read {fasta}: "
                    "one would train on what is held out of the other; give both the same regions"
                )


def list_genomes(sources: Sequence[Source]) -> list[Genome]:
    """The references of a corpus, to train a tokenizer on: each set of FASTA files once."""
    found: dict[tuple[Path, ...], Genome] = {}
    for options in (source.options for source in sources):
        key = tuple(path.resolve() for path in options.fasta)
        found.setdefault(key, Genome(options.fasta, options.holdout, options.exclude))
    return list(found.values())


def _check_mapping(key: str, value: object, known: Sequence[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{key} must map keys ({', '.join(known)}) to values")
    unknown = next((name for name in value if name not in known), None)
    if unknown is not None:
        raise ValueError(f"{key}: there is no key {unknown!r}; the keys are {', '.join(known)}")


def _read_source(key: str, keys: Any, root: Path) -> dict[str, Any]:
    """Options of a source, each with its type checked."""
    _check_mapping(key, keys, tuple(_KEYS))
    for name, value in keys.items():
        kinds, wanted = _KEYS[name]
        right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if not right or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            raise ValueError(f"{key}.{name} ({value!r}) must be {wanted}")
    if not 0 < keys.get("weight", 1) < float("inf"):
        raise ValueError(f"{key}.weight ({keys['weight']}) must be positive and finite")
    if not keys.get("fasta"):
        raise ValueError(f"{key}.fasta must name at least one file")
    holdout = [
        str(root / region) if is_bed(region) else region
        for region in _as_list(keys.get("holdout", []))
    ]
    return {
        "fasta": tuple(root / path for path in _as_list(keys["fasta"])),
        "holdout": tuple(holdout),
        "exclude": tuple(_as_list(keys.get("exclude", []))),
        "haplotypes": _read_haplotypes(key, keys, root),
        **{name: keys[name] for name in OPTION_KEYS if name in keys},
    }


def _read_haplotypes(key: str, keys: Mapping[str, Any], root: Path) -> HaplotypeOptions | None:
    values = {name: keys[name] for name in HAPLOTYPE_KEYS if name in keys}
    for name in ("vcf", "samples"):
        if name in values:
            values[name] = _as_list(values[name])
    if "haplotypes" in values:
        values["haplotypes"] = str(values["haplotypes"])
    try:
        return parse_haplotype_options(values, root)
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from error


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def preprocess_corpus(
    sources: Sequence[Source], shard: tuple[int, int] | None = None
) -> Iterator[tuple[Source, dict[str, Any]]]:
    """Preprocesses every source, or a shard of the corpus; what is complete is not done again.

    Args:
        sources: from `read_corpus`.
        shard: (i, n), the i-th of n, from 1 on.

    Yields:
        Each source, its options those of the shard unless all of it is complete, with its manifest,
        when that is complete.

    Raises:
        ValueError, OSError: see `preprocess`.
    """
    if shard is None:
        for source in sources:
            yield source, find_finished(source.options) or preprocess(source.options)
        return
    whole = {source.name: source for source in sources}
    for part in take_shard(sources, *shard):
        source = whole[part.name]
        if (manifest := find_finished(source.options)) is not None:
            yield source, manifest  # joined already: its parts may be gone
        else:
            yield part, find_finished(part.options) or preprocess(part.options)


def take_shard(sources: Sequence[Source], shard: int, num_shards: int) -> list[Source]:
    """The sources that a shard has a part of, with the part.

    Raises:
        ValueError: there is no such shard, or a file is missing.
    """
    if not 1 <= shard <= num_shards:
        raise ValueError(f"shard ({shard}/{num_shards}) must be I/N with 1 <= I <= N")
    return _take(sources, [_cost(source.options) for source in sources], shard, num_shards)


def _take(
    sources: Sequence[Source], costs: Sequence[Fraction], shard: int, num_shards: int
) -> list[Source]:
    total = sum(costs, Fraction(0))
    first, last = Fraction(shard - 1, num_shards), Fraction(shard, num_shards)
    taken, position = [], Fraction(0)
    for source, cost in zip(sources, costs, strict=True):
        # The shard's ends, as shares of this source.
        start, end = ((bound * total - position) / cost for bound in (first, last))
        position += cost
        if start < 1 and end > 0:
            part = (max(start, Fraction(0)), min(end, Fraction(1)))
            prefix = part_prefix(source.options.output_prefix, shard, num_shards)
            options = replace(source.options, output_prefix=prefix, part=part)
            taken.append(replace(source, options=options))
    return taken


def _cost(options: PreprocessOptions) -> Fraction:
    """About the bases to be encoded; only how well shards are balanced depends on it."""
    for path in options.inputs:
        if not path.is_file():
            raise ValueError(f"input file {path} is not there, or not a regular file")
    num_bases = 1
    for path in options.fasta:
        with path.open("rb") as stream:
            is_compressed = stream.read(2) == b"\x1f\x8b"
        num_bases += path.stat().st_size * (4 if is_compressed else 1)
    num_copies = Fraction(1)  # of the reference
    if options.haplotypes:
        num_copies = count_haplotypes(options.haplotypes) * _share_written(options.haplotypes)
        num_copies += not options.haplotypes.no_reference
    return num_bases * (1 + options.reverse_complement) * num_copies


def _share_written(haplotypes: HaplotypeOptions) -> Fraction:
    """About what the windows around variants are of a haplotype."""
    if haplotypes.context is None:
        return Fraction(1)
    return min(Fraction(1), Fraction(2 * haplotypes.context, VARIANT_SPACING))


def part_prefix(prefix: Path, shard: int, num_shards: int) -> Path:
    """The output prefix of a source's part in a shard."""
    return prefix.with_name(f"{prefix.name}.shard-{shard}-of-{num_shards}")


def merge_corpus(
    sources: Sequence[Source], output_dir: Path
) -> Iterator[tuple[Source, dict[str, Any]]]:
    """Joins the shards of a corpus, and removes them when that is done.

    Yields:
        Each source with its manifest, when it is complete.

    Raises:
        ValueError: a shard is missing, or of other options, inputs or versions than the rest.
        OSError: a file cannot be read or written.
    """
    parts: dict[int, dict[str, list[PreprocessOptions]]] = {}  # by the number of shards
    for source in sources:
        manifest = find_finished(source.options)
        if manifest is None:
            num_shards = _find_num_shards(source.name, output_dir)
            if num_shards not in parts:
                parts[num_shards] = _list_parts(sources, num_shards)
            manifest = merge_parts(source.options, parts[num_shards][source.name])
        for path in output_dir.glob(f"{source.name}.shard-*-of-*"):
            path.unlink()
        yield source, manifest


def _list_parts(sources: Sequence[Source], num_shards: int) -> dict[str, list[PreprocessOptions]]:
    """Options of every part of every source, by the source's name."""
    costs = [_cost(source.options) for source in sources]
    parts: dict[str, list[PreprocessOptions]] = {source.name: [] for source in sources}
    for shard in range(1, num_shards + 1):
        for part in _take(sources, costs, shard, num_shards):
            parts[part.name].append(part.options)
    return parts


def _find_num_shards(name: str, output_dir: Path) -> int:
    found = {
        path.stem.rpartition("-of-")[2] for path in output_dir.glob(f"{name}.shard-*-of-*.json")
    }
    if len(found) != 1:
        raise ValueError(
            f"{output_dir} has "
            + (f"shards of {' and of '.join(sorted(found))}" if found else "no shard")
            + f" of {name!r}: run --shard 1/N to --shard N/N, with one N, then --merge"
        )
    return int(found.pop())


def write_blend(path: Path, sources: Sequence[tuple[Source, Mapping[str, Any]]]) -> dict[str, Any]:
    """Writes the `data` section of a training recipe that blends the sources by weight."""
    data: dict[str, Any] = {"tokenizer": str(sources[0][0].options.tokenizer)}
    for split in ("train", "valid"):
        data[split] = [
            {"prefix": f"{source.options.output_prefix}_{split}", "weight": source.weight}
            for source, manifest in sources
            if manifest["totals"][split]["documents"]
        ]
    text = "# The data section of a recipe for pretrain_dna_bert.py.\n" + yaml.safe_dump(
        {"data": data}, sort_keys=False
    )
    partial = path.with_name(path.name + ".partial")
    manifests.write_durably(partial, text)
    partial.replace(path)
    return data
