"""What the inspecting tool says of a pair is what is in it, to the base."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
from matplotlib.image import imread

from megatron_dna.config import load_config
from megatron_dna.data.coordinates import DocumentCoordinates, TokenIntervals
from megatron_dna.data.haplotypes import HaplotypeOptions
from megatron_dna.data.inspect import Dataset, Origin
from megatron_dna.data.loader import build_loader
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.pictures import measure_coverage, plot_dataset
from megatron_dna.data.preprocess import preprocess
from megatron_dna.genome.coordinates import CoordinateMap
from megatron_dna.genome.vcf import SampleChoice
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from megatron_dna.training.guard import save_batch
from tests.unit.data_files import write_pair, write_tokenizer
from tests.unit.genome_files import EXAMPLE, ROOT, child_environment, clean, reverse_complement
from tests.unit.variant_files import EXAMPLE_VCF, edits_of, real_records, vcf_text
from tests.unit.variant_files import spell as spell_edits


@pytest.fixture
def prefix(options: Callable[..., PreprocessOptions]) -> str:
    """Training documents of four contigs, both strands, some sequence held out."""
    preprocess(options())
    return f"{options().output('_train')}"


def origins(dataset: Dataset) -> list[Origin]:
    """Of every document."""
    found = [dataset.origin(document) for document in range(len(dataset.tokens))]
    return [origin for origin in found if origin is not None]


def spell(contigs: dict[str, str], origin: Origin) -> str:
    """The sequence of an interval, from the raw contigs."""
    forward = clean(contigs[origin.contig][origin.start : origin.end])
    return forward if origin.strand == "+" else reverse_complement(forward)


def test_counts_are_those_of_the_sequence(prefix: str, contigs: dict[str, str]) -> None:
    """Counted again letter by letter, from the coordinates of the documents."""
    dataset = Dataset(prefix)
    texts = [spell(contigs, origin) for origin in origins(dataset)]
    letters = Counter("".join(texts))
    assert len(texts) == len(dataset.tokens) > 4
    assert dataset.base_counts == {base: letters[base] for base in "ACGTN"}
    assert dataset.base_counts["N"] > 0
    assert dataset.num_bases == sum(map(len, texts))
    gc, known = letters["G"] + letters["C"], sum(letters[base] for base in "ACGT")
    assert dataset.gc == pytest.approx(gc / known)
    assert dataset.token_counts.sum() == dataset.tokens.num_tokens
    by_contig = {contig.name: contig for contig in dataset.contigs or ()}
    for name, contig in by_contig.items():
        rows = [i for i, origin in enumerate(origins(dataset)) if origin.contig == name]
        assert contig.documents == len(rows)
        assert contig.bases == sum(len(texts[i]) for i in rows)
        assert contig.tokens == sum(int(dataset.tokens.lengths[i]) for i in rows)
        assert contig.length == len(contigs[name])
    assert [Path(source.name).name for source in dataset.sources] == ["1.fa", "2.fa.gz"]
    assert sum(source.tokens for source in dataset.sources) == dataset.tokens.num_tokens
    assert dataset.sources[0].length == len(contigs["a"]) + len(contigs["b"])


def test_every_window_spells_its_reference(prefix: str, contigs: dict[str, str]) -> None:
    """Both strands; together the windows are the documents, and no base is told twice."""
    dataset = Dataset(prefix)
    assert {origin.strand for origin in origins(dataset)} == {"+", "-"}
    texts = [""] * len(dataset.tokens)
    num_windows = sum(-(-int(length) // 97) for length in dataset.tokens.lengths)
    for number in range(num_windows):
        window = dataset.window(number, 97)
        assert window.origin is not None
        assert window.bases == spell(contigs, window.origin)
        assert len(window.ids) == min(97, dataset.tokens.lengths[window.document] - window.start)
        texts[window.document] += window.bases
    assert texts == [spell(contigs, origin) for origin in origins(dataset)]
    with pytest.raises(ValueError, match=rf"window \({num_windows}\) must be between 0 and"):
        dataset.window(num_windows, 97)


def test_tokens_of_a_document(prefix: str, contigs: dict[str, str]) -> None:
    dataset = Dataset(prefix)
    some = dataset.decode(1, 100, 7)
    assert len(some.ids) == 7
    assert some.origin is not None
    assert some.bases == spell(contigs, some.origin)
    for document, start, length, message in (
        (99, 0, 1, r"document \(99\) must be between 0 and"),
        (-1, 0, 1, "document"),
        (0, 10**6, 1, r"start \(1000000\) must be between 0 and"),
        (0, -1, 1, "start"),
        (0, 0, 0, r"length \(0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            dataset.decode(document, start, length)
    with pytest.raises(ValueError, match=r"length \(0\)"):
        dataset.window(0, 0)


def test_shares_of_haplotypes_are_those_of_the_manifest(tmp_path: Path) -> None:
    """The example's VCF: shares by sample and contig."""
    tokenizer, fasta = tmp_path / "t.json", tmp_path / "r.fa"
    write_kmer_tokenizer(3, tokenizer)
    with pysam.FastaFile(str(EXAMPLE)) as example:
        chr20 = example.fetch("20")
    fasta.write_text(f">20\n{chr20}\n")
    haplotypes = HaplotypeOptions((EXAMPLE_VCF,), SampleChoice(num_samples=2), context=100)
    options = PreprocessOptions(
        (fasta,), tokenizer, tmp_path / "p", reverse_complement=True, haplotypes=haplotypes
    )
    manifest = preprocess(options)
    dataset = Dataset(f"{tmp_path}/p_train")
    rows = manifest["haplotypes"]["haplotypes"]
    for share in dataset.samples:
        if share.name != "reference":
            own = [row["train"] for row in rows if row["sample"] == share.name]
            for key in ("documents", "bases", "tokens"):
                assert getattr(share, key) == sum(row[key] for row in own)
    assert len(dataset.samples) == 3
    assert sum(share.tokens for share in dataset.samples) == dataset.tokens.num_tokens
    assert dataset.contigs is not None
    assert dataset.contigs[0].tokens == dataset.tokens.num_tokens
    located = origins(dataset)
    stretches = [np.stack(found, 1) for found in dataset.stretches("20")]
    assert len(stretches) == 5  # the contig and two haplotypes of two samples
    expected = [[origin.start, origin.end] for origin in located]
    assert np.concatenate(stretches).tolist() == expected
    document = next(n for n, origin in enumerate(located) if origin.sample)
    done = run(f"{tmp_path}/p_train", "--document", str(document), "--length", "10")
    assert f"{dataset.samples[1].name} haplotype 1" in done.stdout.splitlines()[0]
    assert dataset.samples[1].name in run(f"{tmp_path}/p_train").stdout


def test_windows_of_haplotypes_are_the_reference_with_its_alleles(
    tmp_path: Path, tokenizer_path: Path
) -> None:
    """Every window, base for base, both strands; as the command line prints it, too."""
    start, end, samples = 1_000_000, 1_120_000, ("HG00096", "HG01624")
    with pysam.FastaFile(str(EXAMPLE)) as example:
        reference = "N" * start + example.fetch("20", start, end)
    records = real_records(start, end - 99, samples)
    (tmp_path / "r.fa").write_text(f">20\n{reference}\n")
    (tmp_path / "v.vcf").write_text(vcf_text(records, samples))
    haplotypes = HaplotypeOptions((tmp_path / "v.vcf",), context=100, no_reference=True)
    preprocess(
        PreprocessOptions(
            (tmp_path / "r.fa",),
            tokenizer_path,
            tmp_path / "p",
            reverse_complement=True,
            haplotypes=haplotypes,
        )
    )
    dataset, length = Dataset(f"{tmp_path}/p_train"), 9
    coordinates = DocumentCoordinates.open(tmp_path / "p_train")
    edits = {
        (sample, number): edits_of(records, samples.index(sample), number)
        for sample in samples
        for number in (1, 2)
    }
    texts = [""] * len(dataset.tokens)
    changed: list[int] = []
    for number in range(sum(-(-int(own) // length) for own in dataset.tokens.lengths)):
        window = dataset.window(number, length)
        place = window.origin
        assert place is not None
        before, after = len(texts[window.document]), len(texts[window.document] + window.bases)
        texts[window.document] += window.bases
        near = [e for e in edits[place.sample, place.haplotype] if e.end >= place.start - 1]
        mapped = spell_edits(reference, near, place.start, place.end)
        where = coordinates.locate(window.document, np.array([before]), np.array([after]))
        forward = window.bases if place.strand == "+" else reverse_complement(window.bases)
        assert mapped[int(where.offsets[0]) :][: len(forward)] == forward
        assert (place.start, place.end) == (int(where.starts[0]), int(where.ends[0]))
        if mapped != reference[place.start : place.end]:
            changed.append(number)
    assert len(changed) > 100
    done = run(f"{tmp_path}/p_train", "--window", str(changed[7]), "--length", str(length))
    heading, *lines = done.stdout.splitlines()
    shown = dataset.window(changed[7], length)
    first = f">document {shown.document} tokens {shown.start}-{shown.start + len(shown.ids)}"
    assert heading == f"{first} {shown.origin}"
    assert "".join(lines) == shown.bases


def test_a_window_locates_itself_alone(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair may have a billion documents: to show one of its windows none else is looked at."""
    original, located = DocumentCoordinates.locate, []

    def locate(self: DocumentCoordinates, document: int, *bounds: Any) -> TokenIntervals:
        located.append(document)
        return original(self, document, *bounds)

    monkeypatch.setattr(DocumentCoordinates, "locate", locate)
    window = Dataset(prefix).window(70, 97)
    assert located == [window.document]


def test_a_place_is_found_without_a_copy_of_the_edits() -> None:
    """Else a look at some thousand documents copies the edits of a chromosome as often."""
    starts = np.arange(100_000, dtype=np.int64) * 100
    edits = CoordinateMap(starts, np.full_like(starts, 3), np.full_like(starts, 1))
    one = np.array([5_000_050])
    edits.to_reference(one, one + 1)
    tracemalloc.start()
    edits.to_reference(one, one + 1)
    edits.upper(one)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000  # a column has 800,000 bytes


def test_pairs_without_manifest(tmp_path: Path) -> None:
    """Anyone's pair can be looked at with its tokenizer; special tokens spell nothing."""
    tokenizer = tmp_path / "t.json"
    write_kmer_tokenizer(1, tokenizer)  # ids 6 to 10: A C G N T
    prefix = write_pair(tmp_path / "p", [[6, 7, 8, 8, 5], [10, 9]], np.int32)
    dataset = Dataset(prefix, tokenizer)
    assert dataset.base_counts == {"A": 1, "C": 1, "G": 2, "T": 1, "N": 1}
    assert dataset.gc == pytest.approx(3 / 5)
    assert dataset.num_bases == 6
    assert dataset.contigs is dataset.origin(0) is None
    assert dataset.sources == []
    window = dataset.window(1, 3)
    assert (window.document, window.start, window.bases, window.origin) == (0, 3, "G", None)
    with pytest.raises(ValueError, match="give it with --tokenizer"):
        Dataset(prefix)
    with pytest.raises(ValueError, match=r"t2.json of .* is not there"):
        Dataset(prefix, tmp_path / "t2.json")
    plot_dataset(dataset, tmp_path / "p.png")
    assert imread(tmp_path / "p.png").ndim == 3


def test_files_that_do_not_belong_together(prefix: str, tmp_path: Path) -> None:
    """Else coordinates or bases would be those of other data."""
    with pytest.raises(ValueError, match="is not the one that"):
        Dataset(prefix, write_tokenizer(tmp_path / "other.json"))
    stem = prefix.removesuffix("_train")
    with pytest.raises(ValueError, match="give .*_train or _valid"):
        Dataset(stem)
    path = Path(f"{stem}.json")
    manifest = json.loads(path.read_text())
    manifest["documents"]["train"].reverse()
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="lists other documents than"):
        Dataset(prefix)
    for broken in ("{", "[]", '{"tokenizer": 1}'):
        path.write_text(broken)
        with pytest.raises(ValueError, match="must be the manifest"):
            Dataset(prefix)
    small = tmp_path / "1.json"
    write_kmer_tokenizer(1, small)
    path.unlink()
    with pytest.raises(ValueError, match=r"holds id \d+, outside the tokenizer's vocabulary"):
        _ = Dataset(prefix, small).gc
    Path(f"{prefix}.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        Dataset(prefix, small)


def test_coverage() -> None:
    """Each base counted, on a small contig with documents that overlap and lie on both strands."""
    rng = np.random.default_rng(0)
    bounds = np.sort(rng.integers(0, 1_001, (30, 2)), axis=1)
    depth = np.zeros(1_001)
    for start, end in bounds:
        depth[start:end] += 1
    covered = measure_coverage(*bounds.T, 1_001, 100)
    want = [depth[start : min(start + 100, 1_001)].mean() for start in range(0, 1_001, 100)]
    assert covered == pytest.approx(np.array(want))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the tool."""
    command = [sys.executable, str(ROOT / "tools/inspect_dataset.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=child_environment(), check=False
    )


def test_command_line(prefix: str, tmp_path: Path, contigs: dict[str, str]) -> None:
    picture = tmp_path / "report.png"
    done = run(prefix, "--plot", str(picture))
    assert (done.returncode, done.stderr) == (0, "")
    dataset = Dataset(prefix)
    for said in (f"{dataset.tokens.num_tokens:,}", f"{dataset.num_bases:,}", f"{dataset.gc:.2%}"):
        assert said in done.stdout
    assert imread(picture).shape[2] == 4
    done = run(prefix, "--document", "1", "--start", "5", "--length", "60")
    heading, *lines = done.stdout.splitlines()
    window = dataset.decode(1, 5, 60)
    assert heading == f">document 1 tokens 5-65 {window.origin}"
    assert "".join(lines) == window.bases
    done = run(prefix, "--window", "0", "--length", "10")
    assert done.stdout.startswith(">document 0 tokens 0-10 a:")
    done = run(str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_skipped_batch_is_where_its_coordinates_say(
    prefix: str, options: Callable[..., PreprocessOptions], contigs: dict[str, str], tmp_path: Path
) -> None:
    """If not, who looks for the cause of a bad step looks at other sequence than the model saw."""
    tokenizer = DnaTokenizer.from_file(options().tokenizer)
    config = load_config(
        None,
        [f"data.tokenizer={options().tokenizer}", f"data.train=[{{prefix: {prefix}}}]",
         "data.segment_size=24", "train.global_batch_size=6", "train.micro_batch_size=6"],
    )  # fmt: skip
    path = save_batch(tmp_path, config, 5, 12, {"fault": "loss is nan"})
    samples = json.loads(path.read_text())["samples"]
    assert [sample["sample"] for sample in samples] == list(range(12, 18))
    batch = next(build_loader(config, "train", 12, 0, 1))
    ids = batch.input_ids[0].scatter(-1, batch.masked_positions[0], batch.labels[0])
    for sample, row, length in zip(samples, ids, batch.num_tokens[0], strict=True):
        seen = tokenizer.decode(row[1 : 1 + int(length)].numpy().astype(np.int32))
        assert len(seen) > 30
        assert spell(contigs, Origin(**sample["origin"])) == seen
