"""Where a run starts from: its own newest whole checkpoint, another run's, or nothing."""

from __future__ import annotations

import logging
from pathlib import Path

from megatron.core.optimizer import MegatronOptimizer

from megatron_dna.checkpoint.agreement import on_first_rank
from megatron_dna.checkpoint.compatibility import (
    MEMORY_TENSORS,
    check_compatible,
    check_loadable,
    check_tokenizer,
)
from megatron_dna.checkpoint.folders import resolve
from megatron_dna.checkpoint.reader import read_config, read_train_state
from megatron_dna.checkpoint.sharded import find_verified, load_checkpoint
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.training.session import Session

logger = logging.getLogger(__name__)


def start_run(root: Path, session: Session, optimizer: MegatronOptimizer) -> TrainState:
    """Fill model and optimizer with what the run starts from. Every rank calls this.

    Args:
        root: the run's folder of checkpoints.
        session: with the model's initial weights.
        optimizer: Megatron's optimizer of that model.

    Returns:
        The state to go on from; that of a new run has iteration 0.

    Raises:
        CheckpointError: all checkpoints are damaged, or they are of another model or tokenizer.
    """
    config, sha256 = session.config, session.tokenizer.sha256
    path = find_verified(root)
    if path is None:
        logger.info("no checkpoint in %s: starting from the beginning", root)
        if config.checkpoint.load is not None:
            _start_from(Path(config.checkpoint.load), session, optimizer)
        return TrainState(tokenizer_sha256=sha256)

    def check() -> None:
        check_compatible(path, read_config(path), config)
        check_tokenizer(path, read_train_state(path).tokenizer_sha256, sha256)

    on_first_rank(check)
    state = load_checkpoint(path, session.model, optimizer, verify=False)
    logger.info(
        "resumed from %s: iteration %d, %d samples", path, state.iteration, state.consumed_samples
    )
    return state


def _start_from(source: Path, session: Session, optimizer: MegatronOptimizer) -> None:
    """Take weights (and Adam's state, if asked for) from another run; count from zero."""
    config = session.config

    def check() -> Path:
        path = resolve(source)
        check_loadable(path, read_config(path), config)
        stored = read_train_state(path).tokenizer_sha256
        check_tokenizer(path, stored, session.tokenizer.sha256)
        return path

    path = on_first_rank(check)
    load_checkpoint(
        path,
        session.model,
        optimizer,
        may_be_new=MEMORY_TENSORS,
        fresh_optimizer=not config.checkpoint.load_optimizer,
    )
    what = "weights and optimizer" if config.checkpoint.load_optimizer else "weights"
    logger.info("started from %s: its %s", path, what)
