"""`--vcf`: what is written spells the haplotypes, maps back, and has nothing that is held out."""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest

from megatron_dna.data.coordinates import DocumentCoordinates
from megatron_dna.data.haplotypes import HaplotypeOptions
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from megatron_dna.tokenizer.bpe import DnaTokenizer
from tests.unit.genome_files import (
    EXAMPLE,
    encode,
    read,
    reverse_complement,
)
from tests.unit.variant_files import (
    SAMPLES,
    Edit,
    Record,
    edits_of,
    read_all,
    real_records,
    spell,
    vcf_text,
)

MER = 64


def written(prefix: Path, tokenizer_path: Path) -> Iterator[tuple[int, list[int], str]]:
    """Number, ids and bases of each document of a prefix."""
    tokenizer = DnaTokenizer.from_file(tokenizer_path)
    for number, ids in enumerate(read(prefix)):
        yield number, ids, tokenizer.decode(ids)


def own_edits(
    records: list[Record], contig: str, sample: str, number: int, samples: tuple[str, ...] = SAMPLES
) -> list[Edit]:
    """No edits for the reference, whose sample is ""."""
    if not sample:
        return []
    of_contig = [record for record in records if record.contig == contig]
    return edits_of(of_contig, samples.index(sample), number)


def check_tokens(
    prefix: Path,
    tokenizer_path: Path,
    contigs: dict[str, str],
    edits: Callable[[str, str, int], list[Edit]],
) -> int:
    """Every token's interval, with the haplotype's alleles, spells it; returns the tokens."""
    tokenizer = DnaTokenizer.from_file(tokenizer_path)
    edits = functools.cache(edits)
    coordinates = DocumentCoordinates.open(prefix)
    documents = read(prefix)
    assert len(coordinates) == len(documents)
    num_tokens = 0
    for number, ids in enumerate(documents):
        contig, sample, haplotype, strand, _, _ = coordinates.origin(number)
        own = edits(contig, sample, haplotype)
        edit_starts = [edit.start for edit in own]
        ends = np.cumsum(tokenizer.token_lengths[ids], dtype=np.int64)
        starts = np.concatenate(([0], ends[:-1]))
        located = np.stack(coordinates.locate(number, starts, ends), 1).tolist()
        for token, (first, last, offset) in zip(ids, located, strict=True):
            low = bisect.bisect_left(edit_starts, first - 100)
            near = own[low : bisect.bisect_right(edit_starts, last)]
            bases = tokenizer.decode([token])
            mapped = spell(contigs[contig], near, first, last)[offset : offset + len(bases)]
            assert (mapped if strand == "+" else reverse_complement(mapped)) == bases
        num_tokens += len(ids)
    return num_tokens


@pytest.mark.parametrize("context", [None, 1, 20])
def test_every_token_maps_to_what_spells_it(
    variant_options: Callable[..., PreprocessOptions],
    variant_contigs: dict[str, str],
    variant_records: list[Record],
    context: int | None,
) -> None:
    """Dense indels, both strands, held-out and training documents, whole contigs and windows."""
    options = variant_options(context=context)
    manifest = preprocess(options)
    for split in ("train", "valid"):
        num_tokens = check_tokens(
            options.output(f"_{split}"),
            options.tokenizer,
            variant_contigs,
            lambda contig, sample, number: own_edits(variant_records, contig, sample, number),
        )
        assert num_tokens == manifest["totals"][split]["tokens"]


def test_tokens_of_real_people_map_to_what_spells_them(
    tmp_path: Path, tokenizer_path: Path
) -> None:
    contig, start, size = "20", 1_000_000, 250_000
    with pysam.FastaFile(str(EXAMPLE)) as fasta:
        reference = {contig: "N" * start + fasta.fetch(contig, start, start + size)}
    samples = ("HG00096", "HG01624")
    records = real_records(start, start + size - 99, samples)
    (tmp_path / "r.fa").write_text(f">{contig}\n{reference[contig]}\n")
    (tmp_path / "v.vcf").write_text(vcf_text(records, samples))
    options = PreprocessOptions(
        (tmp_path / "r.fa",),
        tokenizer_path,
        tmp_path / "p",
        reverse_complement=True,
        haplotypes=HaplotypeOptions((tmp_path / "v.vcf",), context=100),
    )
    manifest = preprocess(options)
    rows = manifest["haplotypes"]["haplotypes"]
    assert len(rows) == 4
    assert sum(row["alleles"]["applied"] for row in rows) > 300
    num_tokens = check_tokens(
        tmp_path / "p_train",
        tokenizer_path,
        reference,
        lambda contig, sample, number: own_edits(records, contig, sample, number, samples),
    )
    assert num_tokens == manifest["totals"]["train"]["tokens"]


def test_whole_haplotypes_are_written_in_order(
    variant_options: Callable[..., PreprocessOptions],
    variant_contigs: dict[str, str],
    variant_records: list[Record],
) -> None:
    """Without cuts: reference first, then sample by sample, every stretch, ids of `tokenizers`."""
    options = variant_options(holdout=(), reverse_complement=False)
    preprocess(options)
    texts, origins = [], []
    for bases in variant_contigs.values():
        texts += [part for part in split_at_gaps(bases) if part]
    for name, bases in variant_contigs.items():
        for sample in SAMPLES:
            for number in (1, 2):
                text = spell(bases, own_edits(variant_records, name, sample, number))
                texts += [part for part in split_at_gaps(text) if part]
                origins.append((name, sample, number))
    ids = read(options.output("_train"))
    assert ids == [encode(options.tokenizer, text) for text in texts]
    coordinates = DocumentCoordinates.open(options.output("_train"))
    seen = dict.fromkeys(coordinates.origin(n)[:3] for n in range(len(ids)))
    assert list(seen) == [*((name, "", 0) for name in variant_contigs), *origins]


def split_at_gaps(bases: str) -> list[str]:
    return re.split("N{10,}", bases)


@pytest.mark.parametrize("context", [None, 30])
def test_nothing_held_out_is_in_training(
    variant_options: Callable[..., PreprocessOptions],
    variant_contigs: dict[str, str],
    context: int | None,
) -> None:
    """No 64-mer of a held-out part, of any haplotype and strand, but what else the reference has.

    Nor does one leave it by an insertion at its border, or by an edit that reaches out of it.
    """
    options = variant_options(context=context)
    manifest = preprocess(options)
    regions = [(r["contig"], r["start"], r["end"]) for r in manifest["holdout"]]
    outside = dict(variant_contigs)
    inside = []
    for contig, start, end in regions:
        inside.append(variant_contigs[contig][start:end])
        outside[contig] = outside[contig][:start] + "-" * (end - start) + outside[contig][end:]
    inside += [text for _, _, text in written(options.output("_valid"), options.tokenizer)]
    training = [text for _, _, text in written(options.output("_train"), options.tokenizer)]
    allowed = mers(outside.values())
    held_out = mers(inside) - allowed
    assert len(held_out) > 2000
    assert not held_out & mers(training)
    assert len(mers(training) - allowed) > 1000  # it does hold variants
    coordinates = DocumentCoordinates.open(options.output("_train"))
    for number in range(len(coordinates)):
        length = coordinates.arrays["document_length"][number]
        whole = coordinates.locate(number, np.array([0]), np.array([length]))
        contig = coordinates.origin(number).contig
        for held_contig, start, end in regions:
            assert contig != held_contig or whole.ends[0] <= start or whole.starts[0] >= end


def mers(texts: Any) -> set[str]:
    """64-mers of both strands."""
    both = [strand for text in texts for strand in (text, reverse_complement(text))]
    found = {text[i : i + MER] for text in both for i in range(len(text) - MER + 1)}
    return {mer for mer in found if "-" not in mer}


def test_windows_have_every_variant_and_its_context(
    variant_options: Callable[..., PreprocessOptions],
    variant_contigs: dict[str, str],
    variant_records: list[Record],
) -> None:
    """Each edit lies in one window with its context on both sides, and windows do not touch."""
    context = 15
    options = variant_options(holdout=(), reverse_complement=False, context=context)
    preprocess(options)
    coordinates = DocumentCoordinates.open(options.output("_train"))
    windows: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
    for number in range(len(coordinates)):
        end = coordinates.arrays["document_length"][number : number + 1]
        where = coordinates.locate(number, np.array([0]), end)
        key = coordinates.origin(number)[:3]
        windows.setdefault(key, []).append((int(where.starts[0]), int(where.ends[0])))
    (variants,) = (
        v for v in read_all(options.haplotypes.vcf[0], variant_contigs) if v.contig == "z"
    )
    for haplotype in variants.haplotypes:
        own = windows["z", haplotype.sample, haplotype.number]
        assert all(a[1] < b[0] for a, b in itertools.pairwise(own))
        assert sum(end - start for start, end in own) < 3000
        for edit in own_edits(variant_records, "z", haplotype.sample, haplotype.number):
            low, high = max(edit.start - context, 0), min(edit.end + context, 3000)
            assert any(start <= low and high <= end for start, end in own)


def test_short_documents_are_dropped_and_counted(
    variant_options: Callable[..., PreprocessOptions],
) -> None:
    options = variant_options(context=5, holdout=(), reverse_complement=False)
    preprocess(options)
    whole = [text for _, _, text in written(options.output("_train"), options.tokenizer)]
    lengths = sorted(map(len, whole))
    shortest = lengths[len(lengths) // 2]  # so long are some documents
    options = variant_options(min_length=shortest, context=5, holdout=(), reverse_complement=False)
    manifest = preprocess(options)
    found = [text for _, _, text in written(options.output("_train"), options.tokenizer)]
    assert found == [text for text in whole if len(text) >= shortest]
    dropped = [row["short_documents_dropped"] for row in manifest["haplotypes"]["haplotypes"]]
    assert sum(dropped) == len(whole) - len(found) > 10
