"""What training and evaluation both stand on: platform, process groups, tokenizer, model."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import megatron.core
import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megatron_dna.config import Config, ConfigError
from megatron_dna.data.vocabulary import Vocabulary, open_vocabulary
from megatron_dna.model.attention_kernels import check_attention
from megatron_dna.model.encoder import build_model
from megatron_dna.model.layers import choose_layer_spec
from megatron_dna.parallel import topology
from megatron_dna.parallel.accelerator import check_accelerator, start_tp_overlap, stop_tp_overlap
from megatron_dna.parallel.platform import (
    Platform,
    accelerator_libraries,
    find_accelerator,
    setup_platform,
)
from megatron_dna.parallel.topology import Topology
from megatron_dna.parallel.wrap import wrap_model
from megatron_dna.training.logs import setup_logging
from megatron_dna.validation import validate

logger = logging.getLogger(__name__)


def world_size_of(environment: Mapping[str, str]) -> int:
    """Processes that torchrun started, 1 without it."""
    return int(environment.get("WORLD_SIZE", "1"))


class GradientClock:
    """Notes when a rank has computed its gradients, before it waits for those of the others.

    Attributes:
        ready_at: of the last step, by time.perf_counter.
    """

    def __init__(self, model: DistributedDataParallel, platform: Platform) -> None:
        """From now on: Megatron-Core's schedules call a function of the model's at that moment."""
        self.ready_at = 0.0
        finalize = model.config.finalize_model_grads_func

        def note_and_finalize(*args: Any, **kwargs: Any) -> None:
            platform.wait_for_compute()
            self.ready_at = time.perf_counter()
            finalize(*args, **kwargs)

        model.config.finalize_model_grads_func = note_and_finalize


@dataclass(frozen=True)
class Session:
    """A model at its place in the process grid."""

    config: Config
    platform: Platform
    place: Topology
    tokenizer: Vocabulary
    """The ids: of data.tokenizer, or of recall data."""
    token_lengths: Tensor
    """int64 [vocab], bases in each token, on the device."""
    model: DistributedDataParallel
    """This process's stage with its initial weights."""
    gradient_clock: GradientClock
    """When this process's own gradients of the last step were ready."""

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of a data-parallel rank in a global batch."""
        train = self.config.train
        return train.global_batch_size // (train.micro_batch_size * self.place.dp_size)


def open_session(config: Config) -> Session:
    """Check the options, join the world, build the model.

    Raises:
        ValueError: an option or file is bad; on every process alike, before any of them waits.
    """
    validate(config, world_size_of(os.environ))
    try:
        tokenizer = open_vocabulary(config)
    except ValueError as error:
        raise ConfigError(f"data.tokenizer: {error}") from error
    platform = setup_platform(config.parallel.platform)
    layer_spec = choose_layer_spec(config.model.layer_spec, platform.is_cuda)
    check_accelerator(config, layer_spec, find_accelerator(platform))
    attention = check_attention(config, layer_spec)
    setup_logging(config.logging.level, int(os.environ.get("RANK", "0")))
    place = topology.initialize(config, platform)
    start_tp_overlap(config)
    model = build_model(config, tokenizer.vocab_size, place.groups, layer_spec, platform.device)
    wrapped = wrap_model(model, config.parallel)
    session = Session(
        config,
        platform,
        place,
        tokenizer,
        torch.from_numpy(tokenizer.token_lengths).long().to(platform.device),
        wrapped,
        GradientClock(wrapped, platform),
    )
    _log_choices(session, layer_spec, attention)
    return session


def close_session() -> None:
    """Leave the world in step with the others. Safe to call twice."""
    if dist.is_initialized():
        dist.barrier()
    stop_tp_overlap()
    topology.shutdown()


def count_parameters(session: Session) -> int:
    """Parameters of the whole model, each counted once."""
    place = session.place
    own = 0
    if place.dp_rank == 0 and place.cp_rank == 0:
        for parameter in session.model.parameters():
            is_split: Any = getattr(parameter, "tensor_model_parallel", False)
            is_copy: Any = getattr(parameter, "shared", False)  # of the first stage's embedding
            if (is_split or place.tp_rank == 0) and not is_copy:
                own += parameter.numel()
    total = torch.tensor(own, dtype=torch.float64, device=session.platform.device)
    return round(topology.sum_over_world(total).item())


def _log_choices(session: Session, layer_spec: str, attention: str) -> None:
    """Say what was chosen, so that nothing falls back in silence."""
    config, place = session.config, session.place
    logger.info(
        "platform: %s (%s), %d processes over %s; torch %s, megatron-core %s",
        session.platform.name, session.platform.description, place.world_size,
        session.platform.backend, torch.__version__, megatron.core.__version__,
    )  # fmt: skip
    libraries = ", ".join(f"{name} {state}" for name, state in accelerator_libraries().items())
    logger.info("layers: %s in %s; %s", layer_spec, config.layer_precision, libraries)
    if attention:
        logger.info("attention kernels: %s", attention)
    logger.info(
        "layout: TP %d%s x CP %d x PP %d x DP %d; micro-batch %d, %d of them a step on each DP "
        "rank",
        place.tp_size, " with SP" if config.parallel.sequence_parallel else "", place.cp_size,
        place.pp_size, place.dp_size, config.train.micro_batch_size, session.num_microbatches,
    )  # fmt: skip
    logger.info(
        "model: %d parameters in %s; vocabulary of %d; %d of %d tokens masked",
        count_parameters(session), config.train.precision, session.tokenizer.vocab_size,
        config.num_masked_tokens, config.data.segment_size,
    )  # fmt: skip
