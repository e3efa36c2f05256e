"""What a run reports: metrics to JSONL, TensorBoard and, if asked for, Weights & Biases."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from megatron_dna.config import Config

logger = logging.getLogger(__name__)

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12}
"""Dense BF16 FLOP/s by a word of the device's name. Source: NVIDIA's data sheets (SXM)."""


class Metrics:
    """Writes one record an iteration. Make one on the log rank only."""

    def __init__(self, output_dir: Path, resume_iteration: int, wandb_project: str | None) -> None:
        """Continue (or start) the record of a run.

        Records after `resume_iteration` belong to steps that are about to be repeated: dropped.

        Raises:
            ValueError: Weights & Biases is asked for and not installed.
        """
        self._path = output_dir / "metrics.jsonl"
        drop_records_after(self._path, resume_iteration)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(output_dir / "tensorboard"), purge_step=resume_iteration + 1
        )
        self._wandb = _start_wandb(wandb_project, output_dir) if wandb_project else None

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Record `values` (names such as `train/loss`) at `iteration`; on disk at once."""
        self._file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, iteration)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=iteration)

    def close(self) -> None:
        """Finish all writers."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: dropped a line that was cut short", path)
    return records


def drop_records_after(path: Path, iteration: int) -> None:
    """Rewrite metrics.jsonl, atomically, without the records after `iteration`."""
    if not path.is_file():
        return
    kept = [record for record in read_records(path) if record["iteration"] <= iteration]
    handle, partial = tempfile.mkstemp(prefix=".metrics.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
    Path(partial).chmod(0o644)
    Path(partial).replace(path)


def _start_wandb(project: str, output_dir: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"logging.wandb_project ({project}) needs wandb; pip install megatron_dna[wandb]"
        ) from error
    return wandb.init(project=project, dir=str(output_dir), resume="allow", id=output_dir.name)


def flops_per_segment(config: Config, vocab_size: int) -> float:
    """Model FLOPs of a training step (forward and backward) for one segment of one sample.

    A multiply-add counts as two, the backward pass as twice the forward. Counted are the matrix
    products: projections, GeGLU, attention (within the window only in local layers), and the head
    on the k masked positions. Recomputation is not counted.
    """
    model, seq = config.model, config.seq_length
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    dense = 2 * seq * (4 * hidden * hidden + 3 * hidden * ffn)
    num_global = -(-model.num_layers // model.global_attn_every_n_layers)
    num_local = model.num_layers - num_global
    local_span = min(seq, model.local_attention + 1)
    attention = 4 * seq * hidden * (num_global * seq + num_local * local_span)
    head = 2 * config.num_masked_tokens * (hidden * hidden + hidden * vocab_size)
    forward = model.num_layers * dense + attention + head
    return 3.0 * forward


def peak_flops(device_name: str) -> float | None:
    """Dense BF16 FLOP/s of the device, where known."""
    for word in sorted(PEAK_FLOPS, key=len, reverse=True):
        if word in device_name:
            return PEAK_FLOPS[word]
    return None


def throughput(
    config: Config,
    vocab_size: int,
    device_name: str,
    world_size: int,
    *,
    num_segments: int,
    num_tokens: int,
    num_bases: int,
    seconds: float,
) -> dict[str, float]:
    """Rates over `seconds` of training, for the whole run except TFLOP/s and MFU: a device."""
    flops_per_second = flops_per_segment(config, vocab_size) * num_segments / seconds / world_size
    rates = {
        "train/tokens_per_second": num_tokens / seconds,
        "train/bases_per_second": num_bases / seconds,
        "train/tflops_per_device": flops_per_second / 1e12,
    }
    peak = peak_flops(device_name)
    if peak is not None:
        rates["train/mfu"] = flops_per_second / peak
    return rates
