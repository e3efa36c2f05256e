"""Save a run: at once, or beside training.

Tensors are stored whole, by name, in pieces that any TP x CP x PP x DP layout can read:

    decoder.layers.0.mlp.linear_fc2.weight              model, in the run's precision
    optimizer.state.exp_avg.decoder.layers.0.mlp...     Adam's moments, fp32
    optimizer.state.fp32_param.decoder.layers.0.mlp...  main weights, where the model is not fp32

Each rank writes pieces of its own: the distributed optimizer's as they lie on the rank (`shards`),
and of what data-parallel ranks all have its share. Pieces of one tensor need not be alike.

What is not a tensor is in config.yaml and train_state.json. The format is the same with and
without the distributed optimizer, and in bf16 and fp32, so a run may change either.

A save has two pieces of work without communication, each followed by a word with all ranks:

    all ranks    write the tensors, and take the digests of what they wrote
    first rank   write the index and the rest, publish the folder, delete old checkpoints
"""

from __future__ import annotations

import copy
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.storage import WriteResult

from megatron_dna.checkpoint import folders
from megatron_dna.checkpoint.agreement import on_every_rank, on_first_rank
from megatron_dna.checkpoint.deferred import DeferredWriter
from megatron_dna.checkpoint.manifest import CheckpointError, FileRecord, record_file
from megatron_dna.checkpoint.optimizer_state import get_step, to_save
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.checkpoint.tensors import in_high_precision, model_tensors, unwrap
from megatron_dna.checkpoint.writer import add_plain_files, facts
from megatron_dna.config import Config

logger = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Callable[[], Any]], "Future[Any]"]
"""Does a piece of work, now or in the background."""


def save_checkpoint(
    root: str | Path,
    model: torch.nn.Module,
    optimizer: MegatronOptimizer | None,
    state: TrainState,
    config: Config,
) -> Path:
    """Write `root`/iter_NNNNNNN and move `latest` to it. Every rank calls this.

    Args:
        root: the folder of checkpoints.
        model: this rank's pipeline stage (wrapped in DDP or not).
        optimizer: None saves weights only.
        state: names the folder by its iteration.
        config: stored beside the tensors; says which older checkpoints are kept.

    Raises:
        CheckpointError: it could not be written (disk full, no permission); `latest` has not moved.
    """
    return PendingSave(Path(root), model, optimizer, state, config, _at_once).wait()


class Saver:
    """The saves of a run: one at a time, in the background if asked for."""

    def __init__(self, root: Path, config: Config) -> None:
        """Nothing is under way yet."""
        self._root = root
        self._config = config
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: PendingSave | None = None

    @property
    def is_busy(self) -> bool:
        """Whether this rank is writing at the moment."""
        return self._pending is not None and self._pending.is_busy

    def save(
        self,
        model: torch.nn.Module,
        optimizer: MegatronOptimizer,
        state: TrainState,
        in_background: bool,
    ) -> None:
        """Save, after the save that is under way. Every rank calls this.

        Raises:
            CheckpointError: this or the save under way could not be written.
        """
        self.wait()
        run = self._executor.submit if in_background else _at_once
        pending = PendingSave(self._root, model, optimizer, state, self._config, run)
        if in_background:
            self._pending = pending
        else:
            pending.wait()

    def advance(self) -> None:
        """Take the save under way further. All ranks call this, when none of them is busy.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._pending is not None and self._step(self._pending.advance):
            self._pending = None

    def wait(self) -> None:
        """Wait for the save under way. Every rank calls this.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._pending is not None:
            self._step(self._pending.wait)
            self._pending = None

    def _step(self, action: Callable[[], Path | None]) -> Path | None:
        try:
            return action()
        except CheckpointError:
            self._pending = None
            raise


class PendingSave:
    """A checkpoint on its way to the disk. Every rank makes one, and calls the same methods."""

    def __init__(
        self,
        root: Path,
        model: torch.nn.Module,
        optimizer: MegatronOptimizer | None,
        state: TrainState,
        config: Config,
        run: Run,
    ) -> None:
        """Agree on what is written by whom, and begin to write; see `save_checkpoint`.

        Args:
            root: the folder of checkpoints.
            model: this rank's pipeline stage.
            optimizer: None saves weights only.
            state: of the run; copied.
            config: of the run.
            run: does the writing; what it is given does not communicate.

        Raises:
            CheckpointError: the folder cannot be made.
        """
        start = time.perf_counter()
        self._begun = start
        self._root, self._config, self._run = root, config, run
        self._state = copy.deepcopy(state)
        self._facts = facts(0 if optimizer is None else get_step(optimizer), optimizer is not None)
        self._temporary: Path | None = None
        self._is_published = False
        try:
            self._temporary = on_first_rank(lambda: folders.begin(root, state.iteration))
            strategy = _Plan(self._temporary, copy_tensors=run is not _at_once)
            dist_checkpointing.save(
                _tensors_to_save(model, optimizer),
                str(self._temporary),
                _spread(strategy, model),
                validate_access_integrity=False,  # the spread checks it
            )
        except (OSError, CheckpointException) as error:
            raise self._failure(error) from error
        self._writer = strategy.writer
        self._work = run(self._write_tensors)
        self._stall_s = time.perf_counter() - start

    @property
    def is_busy(self) -> bool:
        """Whether this rank is at work in the background."""
        return not self._work.done()

    def advance(self) -> Path | None:
        """Wait until all ranks have done their piece of work, and begin the next.

        Returns:
            The final folder, None if there is more to do.

        Raises:
            CheckpointError: a rank could not do it; `latest` has not moved.
        """
        start = time.perf_counter()
        try:
            results = on_every_rank(self._work.result)
        except Exception as error:
            raise self._failure(error) from error
        if not self._is_published:
            self._is_published = True
            is_first = dist.get_rank() == 0
            self._work = self._run((lambda: self._publish(results)) if is_first else _nothing)
            self._stall_s += time.perf_counter() - start
            return None
        final: Path = results[0]
        now = time.perf_counter()
        self._stall_s += now - start
        logger.info(
            "saved checkpoint %s: training stood still for %.3f s of %.3f s",
            final, self._stall_s, now - self._begun,
        )  # fmt: skip
        return final

    def wait(self) -> Path:
        """Do or wait for all that is left; returns the final folder.

        Raises:
            CheckpointError: a rank could not do it; `latest` has not moved.
        """
        final = self.advance()
        while final is None:
            final = self.advance()
        return final

    def _write_tensors(self) -> tuple[list[WriteResult], dict[str, FileRecord]]:
        """In the background: this rank's tensors, and the digests of their files."""
        assert self._temporary is not None
        written = self._writer.write()
        names = {result.storage_data.relative_path for result in written}
        return written, {name: record_file(self._temporary / name) for name in names}

    def _publish(self, results: list[tuple[list[WriteResult], dict[str, FileRecord]]]) -> Path:
        """In the background, on the first rank: everything else."""
        assert self._temporary is not None
        self._writer.write_index([written for written, _ in results])
        files = {name: record for _, records in results for name, record in records.items()}
        for name in add_plain_files(self._temporary, self._state, self._config):
            if name not in files:
                files[name] = record_file(self._temporary / name)
        final = folders.publish(self._temporary, self._state.iteration, files, self._facts)
        options = self._config.checkpoint
        folders.prune(self._root, options.keep_last, options.keep_every)
        return final

    def _failure(self, error: BaseException) -> CheckpointError:
        """The error for the user; what was written makes room."""
        if dist.get_rank() == 0 and self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return CheckpointError(
            f"checkpoint of iteration {self._state.iteration} cannot be written to {self._root}: "
            f"{error}"
        )


def _at_once(work: Callable[[], Any]) -> Future[Any]:
    """Do the work now."""
    done: Future[Any] = Future()
    try:
        done.set_result(work())
    except Exception as error:  # noqa: BLE001
        done.set_exception(error)
    return done


def _nothing() -> None:
    return None


def _tensors_to_save(
    model: torch.nn.Module, optimizer: MegatronOptimizer | None
) -> ShardedStateDict:
    tensors = model_tensors(model)
    state: ShardedStateDict = {"model": in_high_precision(tensors)}
    if optimizer is not None:
        state["optimizer"] = to_save(optimizer, tensors)
    return state


def _spread(strategy: _Plan, model: torch.nn.Module) -> FullyParallelSaveStrategyWrapper:
    """`strategy`, with what data-parallel ranks all have divided evenly between them."""
    groups: Any = unwrap(model).pg_collection
    return FullyParallelSaveStrategyWrapper(strategy, groups.dp_cp)


class _Plan(TorchDistSaveShardedStrategy):
    """Megatron's format, planned with all ranks and left to `writer`."""

    def __init__(self, folder: Path, copy_tensors: bool) -> None:
        super().__init__("torch_dist", 1)
        self.writer = DeferredWriter(folder, copy_tensors)

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: str | Path) -> None:
        state, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        torch.distributed.checkpoint.save(
            mcore_to_pyt_state_dict(state, False),
            storage_writer=self.writer,
            planner=MCoreSavePlanner(flatten_state_dict=False),
        )
