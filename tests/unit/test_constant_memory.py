"""What the stream and its sinks hold does not grow with a contig."""

from __future__ import annotations

import functools
import tracemalloc
from pathlib import Path

import pysam
import pytest
import torch

from megatron_dna.genome import compressed, fasta
from megatron_dna.inference import embed, genome, tracks
from megatron_dna.inference.stream import StreamModel
from tests.unit.genome_files import EXAMPLE
from tests.unit.hf_models import save_model

pytest.importorskip("zarr")
pytest.importorskip("pybigtools")


@pytest.mark.parametrize("kind", ["vectors", "track"])
def test_memory_does_not_grow_with_the_contig(
    tmp_path: Path, tokenizer_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    """Peak of what Python and NumPy allocate, for a contig and one three times as long.

    With buffers that both of them fill. Growth would end a run on a long genome out of memory.
    """
    for module in (compressed, fasta):
        monkeypatch.setattr(module, "CHUNK_BYTES", 8192)
    monkeypatch.setattr(genome, "PIECE_LENGTH", 8192)
    pieces = functools.partial(genome.encode_stretch, piece_length=8192, overlap=512)
    monkeypatch.setattr(genome, "encode_stretch", pieces)
    monkeypatch.setattr(embed, "_ROWS_A_CHUNK", 64)
    monkeypatch.setattr(embed, "_COORDINATES_A_CHUNK", 256)
    monkeypatch.setattr(tracks, "_FLUSH_RECORDS", 1024)
    folder = save_model(
        tmp_path / "model", tokenizer_path, num_hidden_layers=1, max_position_embeddings=128
    )
    model = StreamModel(folder, torch.device("cpu"), torch.float32, masked_lm=True)
    if kind == "vectors":
        model = StreamModel(folder, torch.device("cpu"), torch.float32)
    with pysam.FastaFile(str(EXAMPLE)) as example:
        real = example.fetch("20", 1_000_000, 1_500_000)

    def peak(name: str, length: int) -> int:
        path = tmp_path / f"{name}.fa"
        lines = (real[i : min(i + 60, length)] + "\n" for i in range(0, length, 60))
        path.write_text(">x\n" + "".join(lines))
        tracemalloc.start()
        if kind == "vectors":
            options = embed.EmbedOptions(128, "mean", None, 8)
            embed.embed_genome(model, path, tmp_path / name, options)
        else:
            tracks.write_track(model, path, tmp_path / name, tracks.TrackOptions("loss", 2, 8))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak("warm", 20_000)
    short, long = peak("short", 80_000), peak("long", 240_000)
    assert long < 1.1 * short + 60_000, (short, long)  # one byte a base would add 160,000
