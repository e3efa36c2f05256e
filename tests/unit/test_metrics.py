"""The record of a run: complete, without repeats, readable after a crash."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import ModernBertConfig, ModernBertForMaskedLM

from megatron_dna.config import load_config
from megatron_dna.training.flops import find_module, segment_flops
from megatron_dna.training.metrics import (
    Metrics,
    read_records,
    throughput,
)
from megatron_dna.training.plots import draw_stages, plot_losses, plot_memory, plot_recall


def test_records_reach_jsonl_and_tensorboard(tmp_path: Path):
    metrics = Metrics(tmp_path, 0, None)
    metrics.log(1, {"train/loss": 2.5})
    # On disk before the next step: a killed run must not lose what it reported.
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "iteration": 1,
        "train/loss": 2.5,
    }
    metrics.log(2, {"train/loss": 2.0, "valid/loss": 2.1})
    metrics.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(1, 2.5), (2, 2.0)]


def test_resume_drops_repeated_steps_and_cut_lines(tmp_path: Path):
    metrics = Metrics(tmp_path, 0, None)
    for iteration in range(1, 6):
        metrics.log(iteration, {"train/loss": float(iteration)})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 6, "train/lo')
    metrics = Metrics(tmp_path, 3, None)
    metrics.log(4, {"train/loss": 40.0})
    metrics.close()
    losses = [record["train/loss"] for record in read_records(tmp_path / "metrics.jsonl")]
    assert losses == [1.0, 2.0, 3.0, 40.0]


@pytest.mark.parametrize("every", [1, 3])
def test_flops_equal_torchs_count(every: int):
    """MFU is only as true as the FLOP count: torch counts the same products of the same model."""
    from torch.utils.flop_counter import FlopCounterMode

    vocab, seq = 128, 64
    config = load_config(
        None,
        [
            "model.num_layers=4", "model.hidden_size=64", "model.ffn_hidden_size=96",
            "model.num_attention_heads=4", f"data.segment_size={seq}",
            f"model.global_attn_every_n_layers={every}", "model.local_attention=200",
        ],
    )  # fmt: skip
    oracle = ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=vocab,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            pad_token_id=0,
            attn_implementation="eager",
        )
    )
    with FlopCounterMode(display=False) as encoder:
        oracle.model(input_ids=torch.zeros(1, seq, dtype=torch.long))
    with FlopCounterMode(display=False) as head:
        hidden = torch.zeros(1, config.num_masked_tokens, 64)
        oracle.decoder(oracle.head(hidden))
    forward = encoder.get_total_flops() + head.get_total_flops()
    assert segment_flops(config, vocab) == forward
    # In a narrow window a query sees itself and 8 keys to each side.
    narrow = replace(config, model=replace(config.model, local_attention=16))
    num_local = sum(layer % every != 0 for layer in range(4))
    assert segment_flops(narrow, vocab) == forward - num_local * 4 * seq * (seq - 17) * 64


def test_throughput_and_mfu():
    config = load_config(None, [])
    rates = throughput(
        config, 4096, "NVIDIA H100 80GB HBM3", 2,
        num_segments=10, num_tokens=5000, num_bases=30000, seconds=2.0,
    )  # fmt: skip
    flops = 3 * segment_flops(config, 4096) * 10 / 2.0 / 2
    assert rates["train/tokens_per_second"] == 2500
    assert rates["train/bases_per_second"] == 15000
    assert rates["train/mfu"] == pytest.approx(flops / 989.4e12)
    for name in ("CPU, 1 threads a process", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"):
        assert find_module(name) is None


def test_loss_plot(tmp_path: Path):
    metrics = Metrics(tmp_path, 0, None)
    metrics.log(1, {"train/loss": 3.0})
    metrics.log(2, {"train/loss": 2.0, "valid/loss": 2.2})
    metrics.close()
    plot_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png", {"unigram": 2.9})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no loss"):
        plot_losses(tmp_path / "absent.jsonl", tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_loss_plot_shows_where_stages_begin():
    axes = Figure().add_subplot()
    stages = [(1, 0, 1), (4, 0, 1), (5, 1, 3), (8, 1, 3), (9, 3, 7)]
    draw_stages(axes, [
        {"iteration": iteration, "train/curriculum_stage": stage, "train/n_segments": segments}
        for iteration, stage, segments in stages
    ] + [{"iteration": 10, "valid/loss": 1.0}])  # fmt: skip
    assert [line.get_xdata()[0] for line in axes.lines] == [5, 9]
    assert [text.get_text() for text in axes.texts] == ["3 segments", "7 segments"]


def memory_scores(num_segments: int, **swapped: float) -> dict[str, Any]:
    """As an evaluation of memory returns them."""
    row = {"loss": 1.0, "accuracy": 0.5}
    means = {**row, "by_segment": [{"segment": s, **row} for s in range(num_segments)]}
    return {"num_segments": num_segments, "kept": means, "reset": means,
            "swapped": {**means, **swapped}}  # fmt: skip


def test_memory_plots(tmp_path: Path):
    """Of a genome by segment; of recall data with chance and the donor's barcode."""
    plot_memory([memory_scores(1), memory_scores(3)], tmp_path / "genome.png")
    recall = [memory_scores(1), memory_scores(7, donor_accuracy=0.9)]
    plot_memory(recall, tmp_path / "memory.png", chance=0.02)
    plot_recall({"plain": [(7, 1.0), (64, 0.1)]}, tmp_path / "recall.png", chance=0.02)
    for name in ("genome", "memory", "recall"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
