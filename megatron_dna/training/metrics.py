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

from megatron_dna.config import Config, ConfigError
from megatron_dna.training.flops import PEAK_TFLOPS, find_module, segment_flops

logger = logging.getLogger(__name__)


class Metrics:
    """Writes one record an iteration. Make one on the log rank only."""

    def __init__(self, output_dir: Path, resume_iteration: int, wandb_project: str | None) -> None:
        """Continue (or start) the record of a run.

        Records after `resume_iteration` belong to steps that are about to be repeated: dropped.

        Raises:
            ConfigError: Weights & Biases is asked for and not installed.
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
        raise ConfigError(
            f"logging.wandb_project ({project}) needs wandb; pip install megatron_dna[wandb]"
        ) from error
    return wandb.init(project=project, dir=str(output_dir), resume="allow", id=output_dir.name)


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
    flops = 3 * segment_flops(config, vocab_size) * num_segments
    flops_per_second = flops / seconds / world_size
    rates = {
        "train/tokens_per_second": num_tokens / seconds,
        "train/bases_per_second": num_bases / seconds,
        "train/tflops_per_device": flops_per_second / 1e12,
    }
    module = find_module(device_name)
    if module is not None:
        rates["train/mfu"] = flops_per_second / (1e12 * PEAK_TFLOPS[module])
    return rates
