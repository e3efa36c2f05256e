"""Loss and entropy along a genome, against masking by hand, one segment at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pysam
import pytest
import torch

from megatron_dna.genome.sequence import find_stretches
from megatron_dna.hf.modeling_rmt import RmtForMaskedLM
from megatron_dna.inference import run as runs
from megatron_dna.inference.stream import StreamModel
from megatron_dna.inference.tracks import TrackOptions, write_track
from megatron_dna.tokenizer.bpe import DnaTokenizer
from tests.unit.genome_files import EXAMPLE
from tests.unit.hf_models import SEGMENT, save_model

pytest.importorskip("pybigtools")
pyBigWig = pytest.importorskip("pyBigWig")

PASSES = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer_path: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "plain": save_model(folder / "plain", tokenizer_path),
        "rmt": save_model(folder / "rmt", tokenizer_path, num_mem_tokens=5),
    }


@pytest.fixture(scope="module")
def contigs() -> dict[str, str]:
    """The names' order is neither that of the lengths nor the alphabet's."""
    with pysam.FastaFile(str(EXAMPLE)) as example:
        real = example.fetch("20", 1_000_000, 1_004_000).upper()
    return {
        "short": real[3000:3400],
        "none": "N" * 70,
        "long": real[:1500] + "N" * 130 + real[1500:1900] + "N" * 9 + real[1900:2000],
        "b": "N" * 12 + real[2100:2900] + "N" * 5,
    }


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, contigs) -> Path:
    path = tmp_path_factory.mktemp("fasta") / "g.fa"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in contigs.items()))
    return path


def run(folder: Path, fasta: Path, output: Path, track: str = "loss", batch_size: int = 3) -> Path:
    model = StreamModel(folder, torch.device("cpu"), torch.float32, masked_lm=True)
    options = TrackOptions(track, PASSES, batch_size)
    return write_track(model, fasta, output, options, save_interval_s=0)


def by_hand(folder: Path, sequence: bytes, track: str) -> np.ndarray:
    """Each segment with the loss of transformers' model at one masked set after the other."""
    tokenizer = DnaTokenizer.from_file(folder / "tokenizer.json")
    rmt = folder.name == "rmt"
    from transformers import ModernBertForMaskedLM

    model = (RmtForMaskedLM if rmt else ModernBertForMaskedLM).from_pretrained(folder).eval()
    values = np.full(len(sequence), np.nan, np.float32)
    for base, end in find_stretches(sequence):
        memory = None
        for ids in torch.from_numpy(tokenizer.encode(sequence[base:end])).long().split(SEGMENT - 2):
            row = torch.tensor([[1, *ids.tolist(), 2]])
            carried = {"memory": memory} if rmt else {}
            nats = torch.empty(len(ids))
            for i in range(len(ids)):
                masked = row.clone()
                masked[0, 1 + i % PASSES : -1 : PASSES] = tokenizer.mask_id
                with torch.no_grad():
                    p = model(masked, **carried).logits[0, i + 1].softmax(0)
                nats[i] = -p[ids[i]].log() if track == "loss" else -(p * p.log()).sum()
            if rmt:
                with torch.no_grad():
                    memory = model(row, **carried).memory
            for token, value in zip(ids.tolist(), nats.tolist(), strict=True):
                length = int(tokenizer.token_lengths[token])
                if "N" not in tokenizer.decode([token]):
                    values[base : base + length] = value / length
                base += length
    return values


@pytest.mark.parametrize(
    ("kind", "track", "batch_size"),
    [("plain", "loss", 3), ("plain", "entropy", 8), ("rmt", "loss", 1), ("rmt", "entropy", 3)],
)
def test_a_track_equals_masking_by_hand(
    models, fasta, contigs, tmp_path: Path, kind, track, batch_size
):
    """In every base, with none in runs of N. A difference is a track of something else."""
    path = run(models[kind], fasta, tmp_path, track, batch_size)
    assert path == tmp_path / f"{track}.bw"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["genome.fai", path.name])
    with pyBigWig.open(str(path)) as bigwig:
        assert bigwig.chroms() == {n: len(text) for n, text in contigs.items() if n != "none"}
        assert bigwig.header()["nLevels"] > 0  # what a browser shows from afar
        for name in bigwig.chroms():
            text = contigs[name]
            want = by_hand(models[kind], text.encode(), track)
            got = np.array(bigwig.values(name, 0, len(text)), np.float32)
            assert (np.isnan(got) == np.isnan(want)).all()
            assert (np.isnan(got) == (np.array(list(text)) == "N")).mean() > 0.99
            np.testing.assert_allclose(got, want, atol=1e-5)
            assert np.nanstd(want) > 0.05


@pytest.mark.parametrize("kind", ["plain", "rmt"])
def test_a_killed_run_ends_with_the_same_file(
    models, fasta, tmp_path: Path, kind, monkeypatch: pytest.MonkeyPatch
):
    """Killed again and again, after batches that are not in a saved state."""
    want = run(models[kind], fasta, tmp_path / "once").read_bytes()

    class Killed(Exception):
        pass

    kills = 0
    original = runs.GenomeStream.__iter__

    def dies(self):
        for number, batch in enumerate(original(self)):
            yield batch
            if number == 1 + kills % 3:
                raise Killed

    saves = 0
    save = runs._save

    def seldom(*arguments):
        nonlocal saves
        saves += 1
        if saves % 2:
            save(*arguments)

    monkeypatch.setattr(runs.GenomeStream, "__iter__", dies)
    monkeypatch.setattr(runs, "_save", seldom)
    while True:
        try:
            got = run(models[kind], fasta, tmp_path / "killed")
        except Killed:
            kills += 1
            assert kills < 200
            assert not list((tmp_path / "killed").glob("*.bw"))
        else:
            break
    assert kills >= 3
    assert got.read_bytes() == want


def test_bad_input_is_named(models, fasta, tmp_path: Path, tokenizer_path: Path):
    run(models["plain"], fasta, tmp_path)
    with pytest.raises(ValueError, match=r"loss\.bw is there already"):
        run(models["plain"], fasta, tmp_path)
    (tmp_path / "other" / "loss.partial").mkdir(parents=True)
    (tmp_path / "other" / "loss.partial" / "about.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run with another .*model_sha256"):
        run(models["plain"], fasta, tmp_path / "other")
    (tmp_path / "n.fa").write_text(">n\n" + "N" * 50 + "\n")
    with pytest.raises(ValueError, match="all N"):
        run(models["plain"], tmp_path / "n.fa", tmp_path / "n")
    from transformers import ModernBertForSequenceClassification

    save_model(tmp_path / "classifier", tokenizer_path, ModernBertForSequenceClassification)
    with pytest.raises(ValueError, match=r"no weights for decoder\.bias.*masked language model"):
        run(tmp_path / "classifier", fasta, tmp_path / "c")


def test_command_line(models, fasta, tmp_path: Path):
    """The default is 7 passes."""
    command = [
        sys.executable, "tools/embed_genome.py", "--model", str(models["plain"]), "--fasta",
        str(fasta), "--output", str(tmp_path / "o"), "--track", "entropy", "--format", "bigwig",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "entropy.bw" in done.stdout
