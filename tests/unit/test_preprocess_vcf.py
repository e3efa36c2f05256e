"""`--vcf`: runs of the whole way: workers, shards, restarts, errors and the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from megatron_dna.data import output
from megatron_dna.data.coordinates import DocumentCoordinates
from megatron_dna.data.corpora import merge_corpus, preprocess_corpus, read_corpus
from megatron_dna.data.haplotypes import HaplotypeOptions, parse_haplotype_options
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from megatron_dna.genome.corpus import Document
from megatron_dna.genome.haplotype_documents import HaplotypeDocument
from megatron_dna.genome.variants import VariantOptions
from megatron_dna.genome.vcf import SampleChoice
from tests.unit.genome_files import (
    files,
    read,
    run_tool,
)
from tests.unit.variant_files import (
    SAMPLES,
    VARIANT_HOLDOUT,
    Record,
    vcf_text,
)


def test_workers_do_not_change_a_byte(variant_options: Callable[..., PreprocessOptions]) -> None:
    options = [variant_options(workers=n, context=30) for n in (1, 3)]
    contents = []
    for option in options:
        preprocess(option)
        contents.append(files(option.output_prefix.parent))
        for path in option.output_prefix.parent.iterdir():
            path.unlink()
    assert contents[0] == contents[1]
    assert len(contents[0]) == 7


@pytest.mark.parametrize("window_length", [0, 64])
def test_a_corpus_with_variants_in_shards_is_that_of_one_run(
    variant_options: Callable[..., PreprocessOptions], tmp_path: Path, window_length: int
) -> None:
    """Manifest, tokens and coordinates; a shard may begin amid the haplotypes."""
    options = variant_options()
    source = {
        "fasta": str(options.fasta[0]),
        "vcf": str(options.haplotypes.vcf[0]),
        "holdout": list(VARIANT_HOLDOUT),
        "reverse_complement": True,
        "haplotypes": 2,
        "variant_context": 40,
        "drop_duplicate_windows": window_length,
    }
    corpus = tmp_path / "corpus.yaml"
    corpus.write_text(
        yaml.safe_dump({"tokenizer": str(options.tokenizer), "sources": {"x": source}})
    )
    whole, joined = tmp_path / "whole", tmp_path / "joined"
    list(preprocess_corpus(read_corpus(corpus, whole)))
    for shard in (3, 1, 2):
        list(preprocess_corpus(read_corpus(corpus, joined), (shard, 3)))
    list(merge_corpus(read_corpus(corpus, joined), joined))
    assert files(whole) == files(joined)
    assert len(files(whole)) == 7


def test_a_stopped_run_goes_on_to_the_same_bytes(
    variant_options: Callable[..., PreprocessOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped amid the haplotypes, with many documents safe."""
    monkeypatch.setattr(output, "CHECKPOINT_BASES", 1000)
    options = variant_options(context=40)
    preprocess(options)
    folder = options.output_prefix.parent
    expected = files(folder)
    for path in folder.iterdir():
        path.unlink()
    original, ended = output.Output.end_document, []

    def end_document(self: output.Output, document: Document) -> None:
        original(self, document)
        ended.append(document)
        if len(ended) == 60:
            raise KeyboardInterrupt

    monkeypatch.setattr(output.Output, "end_document", end_document)
    with pytest.raises(KeyboardInterrupt):
        preprocess(options)
    assert isinstance(ended[-1], HaplotypeDocument)
    assert not {"p.json", "p_train.coordinates.npz"} & files(folder).keys()
    preprocess(options)
    assert files(folder) == expected
    assert 60 < len(ended) < 100  # of 80, those that were safe not again


@pytest.mark.parametrize(
    ("old", "new"),
    [("z\t", "w\t"), ("GT", "DP"), ("a\tb", "a\ta")],
    ids=["unknown contig", "no GT", "sample twice"],
)
def test_a_bad_vcf_leaves_nothing(
    variant_options: Callable[..., PreprocessOptions],
    variant_records: list[Record],
    old: str,
    new: str,
) -> None:
    """Also where the error comes after all of the reference was encoded; old files stay whole."""
    options = variant_options()
    vcf = options.haplotypes.vcf[0]
    good = vcf.read_bytes()
    vcf.write_text(vcf_text(variant_records, SAMPLES).replace(old, new))
    with pytest.raises(ValueError, match=str(vcf)):
        preprocess(options)
    assert not files(options.output_prefix.parent)
    vcf.write_bytes(good)
    preprocess(options)
    before = files(options.output_prefix.parent)
    vcf.write_bytes(good[:-28])
    with pytest.raises(ValueError, match="truncated"):
        preprocess(options)
    assert files(options.output_prefix.parent) == before


def test_the_command_line(
    variant_options: Callable[..., PreprocessOptions], tmp_path: Path
) -> None:
    options = variant_options()
    (tmp_path / "samples").write_text("b\n")
    common = ["--fasta", options.fasta[0], "--tokenizer", options.tokenizer]
    common += ["--output-prefix", options.output_prefix, "--vcf", options.haplotypes.vcf[0]]
    done = run_tool(*common, "--samples-file", tmp_path / "samples", "--haplotypes", "2")
    assert done.returncode == 0, done.stderr
    assert "haplotypes: 3 of 1 samples; alleles: " in done.stdout
    coordinates = DocumentCoordinates.open(options.output("_train"))
    assert set(coordinates.arrays["samples"].tolist()) == {"", "b"}
    assert set(coordinates.arrays["sequence_haplotype"].tolist()) == {0, 2}
    for wrong, message in (
        (["--samples", "a,c"], "there is no sample 'c'; it has a, b"),
        (["--variant-context", "0"], "variant_context (0) must be a number of bases from 1 on"),
        (["--num-samples", "0"], "num_samples (0) must be between 1 and 2"),
        (["--variant-context", "1k"], "variant_context (1k) must be a number of bases from 1"),
        (["--unphased", "no"], "unphased (no) must be one of error, skip, random"),
        (["--samples", "a", "--samples-file", "f"], "samples and samples_file exclude each other"),
        (["--seed", "-1"], "seed (-1) must be at least 0"),
    ):
        done = run_tool(*common, *wrong)
        assert done.returncode == 2
        assert message in done.stderr


def test_the_reference_can_be_left_out(variant_options: Callable[..., PreprocessOptions]) -> None:
    """So that the two can be blended by weight."""
    options = variant_options(reverse_complement=False)
    preprocess(options)
    together = read(options.output("_train"))
    coordinates = DocumentCoordinates.open(options.output("_train"))
    num_reference = sum(not coordinates.origin(n).sample for n in range(len(together)))
    alone = replace(options, haplotypes=replace(options.haplotypes, no_reference=True))
    preprocess(alone)
    assert read(options.output("_train")) == together[num_reference:]
    coordinates = DocumentCoordinates.open(options.output("_train"))
    assert all(coordinates.origin(n).sample for n in range(len(coordinates)))


def test_variants_that_are_all_held_out_are_an_error(
    variant_options: Callable[..., PreprocessOptions], variant_contigs: dict[str, str]
) -> None:
    """Where the reference is left out, nothing would be left for training."""
    options = variant_options(holdout=("x",))
    record = Record("x", 100, variant_contigs["x"][100], ("N",), ("1|1", "1|1"))
    options.haplotypes.vcf[0].write_text(vcf_text([record], SAMPLES))
    alone = replace(options, haplotypes=replace(options.haplotypes, no_reference=True))
    with pytest.raises(ValueError, match="no variant lies outside the holdout"):
        preprocess(alone)
    assert not files(options.output_prefix.parent)


def test_options_are_what_was_given() -> None:
    values = {"vcf": ["v"], "samples": ["a", "b"], "num_samples": 2, "seed": 7, "haplotypes": "2"}
    values |= {"unphased": "random", "on_ref_mismatch": "skip", "variant_context": "9"}
    assert parse_haplotype_options(values | {"no_reference": True}, Path("r")) == HaplotypeOptions(
        (Path("r/v"),),
        SampleChoice(("a", "b"), 2, 7),
        VariantOptions("2", "random", "skip", 7),
        9,
        True,
    )


def test_options_are_recorded(variant_options: Callable[..., PreprocessOptions]) -> None:
    options = variant_options()
    haplotypes = HaplotypeOptions(
        options.haplotypes.vcf,
        SampleChoice(num_samples=1, seed=4),
        VariantOptions(haplotypes="1", unphased="random", on_ref_mismatch="skip", seed=4),
        context=7,
    )
    manifest = preprocess(variant_options(haplotypes=haplotypes))
    assert manifest["options"]["haplotypes"] == {
        "haplotypes": "1",
        "unphased": "random",
        "on_ref_mismatch": "skip",
        "seed": 4,
        "names": [],
        "num_samples": 1,
        "variant_context": 7,
        "no_reference": False,
    }
    assert len(manifest["haplotypes"]["samples"]) == 1
    assert [Path(file["path"]).name for file in manifest["inputs"]] == ["r.fa", "v.vcf.gz"]
