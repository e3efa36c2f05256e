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
from megatron_dna.checkpoint.sharded import save_checkpoint
from megatron_dna.checkpoint.state import Interval, TrainState
from megatron_dna.config import Config, to_yaml
from megatron_dna.data.loader import Batch, SampleReader, build_loader
from megatron_dna.data.split import take_windows
from megatron_dna.parallel.step import StepResult, run_step
from megatron_dna.parallel.topology import max_over_world
from megatron_dna.parallel.wrap import whole_parameters
from megatron_dna.training.curriculum import Curriculum
from megatron_dna.training.evaluation import evaluate
from megatron_dna.training.lock import OutputLock
from megatron_dna.training.metrics import Metrics, throughput
from megatron_dna.training.optimizer import (
    build_optimizer,
    build_scheduler,
    learning_rate,
    set_peak_learning_rate,
)
from megatron_dna.training.schedule_report import describe_schedule
from megatron_dna.training.session import close_session, open_session
from megatron_dna.training.signals import StopRequest
from megatron_dna.training.start import start_run

logger = logging.getLogger(__name__)


class DivergenceError(ArithmeticError):
    """The loss or the gradient is no longer a finite number."""


class Trainer:
    """A run: opens in its constructor, goes on in `train`, ends in `close`."""

    def __init__(self, config: Config) -> None:
        """Build everything and resume from the newest complete checkpoint, if there is one.

        Raises:
            ValueError: a bad option, file or checkpoint; on every process alike.
        """
        self.config = config
        self.output_dir = Path(config.train.output_dir)
        self.session = open_session(config)
        self.stop_request = StopRequest()
        self.lock = OutputLock(self.output_dir)
        # What torchrun restarts may have to wait for what it stops on another machine.
        is_restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        on_first_rank(lambda: self.lock.claim(wait_s=60.0 if is_restart else 0.0))
        on_every_rank(self.lock.join)
        try:
            self._open()
        except BaseException:
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
            DivergenceError: the loss or the gradient norm of a step is not finite.
        """
        last = self.config.train.train_iters
        if self.state.iteration >= last:
            logger.info("nothing to do: train.train_iters (%d) are done", last)
        with self._progress_bar(last) as bar:
            while self.state.iteration < last:
                record = self._step()
                if self._is_due(self.config.train.eval_interval) and self.config.data.valid:
                    record |= self._evaluate()
                if self._stage_is_new:
                    record |= self._enter_stage()
                if record and self.metrics is not None:
                    self.metrics.log(self.state.iteration, record)
                if self._is_due(self.config.checkpoint.save_interval):
                    self._save()
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
        self.lock.release()
        self.stop_request.restore()

    def _must_stop(self) -> bool:
        """Whether any rank was asked to stop; the same on all of them."""
        asked = torch.tensor([float(self.stop_request.signal is not None)])
        if max_over_world(asked.to(self.session.platform.device)).item() == 0:
            return False
        logger.warning(
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
        """One optimizer step; returns the training metrics when they are due."""
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
        self._require_finite("loss", result.loss)
        rate = learning_rate(self.optimizer)
        _, grad_norm, _ = self.optimizer.step()
        self._require_finite("gradient norm", float(grad_norm))
        self.scheduler.step(1)
        session.platform.synchronize()
        num_segments = len(windows) * windows[0].input_ids.shape[:2].numel()
        self._count(result, num_segments * session.place.dp_size, time.perf_counter() - start)
        self._stage_is_new = self.curriculum.after_step(result, segments)
        if not self._is_due(self.config.logging.log_interval):
            return {}
        record = self._training_metrics(float(grad_norm), rate)
        state.interval = Interval()
        return record

    def _require_finite(self, what: str, value: float) -> None:
        """Stop on NaN or infinity. The value is the same on all ranks, so all stop."""
        if math.isfinite(value):
            return
        first = self.state.consumed_samples
        raise DivergenceError(
            f"{what} is {value} in iteration {self.state.iteration + 1} (samples {first} to "
            f"{first + self.config.train.global_batch_size - 1}); lower optimizer.lr or raise "
            "scheduler.lr_warmup_iters, then resume from the last checkpoint"
        )

    def _count(self, result: StepResult, num_segments: int, seconds: float) -> None:
        num_samples = self.config.train.global_batch_size
        state, interval = self.state, self.state.interval
        state.iteration += 1
        state.consumed_samples += num_samples
        state.consumed_tokens += result.num_tokens
        state.consumed_bases += result.num_bases
        interval.loss_sum += result.loss_sum
        interval.num_masked += result.num_masked
        if self.curriculum.needs_accuracy:
            interval.num_correct += result.num_correct
            interval.num_predicted += result.num_masked
        interval.num_segments += num_segments
        interval.num_tokens += result.num_tokens
        interval.num_bases += result.num_bases
        interval.seconds += seconds

    def _training_metrics(self, grad_norm: float, rate: float) -> dict[str, float]:
        """Metrics of the interval that ends here, and its line in the log."""
        interval = self.state.interval
        rates = throughput(
            self.config,
            self.session.tokenizer.vocab_size,
            self.session.platform.description,
            self.session.place.world_size,
            num_segments=interval.num_segments,
            num_tokens=interval.num_tokens,
            num_bases=interval.num_bases,
            seconds=interval.seconds,
        )
        record = {
            "train/loss": interval.loss_sum / max(1, interval.num_masked),
            "train/grad_norm": grad_norm,
            "train/lr": rate,
            "train/consumed_samples": self.state.consumed_samples,
            **self.curriculum.record(),
            **rates,
        }
        if interval.num_predicted:
            record["train/accuracy"] = interval.num_correct / interval.num_predicted
        logger.info(
            "iteration %d/%d | loss %.4f | grad norm %.3f | lr %.3e | %.0f tokens/s | "
            "%.0f bases/s | %.3f TFLOP/s a device",
            self.state.iteration, self.config.train.train_iters, record["train/loss"], grad_norm,
            rate, rates["train/tokens_per_second"], rates["train/bases_per_second"],
            rates["train/tflops_per_device"],
        )  # fmt: skip
        return record

    def _evaluate(self) -> dict[str, float]:
        record = evaluate(self.session, self.curriculum.stage.n_segments)
        logger.info(
            "iteration %d/%d | held-out loss %.4f | accuracy %.4f | %.4f bits a base",
            self.state.iteration, self.config.train.train_iters, record["valid/loss"],
            record["valid/accuracy"], record["valid/bits_per_base"],
        )  # fmt: skip
        self._stage_is_new |= self.curriculum.after_evaluation(record)
        return record

    def _save(self) -> None:
        if self.state.iteration == self._saved_iteration:
            return
        with whole_parameters(self.session.model):
            save_checkpoint(
                self.output_dir / "checkpoints",
                self.session.model,
                self.optimizer,
                self.state,
                self.config,
            )
        self._saved_iteration = self.state.iteration

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
