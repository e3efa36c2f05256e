"""Every command explains itself, and says in one line what is wrong with its input."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from tests.dist.small_data import write_data
from tests.integration.commands import ROOT, run_python
from tests.unit.data_files import write_tokenizer

TOOLS = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *ROOT.glob("tools/*.py"),
        *ROOT.glob("examples/*.py"),
        ROOT / "pretrain_dna_bert.py",
    )
)


@pytest.mark.parametrize("tool", TOOLS)
def test_help_has_an_example(tool: str) -> None:
    """Without one, a newcomer has to guess how the options go together."""
    done = run_python(tool, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    usage, _, rest = done.stdout.partition("\n\n")
    assert usage.startswith("usage:")
    assert tool in rest


def refuses(folder: Path, *command: str | Path) -> str:
    """Run a command that must fail and leave `folder` as it was; returns the line of the error."""
    before = sorted(folder.rglob("*"))
    done = run_python(*command)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error"))
    assert line.startswith("error: ")
    assert done.stderr.endswith(line + "\n")
    assert sorted(folder.rglob("*")) == before
    return line


BASES = "ACGTTGCAAC" * 30
FASTAS: dict[str, tuple[dict[str, bytes], str]] = {
    "empty": ({"a.fa": b""}, "a.fa"),
    "truncated gzip": ({"a.fa.gz": gzip.compress(f">a\n{BASES}\n".encode())[:-6]}, "truncated"),
    "the same contig twice": (
        {name: f">chr1\n{BASES}\n".encode() for name in ("a.fa", "b.fa")},
        "contig 'chr1' is in",
    ),
}


@pytest.mark.parametrize("name", FASTAS)
@pytest.mark.parametrize("tool", ["tools/train_tokenizer.py", "tools/preprocess_genome.py"])
def test_bad_fasta_is_one_clear_error(tmp_path: Path, tool: str, name: str) -> None:
    """If not, a damaged genome is trained on in part, or leaves files that look complete."""
    contents, message = FASTAS[name]
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content)
    write_tokenizer(tmp_path / "tokenizer.json")
    own = {
        "tools/train_tokenizer.py": ("--vocab-size", "12", "--output", tmp_path / "new" / "t.json"),
        "tools/preprocess_genome.py": (
            *("--tokenizer", tmp_path / "tokenizer.json"),
            *("--output-prefix", tmp_path / "new" / "genome"),
        ),
    }[tool]
    line = refuses(tmp_path, tool, "--fasta", *(tmp_path / file for file in contents), *own)
    assert message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vocab-size", "5"), "vocab_size (5) must be at least 11"),
        (("--vocab-size", "4000"), "vocab_size (4000): only"),
        (("--vocab-size", "12", "--holdout", "chr9:1-5"), "no contig 'chr9'"),
    ],
)
def test_tokenizer_training_refuses(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    """A vocabulary that cannot be had, or a region that would silently not be held out."""
    (tmp_path / "a.fa").write_text(f">chr1\n{BASES}\n")
    command = ("tools/train_tokenizer.py", "--fasta", tmp_path / "a.fa", *options)
    line = refuses(tmp_path, *command, "--output", tmp_path / "new" / "tokenizer.json")
    assert message in line


def test_output_folders_are_made(tmp_path: Path) -> None:
    """A command that stops for want of a folder stops an unattended job."""
    (tmp_path / "a.fa").write_text(f">chr1\n{BASES}\n")
    tokenizer, prefix = tmp_path / "x" / "y" / "tokenizer.json", tmp_path / "z" / "genome"
    source = ("--fasta", tmp_path / "a.fa")
    done = run_python(
        "tools/train_tokenizer.py", *source, "--vocab-size", "14", "--output", tokenizer
    )
    assert (done.returncode, done.stderr) == (0, "")
    done = run_python(
        *("tools/preprocess_genome.py", *source, "--tokenizer", tokenizer),
        *("--output-prefix", prefix),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in prefix.parent.iterdir()} == {
        "genome.json", "genome_train.bin", "genome_train.idx", "genome_train.coordinates.npz"
    }  # fmt: skip


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Options of a small run into tmp_path/run, on files that are there."""
    return [*write_data(tmp_path), f"train.output_dir={tmp_path}/run"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_layer=3", "model.num_layer"),
        ("parallel.tensor_model_parallel_size=3", "must divide model.num_attention_heads (4)"),
        ("data.tokenizer=absent.json", "data.tokenizer (absent.json) is not a file"),
        ("data.tokenizer=README.md", "data.tokenizer: tokenizer README.md: "),
    ],
)
def test_pretraining_refuses_options(
    tmp_path: Path, options: list[str], override: str, message: str
) -> None:
    assert message in refuses(tmp_path, "pretrain_dna_bert.py", *options, override)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_corrupt_idx_is_refused(tmp_path: Path, options: list[str], split: str) -> None:
    """If not, a run trains on whatever the file points at, or finds out hours later."""
    path = tmp_path / f"{split}.idx"
    path.write_bytes(path.read_bytes()[:-3])
    line = refuses(tmp_path, "pretrain_dna_bert.py", *options)
    assert f"data.{split}[0].prefix ({tmp_path}/{split})" in line
    assert ".idx" in line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A run of two steps from the command line: its options and its output folder."""
    folder = tmp_path_factory.mktemp("run")
    options = [*write_data(folder), "train.train_iters=2", "scheduler.lr_warmup_iters=0"]
    done = run_python("pretrain_dna_bert.py", *options, f"train.output_dir={folder}/out")
    assert done.returncode == 0, done.stderr
    return options, folder / "out"


@pytest.mark.parametrize("command", ["pretrain", "evaluate", "convert"])
def test_a_checkpoint_with_a_missing_file_is_refused(
    tmp_path: Path, run: tuple[list[str], Path], command: str
) -> None:
    """If not, a run goes on from other weights than it ended with, or a model is half random."""
    options, out = run
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (lost, *_) = sorted((copy / "checkpoints" / "iter_0000002").glob("*.distcp"))
    lost.unlink()
    checkpoint = ("--checkpoint", copy / "checkpoints" / "iter_0000002")
    line = refuses(
        tmp_path,
        *{
            "pretrain": ("pretrain_dna_bert.py", *options, f"train.output_dir={copy}"),
            "evaluate": ("tools/evaluate.py", *checkpoint, "--output", tmp_path / "x" / "e.json"),
            "convert": (
                *("tools/convert_checkpoint.py", "to-hf", *checkpoint),
                *("--output", tmp_path / "x" / "model"),
            ),
        }[command],
    )
    assert lost.name in line or "no checkpoint under" in line


def test_schedule_is_drawn_or_refused(tmp_path: Path) -> None:
    """The picture of a layout's schedule, before it is paid for."""
    picture = tmp_path / "schedule.png"
    done = run_python("tools/draw_schedule.py", "--num-stages", "2", "--output", str(picture))
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused = run_python("tools/draw_schedule.py", "--num-segments", "2", "--bptt-depth", "3")
    assert refused.returncode == 2
    assert "error: --bptt-depth (3) must be -1" in refused.stderr
