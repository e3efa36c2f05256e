"""The training loop, from the first step or the newest checkpoint to the last step."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from megatron_dna.checkpoint.agreement import on_every_rank, on_first_rank
from megatron_dna.checkpoint.folders import write_text
from megatron_dna.checkpoint.saving import Saver
from megatron_dna.checkpoint.state import Interval
from megatron_dna.config import Config, to_yaml
from megatron_dna.data.loader import Batch, SampleReader, build_loader
from megatron_dna.data.split import take_windows
from megatron_dna.parallel.step import StepResult, run_step
from megatron_dna.parallel.topology import max_over_world
from megatron_dna.parallel.wrap import whole_parameters
from megatron_dna.training.curriculum import Curriculum
from megatron_dna.training.evaluation import evaluate
from megatron_dna.training.guard import (
    DivergenceError,
    StepGuard,
    check_divergence,
    note_divergence,
    save_batch,
)
from megatron_dna.training.interval import count_step, interval_metrics, report_stragglers
from megatron_dna.training.lock import OutputLock
from megatron_dna.training.metrics import Metrics
from megatron_dna.training.optimizer import (
    build_optimizer,
    build_scheduler,
    learning_rate,
    set_peak_learning_rate,
    update,
)
from megatron_dna.training.schedule_report import describe_schedule
from megatron_dna.training.session import close_session, open_session
from megatron_dna.training.signals import StopRequest
from megatron_dna.training.start import start_run
from megatron_dna.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


class Trainer:
    """A run: opens in its constructor, goes on in `train`, ends in `close`."""

    def __init__(self, config: Config) -> None:
        """Build everything and resume from the newest complete checkpoint, if there is one.

        Raises:
            ValueError: a bad option, file or checkpoint; on every process alike.
            DivergenceError: the run diverged, and torchrun has started it again.
        """
        self.config = config
        self.output_dir = Path(config.train.output_dir)
        self.session = open_session(config)
        self.stop_request = StopRequest()
        self.watchdog = Watchdog(60 * config.parallel.timeout_minutes)
        self.lock = OutputLock(self.output_dir)
        # What torchrun restarts may have to wait for what it stops on another machine.
        is_restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        on_first_rank(lambda: self.lock.claim(wait_s=60.0 if is_restart else 0.0))
        on_every_rank(self.lock.join)
        try:
            on_first_rank(lambda: check_divergence(self.output_dir, is_restart))
            self._open()
        except BaseException:
            self.watchdog.close()
            self.lock.abandon()
            raise

    def _open(self) -> None:
        config = self.config
        self.optimizer = build_optimizer(config, self.session.model)
        self.scheduler = build_scheduler(config, self.optimizer)
        self.state = start_run(self.output_dir / "checkpoints", self.session, self.optimizer)
        self.scheduler.step(self.state.iteration)  # at the stage's peak from _enter_stage on
        self.metrics: Metrics | None = None
        self._saved_iteration = self.state.iteration or -1
        self._stage_is_new = False
        self.curriculum = Curriculum(config, self.state.curriculum)
        self.guard = StepGuard(config, self.state.guard)
        self.saver = Saver(self.output_dir / "checkpoints", config)
        self._enter_stage()
        place = self.session.place
        self._batches: Iterator[Batch] = build_loader(
            config, "train", self.state.consumed_samples, place.dp_rank, place.dp_size
        )
        if config.data.valid:
            SampleReader(config, "valid").log_summary()  # bad files stop the run here, not later
        on_first_rank(self._open_output)

    def train(self) -> bool:
        """Take the steps that are left, then evaluate and save.

        Returns:
            Whether all steps are taken: False if the run was asked to stop, and has saved.

        Raises:
            DivergenceError: too many steps in a row were skipped.
            CheckpointError: a checkpoint could not be written.
        """
        try:
            return self._train()
        except DivergenceError as error:
            self.saver.wait()  # what is on its way was saved before
            message = str(error)
            on_first_rank(lambda: note_divergence(self.output_dir, message))
            raise

    def _train(self) -> bool:
        last = self.config.train.train_iters
        if self.state.iteration >= last:
            logger.info("nothing to do: train.train_iters (%d) are done", last)
        with self._progress_bar(last) as bar:
            while self.state.iteration < last:
                self.watchdog.tick(f"in iteration {self.state.iteration + 1}")
                record = self._step()
                if self._is_due(self.config.train.eval_interval) and self.config.data.valid:
                    self.watchdog.tick("evaluating")
                    record |= self._evaluate()
                if self._stage_is_new:
                    self.guard.new_stage()
                    record |= self._enter_stage()
                if record and self.metrics is not None:
                    self.metrics.log(self.state.iteration, record)
                self._save_if_due()
                if bar is not None:
                    bar.update()
                if self._must_stop() and self.state.iteration < last:
                    self._save()
                    return False
        logger.info(
            "done: %d iterations, %d samples, %d tokens, %d bases; output in %s",
            self.state.iteration, self.state.consumed_samples, self.state.consumed_tokens,
            self.state.consumed_bases, self.output_dir,
        )  # fmt: skip
        return True

    def close(self) -> None:
        """Finish the record and leave the world in step with the other processes."""
        if self.metrics is not None:
            self.metrics.close()
        close_session()
        self.watchdog.close()
        self.lock.release()
        self.stop_request.restore()

    def _must_stop(self) -> bool:
        """Whether any rank was asked to stop; takes the save under way further, too.

        The ranks agree on both: they do the same in the same iteration.
        """
        own = torch.tensor([self.stop_request.signal is not None, self.saver.is_busy])
        is_asked, is_busy = max_over_world(own.float().to(self.session.platform.device)).tolist()
        if not is_busy:
            self.saver.advance()
        if not is_asked:
            return False
        logger.info(
            "asked to stop (%s): saving after iteration %d; the same command goes on from there",
            self.stop_request.signal or "on another rank", self.state.iteration,
        )  # fmt: skip
        return True

    def _open_output(self) -> None:
        write_text(self.output_dir / "config.yaml", to_yaml(self.config))
        self.metrics = Metrics(
            self.output_dir, self.state.iteration, self.config.logging.wandb_project
        )

    def _enter_stage(self) -> dict[str, float]:
        """Take over the stage's learning rate; returns the stage as metrics."""
        curriculum = self.curriculum
        set_peak_learning_rate(self.scheduler, curriculum.lr)
        segments = curriculum.stage.n_segments
        if segments > 1:
            place, vocab_size = self.session.place, self.session.tokenizer.vocab_size
            line = describe_schedule(self.config, segments, place.dp_size, vocab_size)
            logger.info("%s", line)
        self._stage_is_new = False
        return curriculum.record()

    def _step(self) -> dict[str, float]:
        """One optimizer step, or a skipped one; returns the training metrics when they are due."""
        session, state = self.session, self.state
        start = time.perf_counter()
        segments = self.curriculum.num_segments(state.iteration)
        windows = take_windows(
            self._batches,
            session.num_microbatches,
            segments,
            self.config.memory.constant_tokens,
        )
        session.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        result = run_step(
            session.model,
            iter(windows),
            self.config,
            session.place,
            session.token_lengths,
            len(windows),
            noise=self.curriculum.noise(state.iteration),
            count_correct=self.curriculum.needs_accuracy,
        )
        rate = learning_rate(self.optimizer)
        fault, grad_norm = self._update(result)
        self.scheduler.step(1)
        session.platform.synchronize()
        count_step(
            state, result, self.config.train.global_batch_size, self.curriculum.needs_accuracy,
            is_skipped=fault is not None,
        )  # fmt: skip
        num_segments = len(windows) * windows[0].input_ids.shape[:2].numel()
        state.interval.num_segments += num_segments * session.place.dp_size
        state.interval.seconds += time.perf_counter() - start
        self._stage_is_new = self.curriculum.after_step(None if fault else result, segments)
        if not self._is_due(self.config.logging.log_interval):
            return {}
        report_stragglers(session, session.gradient_clock.ready_at - start)
        record = interval_metrics(session, state, grad_norm, rate) | self.curriculum.record()
        state.interval = Interval()
        return record

    def _update(self, result: StepResult) -> tuple[str | None, float]:
        """Take the optimizer's step unless loss or gradient is of no use: why not, and the norm.

        Raises:
            DivergenceError: too many steps in a row were skipped.
        """
        guard, grad_norm = self.guard, math.nan
        fault = guard.fault_of_loss(result.loss)
        if fault is None:
            grad_norm = update(self.optimizer, self.config.optimizer.clip_grad, math.isfinite)
            fault = guard.fault_of_gradient(grad_norm)
        if fault is None:
            guard.accept(result.loss)
            return None, grad_norm
        iteration, first = self.state.iteration + 1, self.state.consumed_samples
        about = {"fault": fault, "loss": str(result.loss), "loss_mean": guard.state.loss_mean}
        on_first_rank(lambda: save_batch(self.output_dir, self.config, iteration, first, about))
        guard.skip(fault, iteration, first)
        return fault, grad_norm

    def _evaluate(self) -> dict[str, float]:
        record = evaluate(self.session, self.curriculum.stage.n_segments)
        logger.info(
            "iteration %d/%d | held-out loss %.4f | accuracy %.4f | %.4f bits a base",
            self.state.iteration, self.config.train.train_iters, record["valid/loss"],
            record["valid/accuracy"], record["valid/bits_per_base"],
        )  # fmt: skip
        self._stage_is_new |= self.curriculum.after_evaluation(record)
        return record | {"train/consumed_tokens": self.state.consumed_tokens}

    def _save(self, in_background: bool = False) -> None:
        self.watchdog.tick("saving")
        if self.state.iteration == self._saved_iteration:
            self.saver.wait()
            return
        with whole_parameters(self.session.model):
            self.saver.save(self.session.model, self.optimizer, self.state, in_background)
        self._saved_iteration = self.state.iteration

    def _save_if_due(self) -> None:
        """Save at the end of the run, and on the way where the last step was a good one."""
        if not self._is_due(self.config.checkpoint.save_interval):
            return
        is_last = self.state.iteration == self.config.train.train_iters
        if is_last or self.state.guard.skipped_in_a_row == 0:
            self._save(self.config.checkpoint.async_save and not is_last)

    def _is_due(self, interval: int) -> bool:
        """Whether the iteration just done ends an interval (0: none) or the run."""
        iteration = self.state.iteration
        is_last = iteration == self.config.train.train_iters
        return is_last or (interval > 0 and iteration % interval == 0)

    @contextlib.contextmanager
    def _progress_bar(self, total: int) -> Iterator[Any]:
        """A bar on a terminal, else None: log lines are enough in a file."""
        if not (self.session.place.is_log_rank and sys.stderr.isatty()):
            yield None
            return
        bar = tqdm(total=total, initial=self.state.iteration, unit="step", dynamic_ncols=True)
        with logging_redirect_tqdm([logging.getLogger("megatron_dna")]), bar:
            yield bar
