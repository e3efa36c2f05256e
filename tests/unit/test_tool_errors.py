"""Every tool that uses a model says in one line what is wrong with each kind of bad input."""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from tests.unit.finetune_files import write_model

ROOT = Path(__file__).parents[2]
BASES = "ACGTTGCAAC" * 30
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
FILES = {
    "g.fa": f">x\n{BASES}\n",
    "protein.fa": ">p\nMKVLAAGHACGTMKVLAAGH\n",
    "text.fa": "hello\n",
    "n.fa": f">n\n{'N' * 40}{BASES}\n",
    "empty.vcf": HEADER,
    "other.vcf": f"{HEADER}chr9\t5\t.\tT\tA\t.\t.\t.\n",
    "mismatch.vcf": f"{HEADER}x\t1\t.\tA\tC\t.\t.\t.\nx\t6\t.\tA\tC\t.\t.\t.\n",
    "protein.vcf": f"{HEADER}p\t9\t.\tA\tC\t.\t.\t.\n",
    "protein.csv": "sequence,label\nACGTACGT,a\nMKVLAAGH,b\n",
    "good.csv": "sequence,label\n" + "ACGTACGT,a\nGGGTACGA,b\n" * 9,
}
MODEL, NO_MODEL = ("--model", "{model}"), ("--model", "{folder}")
DEVICE = ("--device", "cuda:99")


def task(data: str, kind: str = "classification") -> str:
    return f"name: t\nkind: {kind}\ndata: {{{data}}}\n"


TASKS = {
    "protein.yaml": task("format: table, path: protein.csv"),
    "good.yaml": task("format: table, path: good.csv"),
    "other.yaml": task("format: density, fasta: g.fa, annotation: other.vcf", "regression"),
    "empty.yaml": task("format: density, fasta: g.fa, annotation: empty.vcf", "regression"),
    "protein_genome.yaml": task("format: shuffled, fasta: protein.fa"),
}
EMBED, TRACK = ("embed_genome", "--fasta"), ("embed_genome", "--track", "loss", "--fasta")
SCORE = ("score_variants", "--fasta")
FINETUNE, BENCHMARK = ("finetune", "--task"), ("benchmark", "--methods", "gc", "--suite")
DESIGN = ("design_sequence", "--length", "20", "--num-steps", "1", "--num-sequences", "1")
FROM_HF = ("convert_checkpoint", "from-hf")
NOT_A_MODEL = "is not a Hugging Face model folder"
CASES = [
    *((command, NOT_A_MODEL) for command in (
        (*EMBED, "g.fa", *NO_MODEL), (*TRACK, "g.fa", *NO_MODEL),
        (*SCORE, "g.fa", "--vcf", "other.vcf", *NO_MODEL),
        (*FINETUNE, "good.yaml", *NO_MODEL), (*BENCHMARK, "good.yaml", *NO_MODEL),
        (*DESIGN, *NO_MODEL), (*FROM_HF, *NO_MODEL),
    )),
    ((*DESIGN, *MODEL, "--predictor", "{folder}"), f"--predictor ({{folder}}) {NOT_A_MODEL}"),
    (("convert_checkpoint", "to-hf", "--checkpoint", "{folder}"), "folder is not a checkpoint"),
    ((*SCORE, "g.fa", "--vcf", "other.vcf", *MODEL), "'chr9', position 5: there is no such"),
    ((*SCORE, "g.fa", "--in-silico-mutagenesis", "chr9:1-5", *MODEL), "no contig 'chr9'"),
    ((*FINETUNE, "other.yaml", *MODEL), "no region on the contigs of data.fasta (x)"),
    ((*BENCHMARK, "other.yaml", *MODEL), "no region on the contigs of data.fasta (x)"),
    ((*SCORE, "g.fa", "--vcf", "empty.vcf", *MODEL), "there is no record in it"),
    ((*FINETUNE, "empty.yaml", *MODEL), "annotation (empty.vcf) has no region"),
    ((*BENCHMARK, "empty.yaml", *MODEL), "annotation (empty.vcf) has no region"),
    ((*EMBED, "protein.fa", *MODEL), "contig 'p'"),
    ((*TRACK, "protein.fa", *MODEL), "contig 'p'"),
    ((*SCORE, "protein.fa", "--vcf", "protein.vcf", *MODEL), "contig 'p'"),
    ((*FINETUNE, "protein.yaml", *MODEL), "protein.csv, line 3"),
    ((*BENCHMARK, "protein.yaml", *MODEL), "protein.csv, line 3"),
    ((*FINETUNE, "protein_genome.yaml", *MODEL), "protein.fa"),
    ((*DESIGN, *MODEL, "--motif", "MKV@3"), "--motif (MKV@3)"),
    ((*EMBED, "text.fa", *MODEL), "--fasta (text.fa)"),
    ((*EMBED, "absent.fa", *MODEL), "--fasta (absent.fa) is not a file"),
    ((*SCORE, "absent.fa", "--vcf", "other.vcf", *MODEL), "--fasta (absent.fa) is not a file"),
    ((*SCORE, "g.fa", "--vcf", "absent.vcf", *MODEL), "--vcf (absent.vcf) is not a file"),
    ((*SCORE, "g.fa", "--vcf", "g.fa", *MODEL), "--vcf (g.fa) is no whole VCF or BCF file"),
    ((*SCORE, "g.fa", "--vcf", "mismatch.vcf", *MODEL), "'x', position 6: REF is 'A', but"),
    ((*SCORE, "g.fa", "--vcf", "other.vcf", *MODEL, "--batch-size", "0"), "--batch-size (0)"),
    ((*SCORE, "n.fa", "--in-silico-mutagenesis", "n:5-9", *MODEL), "nothing but N"),
    ((*TRACK, "g.fa", *MODEL, "--pool", "max"), "--pool is for vectors"),
    ((*EMBED, "g.fa", *MODEL, "--passes", "3"), "--passes is for a track"),
    ((*TRACK, "g.fa", *MODEL, "--passes", "1"), "--passes (1) must be at least 2"),
    ((*FINETUNE, "absent.yaml", *MODEL), "absent.yaml"),
    ((*BENCHMARK, "absent.yaml", *MODEL), "absent.yaml"),
    *((command, "--device (cuda:99) is not one of this machine's") for command in (
        (*EMBED, "g.fa", *MODEL, *DEVICE), (*SCORE, "g.fa", "--vcf", "other.vcf", *MODEL, *DEVICE),
        (*FINETUNE, "good.yaml", *MODEL, *DEVICE), (*BENCHMARK, "good.yaml", *MODEL, *DEVICE),
        (*DESIGN, *MODEL, *DEVICE),
    )),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "plain")


@pytest.fixture
def quiet_after():
    """Tools set up logging for a whole process."""
    logger = logging.getLogger("megatron_dna")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)
    transformers_logging.set_verbosity_warning()
    transformers_logging.enable_progress_bar()


@pytest.mark.parametrize(
    ("command", "message"), CASES, ids=[f"{c[0]}-{i}" for i, (c, _) in enumerate(CASES)]
)
def test_bad_input_is_one_clear_error(
    model: Path, tmp_path: Path, monkeypatch, capsys, quiet_after, command, message
):
    """A traceback tells a user nothing; output would look like a result."""
    for name, text in (FILES | TASKS).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    names = {"model": str(model), "folder": "folder"}
    tool, *options = (part.format(**names) for part in command)
    output = "new/m.tsv" if "--in-silico-mutagenesis" in options else "new/s.vcf.gz"
    if tool != "score_variants":
        output = "new/o"
    path = ROOT / "tools" / f"{tool}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *options, "--output", output])
    assert runpy.run_path(str(path))["main"]() == 2
    shown = capsys.readouterr()
    (line,) = (line for line in shown.err.splitlines() if line.startswith("error"))
    assert line.startswith("error: ")
    assert message.format(**names) in line
    assert shown.err.endswith(line + "\n")
    assert not shown.out
    reads = tool == "embed_genome" and "protein.fa" in options  # finds it while it reads
    assert (tmp_path / "new").exists() == reads
    assert not list(tmp_path.rglob("loss.bw"))
