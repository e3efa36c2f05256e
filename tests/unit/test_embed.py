"""A genome through a model in constant memory, against one long run in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pysam
import pytest
import torch
from transformers import ModernBertModel

from megatron_dna.genome.sequence import find_stretches
from megatron_dna.hf.convert import to_hugging_face
from megatron_dna.hf.modeling_rmt import RmtModel
from megatron_dna.inference import genome
from megatron_dna.inference import run as runs
from megatron_dna.inference.bins import Bins
from megatron_dna.inference.embed import STORE, EmbedOptions, embed_genome
from megatron_dna.inference.genome import Genome, encode_stretch
from megatron_dna.inference.stream import StreamModel, split_rows
from megatron_dna.parallel import topology
from megatron_dna.tokenizer.bpe import DnaTokenizer
from tests.unit.genome_files import EXAMPLE
from tests.unit.trained_model import SEQ, save_trained

zarr = pytest.importorskip("zarr")

RESOLUTION = 50


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name, memory in {"plain": [], "rmt": ["memory.num_mem_tokens=5"]}.items():
        folder = tmp_path_factory.mktemp(name)
        try:
            checkpoint, *_ = save_trained(folder, *memory)
        finally:
            topology.shutdown()
        to_hugging_face(checkpoint, folder / "hf")
        folders[name] = folder / "hf"
    return folders


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Path:
    """Contigs of different length, with gaps (also at their ends) and one that is only N."""
    with pysam.FastaFile(str(EXAMPLE)) as example:
        real = example.fetch("20", 1_000_000, 1_004_000)
    contigs = {
        "a": real[:1500] + "N" * 130 + real[1500:1900] + "N" * 9 + real[1900:2000],
        "gaps": "N" * 60 + real[2000:2031] + "N" * 10 + real[2031:2100] + "N" * 200,
        "none": "N" * 70,
        "b": real[2100:2900].lower(),
        "c": real[3000:3003],
    }
    path = tmp_path_factory.mktemp("fasta") / "g.fa"
    lines = (f">{name} x\n" + "".join(f"{text[i : i + 60]}\n" for i in range(0, len(text), 60))
             for name, text in contigs.items())  # fmt: skip
    path.write_text("".join(lines))
    return path


def stream_model(folder: Path) -> StreamModel:
    return StreamModel(folder, torch.device("cpu"), torch.float32)


def run(folder: Path, fasta: Path, output: Path, **options) -> np.ndarray:
    chosen = {"resolution": RESOLUTION, "pool": "mean", "layer": None, "batch_size": 3} | options
    embed_genome(stream_model(folder), fasta, output, EmbedOptions(**chosen), save_interval_s=0)
    return zarr.open_group(output / STORE, mode="r")["embedding"][:]


def whole(folder: Path, fasta: Path, pool: str = "mean", layer: int | None = None) -> np.ndarray:
    """Contig by contig with everything in memory: whole stretches encoded at once, states of all
    bases in one array."""
    tokenizer = DnaTokenizer.from_file(folder / "tokenizer.json")
    spans = tokenizer.token_lengths
    rmt = "rmt" in str(folder)
    model = (RmtModel if rmt else ModernBertModel).from_pretrained(folder).eval()
    rows = []
    for name, sequence in ((c.name, bytes(c.sequence)) for c in genome_of(fasta)):
        states = np.full((len(sequence), 32), np.nan, np.float32)
        for start, end in find_stretches(sequence):
            ids = torch.from_numpy(tokenizer.encode(sequence[start:end]).astype(np.int64))
            pieces = [[1, *piece.tolist(), 2] for piece in ids.split(SEQ - 2)]
            if rmt:
                pieces = [[1, *ids.tolist(), 2]]
            hidden = []
            for piece in pieces:
                with torch.no_grad():
                    out = model(torch.tensor([piece]), output_hidden_states=True)
                chosen = out.last_hidden_state if layer is None else out.hidden_states[layer]
                hidden.append(chosen[0, 1:-1].numpy())
            states[start:end] = np.repeat(np.concatenate(hidden), spans[ids], axis=0)
        for i in range(0, len(sequence), RESOLUTION):
            part = states[i : i + RESOLUTION]
            part = part[~np.isnan(part[:, 0])]
            join = np.mean if pool == "mean" else np.max
            rows.append(join(part, axis=0) if len(part) else np.full(32, np.nan))
        assert name
    return np.array(rows, np.float32)


def genome_of(fasta: Path):
    from megatron_dna.genome.fasta import read_fasta

    return read_fasta(fasta)


@pytest.mark.parametrize("kind", ["plain", "rmt"])
@pytest.mark.parametrize(
    ("pool", "layer", "batch_size"), [("mean", None, 1), ("mean", 2, 3), ("max", None, 8)]
)
def test_streaming_equals_one_run_in_memory(
    models, fasta: Path, tmp_path: Path, kind, pool, layer, batch_size
):
    """Whatever the batch of contigs. A difference means that bins hold other sequence."""
    got = run(models[kind], fasta, tmp_path / "o", pool=pool, layer=layer, batch_size=batch_size)
    want = whole(models[kind], fasta, pool, layer)
    assert got.shape == want.shape
    assert (np.isnan(got) == np.isnan(want)).all()
    assert np.nanmax(np.abs(got - want)) < 1e-5
    assert np.nanmax(np.abs(want)) > 0.5


def test_short_rows_are_read_by_themselves_where_it_pays():
    assert split_rows([7]) == [([0], 7)]
    assert split_rows([20, 20, 20]) == [([0, 1, 2], 20)]
    assert split_rows([18, 20]) == [([0, 1], 20)]  # 2 of 40 spared
    assert split_rows([4, 20, 20, 5]) == [([1, 2], 20), ([3, 0], 5)]


def test_coordinates(models, fasta: Path, tmp_path: Path):
    run(models["plain"], fasta, tmp_path / "o")
    store = zarr.open_group(tmp_path / "o" / STORE, mode="r")
    names = store.attrs["about"]["contigs"]
    assert names == ["a", "gaps", "none", "b", "c"]
    assert store["contig"][:].tolist() == [0] * 43 + [1] * 8 + [2] * 2 + [3] * 16 + [4]
    assert store["start"][40:46].tolist() == [2000, 2050, 2100, 0, 50, 100]
    assert not (tmp_path / "o" / "state.npz").exists()


@pytest.mark.parametrize("kind", ["plain", "rmt"])
def test_a_killed_run_goes_on(models, fasta: Path, tmp_path: Path, kind, monkeypatch):
    """Killed at every third batch, again and again, it ends with the same store."""
    want = run(models[kind], fasta, tmp_path / "once")

    class Killed(Exception):
        pass

    original = runs.GenomeStream.__iter__

    def dies(self):
        for number, batch in enumerate(original(self)):
            if number == 2:
                raise Killed
            yield batch

    monkeypatch.setattr(runs.GenomeStream, "__iter__", dies)
    kills = 0
    while True:
        try:
            got = run(models[kind], fasta, tmp_path / "killed")
        except Killed:
            kills += 1
            assert kills < 200
        else:
            break
    assert kills > 3
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_pieces_are_encoded_as_the_whole(models):
    """Small pieces and overlaps, from the start and from every position of resuming."""
    tokenizer = DnaTokenizer.from_file(models["plain"] / "tokenizer.json")
    with pysam.FastaFile(str(EXAMPLE)) as example:
        text = ("A" * 700 + example.fetch("20", 2_000_000, 2_006_000) + "AC" * 500).encode()
    want = tokenizer.encode(text).tolist()
    ends = np.cumsum(tokenizer.token_lengths[want])

    def read(first: int, last: int) -> bytes:
        return text[first:last]

    def pieces_from(start: int) -> tuple[list[int], list[int]]:
        # An odd overlap: out of step in the run of A.
        found = list(encode_stretch(read, start, len(text), tokenizer, 512, 163))
        return tuple(np.concatenate(part).tolist() for part in zip(*found, strict=True))

    for k in (0, *range(1, len(want), 371)):
        assert pieces_from(int(ends[k - 1]) if k else 0) == (want[k:], ends[k:].tolist())


def test_bins_by_hand():
    """Width 4; tokens over bases 0-3, 3-6, 9-10: mean is over bases, bin 1 ends before the gap."""
    bins = Bins(4, 1, "mean")
    numbers, rows = bins.add(np.array([0, 3]), np.array([3, 6]), np.array([[1], [5]], np.float32))
    assert (numbers.tolist(), rows.tolist()) == ([0], [[2.0]])
    numbers, rows = bins.add(np.array([9]), np.array([10]), np.array([[7]], np.float32))
    assert (numbers.tolist(), rows.tolist()) == ([1], [[5.0]])
    numbers, rows = bins.flush()
    assert (numbers.tolist(), rows.tolist()) == ([2], [[7.0]])


def test_stretches_over_pieces(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(genome, "PIECE_LENGTH", 7)
    text = "NNACGTNNNNNNNNNACGTNNNNNNNNNNNNACGTACGTNNNNNNNNNN"
    (tmp_path / "g.fa").write_text(f">x\n{text}\n")
    got = Genome(tmp_path / "g.fa", tmp_path).stretches("x")
    assert [text[a:b] for a, b in got] == ["NNACGTNNNNNNNNNACGT", "ACGTACGT"]


def test_bad_input_is_named(models, fasta: Path, tmp_path: Path):
    run(models["plain"], fasta, tmp_path / "o")
    with pytest.raises(ValueError, match="finished store, or one of another"):
        run(models["plain"], fasta, tmp_path / "o")
    with pytest.raises(ValueError, match=r"--layer \(5\) must be between 0 .* and 4"):
        run(models["plain"], fasta, tmp_path / "p", layer=5)
    (tmp_path / "protein.fa").write_text(">p\nMKVLA\n")
    with pytest.raises(ValueError, match="contig 'p'.*not protein"):
        run(models["plain"], tmp_path / "protein.fa", tmp_path / "q")
    with pytest.raises(ValueError, match="is not a file"):
        run(models["plain"], tmp_path / "absent.fa", tmp_path / "r")
    (tmp_path / "text.fa").write_text("hello\n")
    with pytest.raises(ValueError, match="cannot be indexed|no sequence"):
        run(models["plain"], tmp_path / "text.fa", tmp_path / "s")


def test_command_line(models, fasta: Path, tmp_path: Path):
    command = [
        sys.executable, "tools/embed_genome.py", "--model", str(models["rmt"]), "--fasta",
        str(fasta), "--output", str(tmp_path / "o"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    for code, text in ((0, "embedded"), (2, "error: --output")):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == code
        assert text in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
