"""Corpora: shards join to the bytes of one run, and every mistake in the file is named."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_dna.config import load_config
from megatron_dna.data import corpora
from megatron_dna.data.corpora import (
    merge_corpus,
    preprocess_corpus,
    read_corpus,
    take_shard,
    write_blend,
)
from megatron_dna.data.options import PreprocessOptions
from megatron_dna.data.preprocess import preprocess
from tests.unit.genome_files import ROOT, child_environment, files, run_tool
from tests.unit.variant_files import Record, vcf_text


def without_command(folder: Path) -> dict[str, Any]:
    """Every file of a folder; manifests without the command, which tells shards apart."""
    found: dict[str, Any] = dict(files(folder))
    for name in found:
        if name.endswith(".json"):
            found[name] = json.loads(found[name]) | {"command": None}
            found[name] = json.dumps(found[name])
    return found


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_joined_shards_are_one_run(corpus: Path, tmp_path: Path, num_shards: int) -> None:
    """A failure would make the data depend on how many machines prepared it."""
    whole = read_corpus(corpus, tmp_path / "whole", command=("whole",))
    list(preprocess_corpus(whole))
    sharded = read_corpus(corpus, tmp_path / "sharded", workers=2)
    for shard in reversed(range(1, num_shards + 1)):
        list(preprocess_corpus(sharded, (shard, num_shards)))
    merged = list(merge_corpus(sharded, tmp_path / "sharded"))
    assert [source.name for source, _ in merged] == ["first", "second-1", "third"]
    assert without_command(tmp_path / "sharded") == without_command(tmp_path / "whole")
    assert len(files(tmp_path / "whole")) == 7 + 7 + 4
    again = list(merge_corpus(sharded, tmp_path / "sharded"))
    assert [manifest for _, manifest in again] == [manifest for _, manifest in merged]


def test_each_document_is_in_one_shard(corpus: Path, tmp_path: Path) -> None:
    sources = read_corpus(corpus, tmp_path)
    for num_shards in (1, 2, 5, 64):
        parts: dict[str, list[Any]] = {source.name: [] for source in sources}
        for shard in range(1, num_shards + 1):
            for source in take_shard(sources, shard, num_shards):
                parts[source.name].append(source.options.part)
        for bounds in parts.values():
            assert bounds[0][0] == 0
            assert bounds[-1][1] == 1
            assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    for shard, num_shards in [(0, 2), (3, 2)]:
        with pytest.raises(ValueError, match=rf"shard \({shard}/{num_shards}\) must be I/N"):
            take_shard(sources, shard, num_shards)


def test_shards_are_as_large_as_each_other_with_compressed_files(
    corpus: Path, tmp_path: Path
) -> None:
    """A compressed file has about four times the bases that its size tells."""
    text = ">q\n" + "".join(random.Random(0).choices("ACGT", k=60_000))
    (tmp_path / "plain.fa").write_text(text)
    (tmp_path / "packed.fa.gz").write_bytes(gzip.compress(text.replace("q", "p").encode()))
    content = yaml.safe_load(corpus.read_text())
    content["sources"] = {"a": {"fasta": "plain.fa"}, "b": {"fasta": "packed.fa.gz"}}
    corpus.write_text(yaml.safe_dump(content))
    for source in take_shard(read_corpus(corpus, tmp_path), 1, 2):
        start, end = source.options.part
        assert float(end - start) == pytest.approx({"a": 1, "b": 0.1}[source.name], abs=0.1)


def test_shards_are_as_large_as_each_other_with_haplotypes(corpus: Path, tmp_path: Path) -> None:
    """Else one shard has all of a population, and the others wait for it."""
    samples, bases = [f"s{i}" for i in range(6)], "ACGTTGCAAC"
    (tmp_path / "v.vcf").write_text(vcf_text([Record("p", 3, "T", ("A",), ("0|1",) * 6)], samples))
    (tmp_path / "plain.fa").write_text(">q\n" + bases * 6_000)
    (tmp_path / "people.fa").write_text(">p\n" + bases * 2_000)
    content = yaml.safe_load(corpus.read_text())
    people = {"fasta": "people.fa", "vcf": "v.vcf"}
    for keys, num_copies in (
        ({}, 1 + 12),
        ({"num_samples": 3}, 1 + 6),
        ({"haplotypes": 2, "no_reference": True}, 6),
        ({"variant_context": 50, "reverse_complement": True}, 2 * (1 + 12 * 0.1)),
        ({"variant_context": 5000}, 1 + 12),
    ):
        content["sources"] = {"plain": {"fasta": "plain.fa"}, "people": people | keys}
        corpus.write_text(yaml.safe_dump(content))
        sources = read_corpus(corpus, tmp_path)
        num_bases = {"plain": 60_000, "people": 20_000 * num_copies}
        for num_shards in (2, 5):
            for shard in range(1, num_shards + 1):
                own = sum(
                    float(source.options.part[1] - source.options.part[0]) * num_bases[source.name]
                    for source in take_shard(sources, shard, num_shards)
                )
                assert own == pytest.approx(sum(num_bases.values()) / num_shards, rel=0.01)


def test_what_is_complete_is_not_made_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed corpus goes on with the source that it was at."""
    sources = read_corpus(corpus, tmp_path / "out")
    list(preprocess_corpus(sources))
    before = files(tmp_path / "out")
    (tmp_path / "out" / "second-1_train.bin").unlink()
    (tmp_path / "tiny.fa").write_text(">t1\nACGTACGTTTGA\n>t2\nGATTACAGATTACC\n")
    made = []

    def record(options: PreprocessOptions) -> dict[str, Any]:
        made.append(options.output_prefix.name)
        return preprocess(options)

    monkeypatch.setattr(corpora, "preprocess", record)
    list(preprocess_corpus(sources))
    assert made == ["second-1", "third"]
    after = files(tmp_path / "out")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"third.json", "third_train.bin"}


def test_shards_that_do_not_belong_together_are_refused(corpus: Path, tmp_path: Path) -> None:
    """A failure would join parts of different inputs, or leave a part out."""
    out = tmp_path / "out"
    sources = read_corpus(corpus, out)
    with pytest.raises(ValueError, match="no shard of 'first'"):
        list(merge_corpus(sources, out))
    list(preprocess_corpus(sources, (1, 3)))
    list(preprocess_corpus(sources, (2, 3)))
    for path in out.glob("first.shard-2-of-3*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"first\.shard-2-of-3\.json is not there: run its shard"):
        list(merge_corpus(sources, out))
    list(preprocess_corpus(sources, (2, 3)))
    list(preprocess_corpus(sources, (3, 3)))
    part = out / "first.shard-1-of-3_train.bin"
    content = part.read_bytes()
    part.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=r"first\.shard-1-of-3_train\.bin must have \d+ bytes"):
        list(merge_corpus(sources, out))
    part.write_bytes(content)
    changed = corpus.read_text().replace("reverse_complement: true", "reverse_complement: false")
    corpus.write_text(changed)
    with pytest.raises(ValueError, match=r"json is not there|options is not what it is now"):
        list(merge_corpus(read_corpus(corpus, out), out))
    corpus.write_text(changed.replace("complement: false", "complement: true"))
    list(preprocess_corpus(sources, (1, 2)))
    with pytest.raises(ValueError, match="shards of 2 and of 3 of 'first'"):
        list(merge_corpus(sources, out))
    assert not (out / "first.json").exists()


def test_the_example_corpus_from_the_shell(tmp_path: Path, tokenizer_path: Path) -> None:
    """The commands of the documentation: shards, then --merge, then a recipe that uses them."""
    folder = ROOT / "examples/corpora"
    content = yaml.safe_load((folder / "example.yaml").read_text())
    content["tokenizer"] = str(tokenizer_path)
    path = tmp_path / "corpus.yaml"
    path.write_text(yaml.safe_dump(content))
    common = ("--corpus", path, "--data-dir", folder, "--output-dir", tmp_path / "out")
    for shard in ("1/2", "2/2"):
        done = run_tool(*common, "--shard", shard, "--workers", "2")
        assert (done.returncode, done.stderr) == (0, "")
    done = run_tool(*common, "--merge")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("next: torchrun")
    blend = yaml.safe_load((tmp_path / "out/blend.yaml").read_text())
    assert [(row["weight"]) for row in blend["data"]["train"]] == [3, 1]
    recipe = yaml.safe_load((ROOT / "examples/tiny.yaml").read_text())
    recipe["data"] |= blend["data"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = load_config(tmp_path / "recipe.yaml", [])
    for source in (*config.data.train, *config.data.valid):
        assert Path(f"{source.prefix}.idx").exists()
    both = json.loads((tmp_path / "out/human_both_strands.json").read_text())
    forward = json.loads((tmp_path / "out/human_forward.json").read_text())
    assert both["holdout"] == forward["holdout"]
    assert both["totals"]["train"]["bases"] == 2 * forward["totals"]["train"]["bases"]
    assert both["species"] == "Homo sapiens"
    merged = files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    done = run_tool(*common, "--workers=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert files(tmp_path / "out") == merged  # the manifests have the same command too


SBATCH = """#!/bin/bash
# Stands for sbatch: runs each task of an array, or the job, at once.
printf '%s\\n' "$*" >> "$LOG"
for option in "$@"; do
    case $option in --array=1-*) last=${option#--array=1-} ;; esac
    script=$option
done
export SLURM_JOB_ID=7 SLURM_CPUS_PER_TASK=2
if [ -n "${last:-}" ]; then
    export SLURM_ARRAY_TASK_COUNT=1  # as where each is submitted by itself
    for ((i = last; i >= 1; i--)); do SLURM_ARRAY_TASK_ID=$i bash "$script" >&2; done
else
    bash "$script" >&2
fi
echo "7;cluster"
"""


def test_the_batch_script_makes_shards_and_joins_them(corpus: Path, tmp_path: Path) -> None:
    """Slurm is not there: what it is asked for is carried out by a script of its name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(SBATCH)
    (tmp_path / "bin/sbatch").chmod(0o755)
    environment = child_environment()
    environment |= {
        "PATH": f"{tmp_path / 'bin'}:{environment['PATH']}",
        "PYTHON": sys.executable,
        "CORPUS": str(corpus),
        "OUT": str(tmp_path / "out"),
        "LOG": str(tmp_path / "log"),
    }
    environment.pop("SLURM_JOB_ID", None)
    done = subprocess.run(
        ["bash", str(ROOT / "slurm/preprocess.sbatch"), "2", "--account=x"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "log").read_text().splitlines()
    assert "--array=1-2 --account=x" in asked[0]
    assert "--dependency=afterok:7 --account=x" in asked[1]
    list(preprocess_corpus(read_corpus(corpus, tmp_path / "whole")))
    merged = without_command(tmp_path / "out")
    merged.pop("blend.yaml")
    assert merged == without_command(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--corpus", "c.yaml"), "--corpus needs --output-dir"),
        (("--fasta", "a.fa", "--tokenizer", "t"), "--fasta needs --output-prefix"),
        (
            ("--corpus", "c.yaml", "--output-dir", "d", "--holdout", "20"),
            "--holdout goes with --fasta",
        ),
        (
            ("--corpus", "c.yaml", "--output-dir", "d", "--num-samples", "0"),
            "--num-samples goes with --fasta",
        ),
        (("--corpus", "c.yaml", "--output-dir", "d", "--shard", "1"), "must be I/N, such as 1/8"),
    ],
)
def test_options_that_do_not_go_together(
    corpus: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run_tool(*(str(corpus) if text == "c.yaml" else text for text in arguments))
    assert done.returncode == 2
    assert message in done.stderr


def test_the_blend_leaves_out_what_is_not_there(corpus: Path, tmp_path: Path) -> None:
    sources = list(preprocess_corpus(read_corpus(corpus, tmp_path / "out")))
    data = write_blend(tmp_path / "blend.yaml", sources)
    names = [Path(source["prefix"]).name for source in data["valid"]]
    assert names == ["first_valid", "second-1_valid"]
    assert [source["weight"] for source in data["train"]] == [0.5, 1, 3]
