"""A small model that trains on generated batches: everything of a run but its data files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_dna.config import Config, load_config
from megatron_dna.data.loader import Batch
from megatron_dna.model.encoder import build_model
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.step import run_step
from megatron_dna.parallel.topology import Topology
from megatron_dna.parallel.wrap import wrap_model
from megatron_dna.training.optimizer import build_optimizer, build_scheduler
from tests.dist.harness import LAYER_SPEC

VOCAB = 90
SHAPE = [
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.ffn_hidden_size=48",
    "model.num_attention_heads=4",
    "data.segment_size=24",
    "train.precision=fp32",
    "train.micro_batch_size=2",
    "train.global_batch_size=8",
    "model.init_method_std=0.2",  # at 0.02 query and key gradients drown in rounding
    "optimizer.lr=0.002",
    "optimizer.weight_decay=0.1",
    "scheduler.lr_warmup_iters=3",
    "parallel.platform=cpu",
]
TP = "parallel.tensor_model_parallel_size=2"
PP = "parallel.pipeline_model_parallel_size=2"
CP = "parallel.context_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PLAIN = "parallel.use_distributed_optimizer=false"
BF16 = "train.precision=bf16"


def batches(config: Config, first: int, dp_rank: int, dp_size: int) -> Iterator[Batch]:
    """Endless micro-batches; sample n is the same at every layout."""
    size, k = config.train.micro_batch_size, config.num_masked_tokens
    while True:
        for start in range(dp_rank * size, config.train.global_batch_size, dp_size * size):
            samples = [_sample(first + start + i, config.data.segment_size, k) for i in range(size)]
            ids, positions, labels = (
                torch.stack(part)[None] for part in zip(*samples, strict=True)
            )
            tokens = torch.full((1, size), ids.shape[-1] - 2)
            yield Batch(
                input_ids=ids,
                attention_mask=None,
                masked_positions=positions,
                labels=labels,
                loss_mask=torch.ones(labels.shape),
                num_tokens=tokens,
                num_bases=3 * tokens,
                samples=torch.arange(first + start, first + start + size),
            )
        first += config.train.global_batch_size


def _sample(number: int, length: int, num_masked: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(6, VOCAB, (length,), generator=generator)
    ids[0], ids[-1] = 1, 2
    positions = 1 + torch.randperm(length - 2, generator=generator)[:num_masked].sort().values
    labels = ids[positions].clone()
    ids[positions] = 4
    return ids, positions, labels


@dataclass
class SmallRun:
    """The objects of a run on this rank."""

    config: Config
    place: Topology
    model: DistributedDataParallel
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    last_grad_norm: float = 0.0

    @classmethod
    def start(cls, overrides: list[str]) -> SmallRun:
        """Build them at the layout that `overrides` ask for."""
        config = load_config(None, SHAPE + overrides)
        place = topology.initialize(config, setup_platform("cpu"))
        model = build_model(config, VOCAB, place.groups, LAYER_SPEC, torch.device("cpu"))
        wrapped = wrap_model(model, config.parallel)
        optimizer = build_optimizer(config, wrapped)
        return cls(config, place, wrapped, optimizer, build_scheduler(config, optimizer))

    def train(self, start: int, stop: int) -> list[float]:
        """Steps `start` to `stop`; their losses."""
        size = self.config.train.global_batch_size
        train = self.config.train
        data = batches(self.config, start * size, self.place.dp_rank, self.place.dp_size)
        count = train.global_batch_size // (train.micro_batch_size * self.place.dp_size)
        losses = []
        for _ in range(start, stop):
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
            result = run_step(self.model, data, self.config, self.place, torch.arange(VOCAB), count)
            _, self.last_grad_norm, _ = self.optimizer.step()
            self.scheduler.step(1)
            losses.append(result.loss)
        return losses
