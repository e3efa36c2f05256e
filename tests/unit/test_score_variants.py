"""Scores of variants against a slow reading of their definition, and the files they are put in."""

from __future__ import annotations

import functools
import random
import subprocess
from pathlib import Path

import numpy as np
import pysam
import pytest
import torch

from megatron_dna.inference.alleles import MAX_REACH, Change, tokenise
from megatron_dna.inference.genome import Genome
from megatron_dna.inference.masked import MaskedModel
from megatron_dna.inference.mutagenesis import mutate_region
from megatron_dna.inference.score_log import ScoreLog
from megatron_dna.inference.scored_vcf import score_vcf
from megatron_dna.inference.variants import OUTCOMES, Scorer, Scores, Variant
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from tests.unit.genome_files import EXAMPLE, reverse_complement
from tests.unit.variant_files import needs_bcftools
from tests.unit.variant_models import Oracle, save_model

KINDS = ("plain", "rmt", "kmer")


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer_path: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    write_kmer_tokenizer(6, folder / "kmer.json")
    return {
        "plain": save_model(folder / "plain", tokenizer_path),
        "rmt": save_model(folder / "rmt", tokenizer_path, num_mem_tokens=3),
        "kmer": save_model(folder / "kmer", folder / "kmer.json"),
    }


@pytest.fixture(scope="module")
def contigs() -> dict[str, str]:
    """Real sequence with gaps, a short run of N and repeats; one contig is tiny."""
    with pysam.FastaFile(str(EXAMPLE)) as example:
        real = example.fetch("20", 1_000_000, 1_004_000)
    repeats = real[1500:1600] + "T" * 40 + real[1600:1620] + "CAG" * 12 + real[1620:1700]
    return {
        "a": real[:700] + "N" * 12 + real[700:1200] + "NNN" + real[1200:1500] + repeats,
        "tiny": real[2000:2012],
        "b": real[2100:2900],
    }


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, contigs: dict[str, str]) -> Path:
    return write_fasta(tmp_path_factory.mktemp("fasta") / "g.fa", contigs)


def write_fasta(path: Path, contigs: dict[str, str]) -> Path:
    path.write_text("".join(f">{name}\n{bases.lower()}\n" for name, bases in contigs.items()))
    return path


@pytest.fixture(scope="module")
def variants(contigs: dict[str, str]) -> list[Variant]:
    """SNVs, insertions, deletions and replacements: anywhere, at all ends and in repeats."""
    draw = random.Random(3)
    a = contigs["a"]
    places = [("a", i) for i in (0, 1, 698, 699, 712, 713, 1212, 1216, len(a) - 1, len(a) - 2)]
    places += [("a", i) for i in (a.index("T" * 40) + 7, a.index("CAG" * 12) + 9)]
    places += [("tiny", 0), ("tiny", 5), ("tiny", 11)]
    places += [("b", draw.randrange(800)) for _ in range(12)]
    found = []
    for contig, start in places:
        bases = contigs[contig]
        base = bases[start]
        found.append(Variant(contig, start, base, draw.choice("ACGT".replace(base, ""))))
        ref = bases[start : start + draw.choice((1, 2, 4, 9))]
        alts = [ref + "".join(draw.choices("ACGT", k=draw.choice((1, 2, 7)))), ref[0], ref + ref]
        alts.append("".join(draw.choices("ACGT", k=draw.choice((1, 3)))))
        found += [Variant(contig, start, ref, alt) for alt in alts if alt != ref]
    return [variant for variant in found if "N" not in variant.ref]


@functools.cache
def load(folder: Path) -> MaskedModel:
    return MaskedModel(folder, torch.device("cpu"), torch.float32)


def score(
    folder: Path, fasta: Path, variants: list[Variant], tmp_path: Path, batch_size: int = 7
) -> Scores:
    model = load(folder)
    return Scorer(model, Genome(fasta, tmp_path), batch_size)(variants)


def values(scores: Scores) -> np.ndarray:
    return np.stack([scores["log_ratio"], scores["distance"]], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_a_slow_oracle(models, contigs, fasta, variants, tmp_path: Path, kind):
    """A difference means that docs/variants.md does not say what the numbers are."""
    got = score(models[kind], fasta, variants, tmp_path)
    oracle = Oracle(models[kind])
    want = np.array([oracle(contigs[v.contig], *v[1:]) for v in variants])
    assert len(want) > 90
    assert (got["outcome"] == OUTCOMES.index("scored")).all()
    np.testing.assert_allclose(values(got), want, atol=1e-5)
    assert (np.nanstd(want, 0) > 0.05).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_allele_scores_nothing(models, contigs, fasta, tmp_path: Path, kind):
    same = [Variant("b", i, contigs["b"][i : i + n], contigs["b"][i : i + n].lower())
            for i, n in ((0, 1), (100, 1), (300, 5), (799, 1))]  # fmt: skip
    assert not values(score(models[kind], fasta, same, tmp_path)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_swapped_alleles_flip_the_sign(models, contigs, fasta, variants, tmp_path: Path, kind):
    """In a reference that has ALT; if not, scores depend on which allele was sequenced first."""
    there = values(score(models[kind], fasta, variants, tmp_path))
    back = []
    for v in variants:
        bases = contigs[v.contig]
        edited = bases[: v.start] + v.alt + bases[v.start + len(v.ref) :]
        path = write_fasta(tmp_path / "e.fa", {v.contig: edited})
        back.append(Variant(v.contig, v.start, v.alt, v.ref))
        back[-1] = values(score(models[kind], path, back[-1:], tmp_path))[0]
    np.testing.assert_allclose(np.array(back) * (-1, 1), there, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_strand_scores_the_same(models, contigs, fasta, variants, tmp_path: Path, kind):
    turned = {name: reverse_complement(bases) for name, bases in contigs.items()}
    path = write_fasta(tmp_path / "t.fa", turned)
    other = [
        Variant(
            v.contig, len(contigs[v.contig]) - v.start - len(v.ref),
            reverse_complement(v.ref), reverse_complement(v.alt),
        )
        for v in variants
    ]  # fmt: skip
    np.testing.assert_allclose(
        values(score(models[kind], path, other, tmp_path)),
        values(score(models[kind], fasta, variants, tmp_path)),
        atol=1e-6,
    )


def test_an_indel_scores_the_same_wherever_it_is_aligned(models, contigs, fasta, tmp_path: Path):
    bases = contigs["a"]
    start = bases.index("CAG" * 12)
    shifts = [Variant("a", start + i, bases[start + i : start + i + 4], bases[start + i])
              for i in range(0, 32)]  # fmt: skip
    scores = values(score(models["plain"], fasta, shifts, tmp_path))
    np.testing.assert_allclose(scores, scores[:1].repeat(len(scores), 0), atol=1e-6)
    assert abs(scores[0, 0]) > 0.01


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_does_not_matter(models, fasta, variants, tmp_path: Path, batch_size):
    want = values(score(models["rmt"], fasta, variants, tmp_path))
    got = [score(models["rmt"], fasta, [v], tmp_path, batch_size) for v in variants[:5]]
    np.testing.assert_allclose(np.concatenate([values(g) for g in got]), want[:5], atol=1e-6)
    np.testing.assert_allclose(
        values(score(models["rmt"], fasta, variants, tmp_path, batch_size)), want, atol=1e-6
    )


def test_what_has_no_score(models, contigs, fasta, tmp_path: Path):
    """Symbolic alleles, letters that stand for several bases, and what a segment cannot hold."""
    base = contigs["b"][50]
    alts = ["<DEL>", "*", f"{base}[a:7[", ".A", "N", base + "R", base + "ACGT" * 100]
    got = score(models["plain"], fasta, [Variant("b", 50, base, alt) for alt in alts], tmp_path)
    assert [OUTCOMES[i] for i in got["outcome"]] == [
        *["symbolic"] * 4, "ambiguous", "ambiguous", "too long"
    ]  # fmt: skip
    assert np.isnan(values(got)).all()


def test_a_frame_shift_of_kmers_stays_near(models):
    """Not all tokens behind an indel are masked, though all of them changed."""
    tokenizer = DnaTokenizer.from_file(models["kmer"] / "tokenizer.json")
    draw = random.Random(1)
    left, right = ("".join(draw.choices("ACGT", k=900)).encode() for _ in range(2))
    change = Change(left, b"AC", b"ACC", right)
    pair = tokenise(change, tokenizer, tokenizer.token_spans, 512)
    assert pair is not None
    for tokens, allele in zip(pair, (b"AC", b"ACC"), strict=True):
        changed = tokenizer.decode(tokens.changed).encode()
        assert changed.endswith(allele)
        assert len(changed) < MAX_REACH
        assert left.endswith(changed[: -len(allele)])
        assert right.startswith(tokenizer.decode(tokens.right).encode()[:500])
        assert len(tokens.right) > 100


HEADER = """\
##fileformat=VCFv4.2
##INFO=<ID=AC,Number=A,Type=Integer,Description="Allele count">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1
"""


@pytest.fixture
def records(contigs: dict[str, str]) -> list[list[str]]:
    """Columns of a file without lines for its contigs, for UNDECLARED and for a filter."""
    a, b = contigs["a"], contigs["b"]
    other = {base: "ACGT".replace(base, "") for base in "ACGT"}
    rows = [
        ("a", 5, a[4:7], f"{a[4]},{other[a[4]][0]}{a[5:7]},<DEL>", "AC=3,1,2"),
        ("a", 5, a[4], "*", "."),
        ("a", 9, a[8].lower(), ".", "AC=."),
        *(("a", i, a[i - 1], ",".join(other[a[i - 1]]), "UNDECLARED=x") for i in range(20, 60, 3)),
        ("b", 700, b[699], "G,N," + b[699:701], "AC=1,2,3"),
    ]
    return [
        [contig, str(at), f"rs{n}", ref, alts, "12.5", "q10", info, "GT", "0|1"]
        for n, (contig, at, ref, alts, info) in enumerate(rows)
    ]


def write_records(path: Path, records: list[list[str]]) -> Path:
    path.write_text(HEADER + "".join("\t".join(row) + "\n" for row in records))
    return path


def run(folder: Path, fasta: Path, vcf: Path, output: Path, batch_size: int = 4):
    return score_vcf(load(folder), fasta, vcf, output, batch_size)


def bcftools(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["bcftools", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[E" not in done.stderr + done.stdout
    return done.stdout


@needs_bcftools
def test_a_scored_file_has_all_records_in_order(models, fasta, records, tmp_path: Path):
    """And opens elsewhere; values belong to their alternatives, and missing ones are missing."""
    vcf = write_records(tmp_path / "v.vcf", records)
    output = tmp_path / "new" / "s.vcf.gz"
    counts = run(models["plain"], fasta, vcf, output)
    assert counts == {"scored": 2 + 14 * 3 + 2, "symbolic": 2, "ambiguous": 1, "too long": 0}
    assert {path.name for path in output.parent.iterdir()} == {"s.vcf.gz", "s.vcf.gz.tbi"}
    rows = [line.split("\t") for line in bcftools("view", "-H", output).splitlines()]
    for row, record in zip(rows, records, strict=True):
        info, *scores = row[7].split(";MDNA_") if "=" in record[7] else (".", *row[7].split(";"))
        assert [*row[:7], info, *row[8:]] == record
        alts = record[4].split(",")
        if alts == ["."]:
            assert not scores
            continue
        llr, distance = (field.split("=")[1].split(",") for field in scores)
        if alts == ["*"]:
            assert (llr, distance) == (["."], ["."])
            continue
        assert len(llr) == len(distance) == len(alts)
        wanted = [Variant(record[0], int(record[1]) - 1, record[3], alt) for alt in alts]
        for one, *texts in zip(
            values(score(models["plain"], fasta, wanted, tmp_path)), llr, distance, strict=True
        ):
            found = [np.nan if text == "." else float(text) for text in texts]
            np.testing.assert_allclose(found, one, rtol=1e-5, atol=1e-5)
    header = bcftools("view", "-h", output)
    assert header.count("ID=MDNA_LLR,Number=A,Type=Float") == 1
    assert header.count("ID=MDNA_DIST,Number=A,Type=Float") == 1
    assert len(bcftools("view", "-H", "-r", "b", output).splitlines()) == 1


@needs_bcftools
def test_records_that_are_not_sorted_have_no_index(models, fasta, records, tmp_path: Path):
    """An index of an older file is not left beside the new one."""
    output = tmp_path / "s.vcf.gz"
    run(models["plain"], fasta, write_records(tmp_path / "v.vcf", records[:4]), output)
    assert Path(f"{output}.tbi").exists()
    run(models["plain"], fasta, write_records(tmp_path / "w.vcf", records[::-1]), output)
    assert not Path(f"{output}.tbi").exists()
    ids = [line.split("\t")[2] for line in bcftools("view", "-H", output).splitlines()]
    assert ids == [row[2] for row in records[::-1]]


def test_a_killed_run_goes_on(models, fasta, records, tmp_path: Path, monkeypatch):
    """Killed after every chunk but one, it scores nothing twice and ends with the same file."""
    vcf = write_records(tmp_path / "v.vcf", records)
    run(models["plain"], fasta, vcf, tmp_path / "once.vcf.gz")
    original, scored, kills = Scorer.__call__, [], 0

    def dies(self, variants):
        if variants and sum(map(bool, scored)) > kills + 1:
            raise KeyboardInterrupt
        scored.append(list(variants))
        return original(self, variants)

    monkeypatch.setattr(Scorer, "__call__", dies)
    while True:
        try:
            run(models["plain"], fasta, vcf, tmp_path / "killed.vcf.gz")
        except KeyboardInterrupt:
            kills += 1
            assert kills < 20
            assert not (tmp_path / "killed.vcf.gz").exists()
            log = tmp_path / "killed.vcf.gz.partial" / "scores"
            log.write_bytes(log.read_bytes() + b"torn")
        else:
            break
    assert kills > 2
    assert sum(map(len, scored)) == 49
    assert (tmp_path / "killed.vcf.gz").read_bytes() == (tmp_path / "once.vcf.gz").read_bytes()
    assert not (tmp_path / "killed.vcf.gz.partial").exists()


def test_a_log_of_another_run_is_dropped(models, fasta, variants, tmp_path: Path):
    model = load(models["plain"])
    scorer = Scorer(model, Genome(fasta, tmp_path), 4)
    ScoreLog(scorer, tmp_path, {"model": "x"})(variants[:3])
    assert ScoreLog(scorer, tmp_path, {"model": "x"}).num_known == 3
    assert ScoreLog(scorer, tmp_path, {"model": "y"}).num_known == 0
    assert ScoreLog(scorer, tmp_path, {"model": "x"}).num_known == 0


def test_all_mutations_of_a_region(models, contigs, fasta, tmp_path: Path):
    """Over a gap, whose positions are left out; the table agrees with single variants."""
    model = load(models["rmt"])
    output = tmp_path / "new" / "m.tsv"
    number = mutate_region(model, fasta, "a:691-718", output, 16)
    assert {path.name for path in output.parent.iterdir()} == {"m.tsv", "m.png"}
    assert (tmp_path / "new" / "m.png").read_bytes().startswith(b"\x89PNG")
    header, *lines = output.read_text().splitlines()
    assert header.split("\t") == ["contig", "position", "ref", "alt", "log_ratio", "distance"]
    rows = [line.split("\t") for line in lines]
    places = [*range(690, 700), *range(712, 718)]
    bases = contigs["a"]
    wanted = [Variant("a", i, bases[i], alt) for i in places for alt in "ACGT" if alt != bases[i]]
    assert [Variant(r[0], int(r[1]) - 1, r[2], r[3]) for r in rows] == wanted
    assert number == len(wanted)
    found = np.array([[float(x) for x in row[4:]] for row in rows])
    want = values(score(models["rmt"], fasta, wanted, tmp_path))
    np.testing.assert_allclose(found, want, atol=1e-5, rtol=1e-5)
