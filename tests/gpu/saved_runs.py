"""A run that is saved on one platform and goes on on another (tests/dist: both are the CPU)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_dna.checkpoint.folders import find_latest
from megatron_dna.checkpoint.manifest import read_manifest
from megatron_dna.checkpoint.metadata import read_shapes
from megatron_dna.checkpoint.saving import Saver, save_checkpoint
from megatron_dna.checkpoint.sharded import load_checkpoint
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.config import Config
from megatron_dna.parallel.step import run_step
from megatron_dna.parallel.wrap import wrap_model
from megatron_dna.training.optimizer import build_optimizer, describe_optimizer, update
from tests.gpu.bodies import VOCAB, World, logits_of, make_config, make_model, open_world, windows


@dataclass
class Run:
    """A model in training."""

    world: World
    config: Config
    model: DistributedDataParallel
    optimizer: MegatronOptimizer
    state: TrainState

    @classmethod
    def open(cls, world: World, spec: str, precision: str, *overrides: str) -> Run:
        """With initial weights."""
        config = make_config(spec, precision, "optimizer.lr=0.001", *overrides)
        model = wrap_model(make_model(world, config), config.parallel)
        return cls(world, config, model, build_optimizer(config, model), TrainState())

    def step(self) -> float:
        """Take one; its loss."""
        batches = windows(self.config)
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        device = self.world.platform.device
        result = run_step(
            self.model, iter(batches), self.config, self.world.place,
            torch.arange(VOCAB, device=device), len(batches),
        )  # fmt: skip
        update(self.optimizer, self.config.optimizer.clip_grad, lambda norm: norm > 0)
        self.state.iteration += 1
        return result.loss

    def logits(self) -> Tensor:
        """Of the present weights; see `logits_of`."""
        return logits_of(self.model.module, windows(self.config)[0], self.world.platform.device)

    def save(self, folder: Path) -> Path:
        """Weights and optimizer, at once."""
        return save_checkpoint(folder, self.model, self.optimizer, self.state, self.config)

    def load(self, folder: Path) -> None:
        """Go on from the newest checkpoint."""
        path = find_latest(folder)
        assert path is not None
        self.state = load_checkpoint(path, self.model, self.optimizer)


@dataclass(frozen=True)
class Leg:
    """What a run did on one platform."""

    optimizer: str
    before: Tensor
    """Logits of the weights it started from."""
    losses: list[float]
    after: Tensor
    """Logits of the weights it ended with."""


def run_leg(
    world: World, spec: str, precision: str, source: Path | None, target: Path, steps: int
) -> Leg:
    """Go on from the newest checkpoint in `source` (None: begin) and save in `target`."""
    run = Run.open(world, spec, precision)
    if source is not None:
        run.load(source)
    before = run.logits()
    losses = [run.step() for _ in range(steps)]
    run.save(target)
    return Leg(describe_optimizer(run.optimizer), before, losses, run.logits())


def cpu_leg(precision: str, source: Path | None, target: Path, steps: int) -> Leg:
    """`run_leg` in plain torch in a process of its own (tests.dist.harness)."""
    return run_leg(open_world("cpu"), "local", precision, source, target, steps)


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint, optimizer included, and Adam's step."""
    path = find_latest(folder)
    assert path is not None
    tensors = {name: torch.empty(shape) for name, shape in read_shapes(path).items()}
    reader = torch.distributed.checkpoint.FileSystemReader(str(path))
    torch.distributed.checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return tensors | {"step": torch.tensor(read_manifest(path)["optimizer_step"])}


def different(one: Path, other: Path) -> list[str]:
    """Names of the tensors that are not the same, bit for bit, in two folders' checkpoints."""
    first, second = stored_tensors(one), stored_tensors(other)
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def save_beside_training(world: World, spec: str, folder: Path) -> tuple[Path, Path, int]:
    """Save at once and in the background at the same step, and train on while that is written.

    Returns:
        Both folders, and the steps taken before the background save was complete.
    """
    run = Run.open(world, spec, "bf16")
    for _ in range(2):
        run.step()
    run.save(folder / "at_once")
    saver = Saver(folder / "beside", run.config)
    may_write = threading.Event()
    saver._executor.submit(may_write.wait)  # its one thread writes when a step has been taken
    saver.save(run.model, run.optimizer, run.state, in_background=True)
    steps = 0
    while find_latest(folder / "beside") is None:
        run.step()
        may_write.set()
        steps += 1
        if not saver.is_busy:
            saver.advance()
    saver.wait()
    return folder / "at_once", folder / "beside", steps
