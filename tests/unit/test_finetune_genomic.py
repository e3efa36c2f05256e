"""Examples that are cut from a genome, against what was written into it."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron_dna.finetune.datasets import load_dataset
from megatron_dna.finetune.models import Tokens, token_labels
from megatron_dna.finetune.shuffle import shuffle_dinucleotides
from tests.unit.finetune_files import task_of
from tests.unit.genome_files import reverse_complement


@pytest.fixture
def genome(tmp_path: Path) -> str:
    """Contig `7` of a FASTA file, random bases with a gap."""
    bases = "".join(random.Random(3).choices("ACGT", k=30_000))
    bases = bases[:9_000] + "N" * 100 + bases[9_100:]
    (tmp_path / "g.fa").write_text(f">7\n{bases}\n")
    return bases


def test_shuffle_keeps_dinucleotides_and_nothing_else():
    draw = np.random.default_rng(0)
    text = "".join(random.Random(1).choices("AACGT", k=300)) + "A"
    shuffled = {shuffle_dinucleotides(text, draw) for _ in range(5)}
    assert len(shuffled) == 5
    for other in shuffled:
        assert Counter(map("".join, pairwise(other))) == Counter(map("".join, pairwise(text)))
        same = sum(a == b for a, b in zip(text, other, strict=True)) / len(text)
        assert same < 0.5
    assert shuffle_dinucleotides("A", draw) == "A"
    assert shuffle_dinucleotides("AAAC", draw) == "AAAC"


def test_intervals_have_negatives_of_the_same_gc(tmp_path: Path, genome: str):
    regions = [(1000 + 700 * i, 1100 + 700 * i) for i in range(10)] + [(20, 40), (9010, 9050)]
    text = "".join(f"chr7\t{start}\t{end}\n" for start, end in regions)
    (tmp_path / "r.tsv").write_text(f"chrom\tstart\tend\n{text}")
    task = task_of(
        tmp_path,
        f"name: i\nkind: classification\ndata: {{format: intervals, fasta: {tmp_path}/g.fa, "
        f"annotation: {tmp_path}/r.tsv, window: 80, negatives_per_positive: 20}}",
    )
    examples = load_dataset(task).examples
    positives = [e for e in examples if e.label == "1"]
    negatives = [e for e in examples if e.label == "0"]
    assert [e.start for e in positives] == [1010 + 700 * i for i in range(10)]
    gc = [Counter(round((e.sequence.count("G") + e.sequence.count("C")) / 80 * 50) for e in part)
          for part in (positives, negatives)]  # fmt: skip
    assert len(negatives) >= 150  # an extreme GC content may be too rare elsewhere
    assert all(count <= 20 * gc[0][share] for share, count in gc[1].items())
    for e in negatives:
        assert all(e.end <= start or end <= e.start for start, end in regions)
    for e in examples:
        assert (e.contig, e.sequence) == ("7", genome[e.start : e.end])


def transcripts(folder: Path, genome: str) -> str:
    """Two transcripts, + and -, with GT-AG introns, written into the genome."""
    bases = list(genome)
    for at, text in ((2200, "GT"), (2598, "AG"), (2700, "GT"), (3098, "AG"),
                     (5200, "CT"), (5498, "AC")):  # fmt: skip
        bases[at : at + 2] = text
    (folder / "g.fa").write_text(f">7\n{''.join(bases)}\n")
    header = "#NAME\tCHROM\tSTRAND\tTX_START\tTX_END\tEXON_START\tEXON_END"
    rows = [
        "A\tchr7\t+\t2000\t3300\t2000,2600,3100,\t2200,2700,3300,",
        "B\t7\t-\t5000\t5700\t5000,5500,\t5200,5700,",
        "C\tchr9\t-\t5000\t5700\t5000,5500,\t5200,5700,",
    ]
    text = "\n".join([header, *rows]) + "\n"
    (folder / "e.tsv.gz").write_bytes(gzip.compress(text.encode()))
    return "".join(bases)


def test_splice_sites(tmp_path: Path, genome: str):
    """In the direction of the gene: a donor's intron begins in the middle with GT, an acceptor's
    ended there with AG, and what is neither has them too."""
    bases = transcripts(tmp_path, genome)
    text = (f"name: s\nkind: classification\ndata: {{format: splice_sites, fasta: {tmp_path}/g.fa, "
            f"annotation: {tmp_path}/e.tsv.gz, window: 40, "
            "negatives_per_positive: 4}")  # fmt: skip
    examples = load_dataset(task_of(tmp_path, text)).examples
    places = {label: [e.start + 20 for e in examples if e.label == label]
              for label in ("donor", "acceptor", "neither")}  # fmt: skip
    assert places["donor"] == [2200, 2700, 5500]
    assert places["acceptor"] == [2600, 3100, 5200]
    assert len(places["neither"]) > 10
    for e in examples:
        window = bases[e.start : e.end]
        strand = "+" if e.start < 4000 else "-"
        assert e.sequence == (window if strand == "+" else reverse_complement(window))
        donor, acceptor = e.sequence[20:22] == "GT", e.sequence[18:20] == "AG"
        assert {"donor": donor, "acceptor": acceptor}.get(str(e.label), donor or acceptor)
    (tmp_path / "g.fa").write_text(f">7\n{genome[1:]}\n")
    with pytest.raises(ValueError, match=r"of 3 introns .* begin with GT .* is it of this genome"):
        load_dataset(task_of(tmp_path, text))


def test_exons(tmp_path: Path, genome: str):
    """A digit a base in the direction of the gene."""
    transcripts(tmp_path, genome)
    text = (f"name: e\nkind: token\ndata: {{format: exons, fasta: {tmp_path}/g.fa, "
            f"annotation: {tmp_path}/e.tsv.gz, window: 100}}")  # fmt: skip
    dataset = load_dataset(task_of(tmp_path, text))
    starts = [e.start for e in dataset.examples]
    assert starts == [2000, 2100, 2600, 3100, 3200, 5000, 5100, 5500, 5600]
    assert {e.label for e in dataset.examples} == {"1" * 100}
    wide = load_dataset(task_of(tmp_path, text, "data.window=250")).examples
    assert [e.start for e in wide] == [2000, 2500, 3000, 5000]
    assert wide[0].label == "1" * 200 + "0" * 50
    assert wide[3].label == "0" * 50 + "1" * 200


def test_density(tmp_path: Path, genome: str):
    """Records a window, between the first record and the last."""
    draw = random.Random(6)
    places = sorted({*draw.sample(range(2000, 20000), 300), 3000, 3500, 3999, 4499})
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n"
    rows = "".join(f"7\t{p + 1}\t.\t{genome[p]}\tA\n" for p in places)
    (tmp_path / "v.vcf.gz").write_bytes(gzip.compress((header + rows).encode()))
    text = (f"name: d\nkind: regression\ndata: {{format: density, fasta: {tmp_path}/g.fa, "
            f"annotation: {tmp_path}/v.vcf.gz, window: 500}}")  # fmt: skip
    dataset = load_dataset(task_of(tmp_path, text))
    assert dataset.examples[0].start >= places[0]
    assert dataset.examples[-1].end <= places[-1]
    for e in dataset.examples:
        assert e.label == (float(sum(e.start <= p < e.end for p in places)),)
        assert "N" not in e.sequence


def test_a_token_has_the_highest_label_of_its_bases():
    tokens = Tokens(np.array([1, 6, 7, 2]), np.array([[0, 3], [3, 4]]))
    assert token_labels(tokens, np.array([0, 2, 0, 1])).tolist() == [2, 1]


def test_annotation_of_other_contigs_is_refused(tmp_path: Path, genome: str):
    text = (f"name: i\nkind: classification\ndata: {{format: intervals, fasta: {tmp_path}/g.fa, "
            f"annotation: {tmp_path}/r.bed, window: 80}}")  # fmt: skip
    for rows, message in (
        ("chr8\t1\t5\n", r"no region on the contigs of data.fasta \(7\)"),
        ("7\t1\t90000\n", "not inside the contig, which has 30000"),
        ("7\tone\t5\n", r"r.bed, line 1 .* must be BED"),
    ):
        (tmp_path / "r.bed").write_text(rows)
        with pytest.raises(ValueError, match=message):
            load_dataset(task_of(tmp_path, text))
