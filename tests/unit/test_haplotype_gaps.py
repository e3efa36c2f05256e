"""Where documents of haplotypes end: at their own runs of N, and at held-out regions."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from megatron_dna.genome import haplotype_documents
from megatron_dna.genome.haplotype_documents import plan_haplotype
from megatron_dna.genome.sequence import find_stretches
from tests.unit.test_preprocess_haplotypes import check_tokens, own_edits, written
from tests.unit.variant_files import (
    SAMPLES,
    Record,
    edits_of,
    random_records,
    read_all,
    spell,
    vcf_text,
)


def contig_of_runs(draw: random.Random) -> str:
    """Bases, and runs of N of about the length that parts documents."""
    return "".join(
        draw.choice(["A", "ACGT", "N", "N" * draw.randrange(1, 25), "GATTACA"]) for _ in range(40)
    )


def records_of_runs(draw: random.Random, contig: str, reference: str) -> list[Record]:
    """Dense records, some of whose alleles have N; also deletions of more than a run."""
    records = []
    for record in random_records(draw, contig, reference):
        ref, alts = record.ref, list(record.alts)
        if draw.random() < 0.3:
            ref = reference[record.position : record.position + draw.randrange(1, 30)]
        alts = [
            "".join("N" if draw.random() < 0.4 else base for base in alt)
            if draw.random() < 0.4
            else alt
            for alt in alts
        ]
        if len({ref, *alts}) == 1 + len(alts):
            records.append(record._replace(ref=ref, alts=tuple(alts)))
    return records


def gaps_of(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer("N{10,}", text)]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
@example(764)  # an ALT that is a run of N
def test_documents_are_what_lies_between_the_haplotypes_own_gaps(tmp_path: Path, seed: int) -> None:
    """A failure would leave N in a document that no tokenizer spells, or lose sequence."""
    draw = random.Random(seed)
    reference = contig_of_runs(draw)
    records = records_of_runs(draw, "c", reference)
    if not records:
        return
    (tmp_path / "v.vcf").write_text(vcf_text(records, SAMPLES))
    (variants,) = read_all(tmp_path / "v.vcf", {"c": reference})
    gaps = gaps_of(reference)
    for haplotype in variants.haplotypes:
        edits = edits_of(records, SAMPLES.index(haplotype.sample), haplotype.number)
        text = spell(reference, edits)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(haplotype_documents, "BLOCK_LENGTH", draw.choice([1, 3, 1000]))
            whole = list(plan_haplotype(haplotype, [((0, len(reference)), "train")], gaps, None))
            windows = list(plan_haplotype(haplotype, [((0, len(reference)), "train")], gaps, 4))
        assert [(document.start, document.end) for document in whole] == find_stretches(
            text.encode()
        )
        read = [document.forward.read(0, document.length).decode() for document in whole]
        assert read == [part for part in re.split("N{10,}", text) if part]
        for document in windows:
            assert any(d.start <= document.start < document.end <= d.end for d in whole)


def test_joined_runs_of_n_part_documents_in_the_files(
    variant_options: Callable[..., PreprocessOptions], variant_contigs: dict[str, str]
) -> None:
    """Two runs of N that a deletion joins, one that an allele is, most of one deleted."""
    x = variant_contigs["x"]
    x = f"{x[:200]}NNNNN{x[205:220]}NNNNNN{x[226:]}"
    contigs = {"x": x, "y": variant_contigs["y"]}
    gap = x.index("N" * 40)
    records = [
        Record("x", 204, x[204:220], ("N",), ("1|0", "0|1")),
        Record("x", 1000, x[1000], (x[1000] + "N" * 10,), ("1|0", "0|0")),
        Record("x", gap + 1, x[gap + 1 : gap + 34], ("N",), ("0|1", "1|1")),
    ]
    options = variant_options(holdout=())
    options.fasta[0].write_text("".join(f">{n}\n{bases}\n" for n, bases in contigs.items()))
    options.haplotypes.vcf[0].write_text(vcf_text(records, SAMPLES))
    manifest = preprocess(options)
    prefix = options.output("_train")
    num_tokens = check_tokens(
        prefix,
        options.tokenizer,
        contigs,
        lambda contig, sample, number: own_edits(records, contig, sample, number),
    )
    assert num_tokens == manifest["totals"]["train"]["tokens"]
    expected = list(contigs.values())
    for sample in SAMPLES:
        for number in (1, 2):
            expected.append(spell(x, own_edits(records, "x", sample, number)))
    forward = [text for number, _, text in written(prefix, options.tokenizer) if number % 2 == 0]
    assert forward == [part for bases in expected for part in re.split("N{10,}", bases) if part]


def test_edits_at_a_border_are_held_out(tmp_path: Path) -> None:
    """An insertion at either border, a deletion over either: none of it is left to training."""
    reference = "ACGTTGCAACGATCCAGTCA" + "GGATCTTACGCAATGCCTGA" + "TCAGGCATTACGGATCCATG"
    deleted = reference[17:22], reference[37:42]  # the first base is kept
    records = [
        Record("c", 17, deleted[0], (deleted[0][0],), ("1|0",)),
        Record("c", 19, reference[19], (reference[19] + "TTTT",), ("0|1",)),
        Record("c", 37, deleted[1], (deleted[1][0],), ("0|1",)),
        Record("c", 39, reference[39], (reference[39] + "CCCC",), ("1|0",)),
    ]
    (tmp_path / "v.vcf").write_text(vcf_text(records, ["a"]))
    (variants,) = read_all(tmp_path / "v.vcf", {"c": reference})
    regions = [((0, 20), "train"), ((20, 40), "valid"), ((40, 60), "train")]
    for haplotype, expected in zip(
        variants.haplotypes,
        (
            (reference[:18], reference[22:40] + "CCCC", reference[40:]),
            (reference[:20], "TTTT" + reference[20:38], reference[42:]),
        ),
        strict=True,
    ):
        documents = list(plan_haplotype(haplotype, regions, [], None))
        assert [document.split for document in documents] == ["train", "valid", "train"]
        found = [document.forward.read(0, document.length).decode() for document in documents]
        assert tuple(found) == expected
