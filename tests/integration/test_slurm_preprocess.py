"""slurm/preprocess.sbatch under a real Slurm: an array of shards and the merge after it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.commands import ROOT, run_python
from tests.integration.slurm import Slurm, slurm_cluster
from tests.unit.data_files import write_tokenizer

SCRIPT = "slurm/preprocess.sbatch"
GENOME = ROOT / "examples/data/human_chr20_1-4000000.fa.gz"
VARIANTS = ROOT / "examples/data/human_kgp_chr20_20samples.vcf.gz"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference on both strands, and windows around the variants of two samples."""
    folder = tmp_path_factory.mktemp("corpus")
    write_tokenizer(folder / "tokenizer.json", longest=3)
    reference = {"fasta": str(GENOME), "holdout": "20:3000001-4000000"}
    sources = {
        "both_strands": reference | {"reverse_complement": True, "weight": 3},
        "variants": reference
        | {"vcf": str(VARIANTS), "num_samples": 2, "variant_context": 200, "no_reference": True},
    }
    path = folder / "corpus.yaml"
    path.write_text(yaml.safe_dump({"tokenizer": "tokenizer.json", "sources": sources}))
    return path


@pytest.fixture(scope="module")
def direct(corpus: Path) -> dict[str, Any]:
    """What one command makes of the corpus."""
    out = corpus.parent / "direct"
    done = run_python("tools/preprocess_genome.py", "--corpus", corpus, "--output-dir", out)
    assert done.returncode == 0, done.stderr
    return contents(out)


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a folder; without what names the folder and the command."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in found:
        if name.endswith(".json"):
            found[name] = json.loads(found[name]) | {"command": None}
        elif name.endswith(".yaml"):
            found[name] = found[name].replace(bytes(folder), b"FOLDER")
    return found


def submit(slurm: Slurm, corpus: Path, out: Path, num_shards: int) -> Path:
    """Submit as docs/data.md says; returns the folder of the jobs' logs."""
    logs = out.with_name(f"{out.name}_logs")
    logs.mkdir()
    slurm.run(
        *("bash", SCRIPT, str(num_shards), f"--output={logs}/%x-%A-%a.log"),
        CORPUS=corpus,
        OUT=out,
        PYTHON=sys.executable,
        CONTAINER=f"env PYTHONPATH={ROOT}",
    )
    return logs


def states(slurm: Slurm, logs: Path) -> dict[str, str]:
    """State of each job whose log is in a folder: of shards by number, and of the merge."""
    return {
        job.get("ArrayTaskId", "merge"): job["JobState"]
        for job in slurm.jobs()
        if Path(job["StdOut"]).parent == logs
    }


def test_the_array_makes_what_one_command_makes(
    slurm: Slurm, corpus: Path, direct: dict[str, Any], tmp_path: Path
) -> None:
    """A failure here would be seen by every user of a cluster, and by no other test."""
    logs = submit(slurm, corpus, tmp_path / "out", 3)
    slurm.wait()
    printed = "\n".join(log.read_text() for log in logs.iterdir())
    expected = dict.fromkeys(("1", "2", "3", "merge"), "COMPLETED")
    assert states(slurm, logs) == expected, printed
    assert contents(tmp_path / "out") == direct
    assert {len(direct[f"{name}_train.bin"]) > 0 for name in ("both_strands", "variants")} == {True}


def test_a_requeued_shard_goes_on(
    slurm: Slurm, corpus: Path, direct: dict[str, Any], tmp_path: Path
) -> None:
    """A preempted job comes back by itself, and its files are those of one that was left alone."""
    out = tmp_path / "out"
    logs = submit(slurm, corpus, out, 2)

    def first_shard_writes(jobs: list[dict[str, str]]) -> bool:
        return any(out.glob("*.shard-1-of-2_train.bin*")) or "FAILED" in states(slurm, logs)

    slurm.wait(first_shard_writes)
    (job,) = (
        job
        for job in slurm.jobs()
        if Path(job["StdOut"]).parent == logs and job.get("ArrayTaskId") == "1"
    )
    slurm.run("scontrol", "requeue", job["JobId"])
    slurm.wait()
    printed = "\n".join(log.read_text() for log in logs.iterdir())
    expected = dict.fromkeys(("1", "2", "merge"), "COMPLETED")
    assert states(slurm, logs) == expected, printed
    (again,) = (other for other in slurm.jobs() if other["JobId"] == job["JobId"])
    assert again["Restarts"] == "1"
    assert contents(out) == direct


def test_shards_submitted_one_by_one_are_those_of_the_array(
    slurm: Slurm, corpus: Path, direct: dict[str, Any], tmp_path: Path
) -> None:
    """A shard submitted alone must not be made as if it were the whole corpus."""
    out = tmp_path / "out"
    common = {"CORPUS": corpus, "OUT": out, "PYTHON": sys.executable, "NUM_SHARDS": 2}
    common["CONTAINER"] = f"env PYTHONPATH={ROOT}"
    for step, array in (("shard", ["--array=2"]), ("shard", ["--array=1"]), ("merge", [])):
        log = f"--output={tmp_path}/%x-%A.log"
        slurm.run("sbatch", "--export=ALL", log, *array, SCRIPT, STEP=step, **common)
        slurm.wait()
    printed = "\n".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert contents(out) == direct, printed


def test_a_failed_shard_is_not_merged(slurm: Slurm, corpus: Path, tmp_path: Path) -> None:
    """If the merge ran all the same, a corpus would lack what the shard had to make."""
    content = yaml.safe_load(corpus.read_text())
    content["sources"]["variants"]["vcf"] = str(tmp_path / "absent.vcf.gz")
    content["tokenizer"] = str(corpus.with_name("tokenizer.json"))
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(content))
    logs = submit(slurm, tmp_path / "corpus.yaml", tmp_path / "out", 2)
    slurm.wait()
    found = states(slurm, logs)
    assert found["merge"] == "PENDING"
    assert "FAILED" in found.values()
    printed = "\n".join(log.read_text() for log in logs.iterdir())
    assert "error: input file" in printed
    assert not (tmp_path / "out" / "blend.yaml").exists()
