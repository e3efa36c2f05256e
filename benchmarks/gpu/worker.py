"""Measures one case in a process of its own: run.py starts it and says which, on its stdin.

Slow imports come before the case is read, so that they hide behind the case before.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_dna.training.logs import quiet_libraries

quiet_libraries()

import torch  # noqa: E402
from megatron.core.dist_checkpointing.dict_utils import nested_values  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import ModernBertForMaskedLM  # noqa: E402

from benchmarks.gpu.cases import Case, Plan  # noqa: E402
from megatron_dna.data.loader import Batch, build_loader  # noqa: E402
from megatron_dna.data.vocabulary import open_vocabulary  # noqa: E402
from megatron_dna.hf.architecture import hf_config  # noqa: E402
from megatron_dna.model import encoder  # noqa: E402
from megatron_dna.model.attention_kernels import check_attention  # noqa: E402
from megatron_dna.parallel.platform import Platform, setup_platform  # noqa: E402
from megatron_dna.tokenizer.bpe import DnaTokenizer  # noqa: E402
from megatron_dna.training.optimizer import describe_optimizer  # noqa: E402
from megatron_dna.training.session import count_parameters  # noqa: E402
from megatron_dna.training.trainer import Trainer  # noqa: E402


def main() -> None:
    """Read an order, measure, write the outcome."""
    order = json.loads(sys.stdin.readline())
    case = Case(**order["case"])
    plan = Plan(case, tuple(order["overrides"]), order["recipe"])
    try:
        measure = measure_peer if case.is_peer else measure_ours
        outcome = {"status": "measured"} | measure(plan, order["warm_up"], order["steps"])
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        outcome = {"status": status_of(error), "error": str(error).strip()[-500:]}
    target = Path(order["output"])
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(order["about"] | outcome, indent=1) + "\n")
    partial.replace(target)


def status_of(error: Exception) -> str:
    """Whether an error is for want of the device's memory."""
    is_memory = isinstance(error, torch.OutOfMemoryError)
    words = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    is_memory |= any(word in str(error) for word in words)
    return "out of memory" if is_memory else "failed"


class _TimedTrainer(Trainer):
    """The trainer of real runs, a step at a time and without its end."""

    def timed_step(self) -> float:
        """Wall seconds of a step: data, forward, backward, optimizer, all that the loop does."""
        self.session.platform.synchronize()
        start = time.perf_counter()
        self._step()
        self._must_stop()
        self.session.platform.synchronize()
        return time.perf_counter() - start


def measure_ours(plan: Plan, warm_up: int, steps: int) -> dict[str, Any]:
    """This project's training loop."""
    encoder.initialize_weights = draw_quickly
    with tempfile.TemporaryDirectory() as folder:
        overrides = (*plan.overrides, f"train.output_dir={folder}/run", "train.train_iters=1000000")
        config = Plan(plan.case, overrides, plan.recipe).config
        trainer = _TimedTrainer(config)
        for _ in range(warm_up):
            trainer.timed_step()
        before = trainer.state.consumed_tokens, trainer.state.consumed_bases
        seconds = [trainer.timed_step() for _ in range(steps)]
        outcome = {
            "seconds": seconds,
            "tokens_a_step": (trainer.state.consumed_tokens - before[0]) / steps,
            "bases_a_step": (trainer.state.consumed_bases - before[1]) / steps,
            "parameters": count_parameters(trainer.session),
            "vocab_size": trainer.session.tokenizer.vocab_size,
            "optimizer": describe_optimizer(trainer.optimizer),
            "attention": check_attention(config, config.model.layer_spec) or "torch SDPA",
            "skipped_steps": trainer.state.guard.skipped,
            **memory_of(trainer.session.platform),
        }
        trainer.close()
    return outcome


@torch.no_grad()
def draw_quickly(state: Any, seed: int, std: float, num_layers: int) -> None:
    """Initial weights in place of `initialize_weights`: one block of random numbers, repeated.

    To draw billions one by one takes minutes on the CPU, and the time of a step does not depend on
    them.
    """
    generator = torch.Generator().manual_seed(seed)
    block = torch.normal(0.0, std, (1_048_573,), generator=generator)
    blocks: dict[torch.dtype, Tensor] = {}
    for value in nested_values(state):
        tensor = getattr(value, "data", None)
        if not isinstance(tensor, Tensor):
            continue
        if tensor.dim() == 1:
            tensor.fill_(0.0 if value.key.endswith("bias") else 1.0)
            continue
        scale = (2 * num_layers) ** -0.5 if "linear_proj" in value.key or "fc2" in value.key else 1
        part = blocks.setdefault(tensor.dtype, block.to(tensor.dtype))
        for piece in tensor.view(-1).split(len(part)):
            piece.copy_(part[: len(piece)]).mul_(scale)


def memory_of(platform: Platform) -> dict[str, float]:
    """Peak memory in bytes: of the device, or of the process where that is the CPU."""
    if not platform.is_cuda:
        return {"peak_bytes": 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    return {
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def measure_peer(plan: Plan, warm_up: int, steps: int) -> dict[str, Any]:
    """`transformers` ModernBERT and torch's AdamW on the same batches.

    Weights and moments are in the run's precision, without fp32 copies: less work than ours.
    """
    config = plan.config
    platform = setup_platform(config.parallel.platform)
    device = platform.device
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    vocabulary = open_vocabulary(config)
    tokenizer = DnaTokenizer.from_file(config.data.tokenizer)
    options = hf_config(config, tokenizer, vocabulary.vocab_size)
    options.sparse_prediction = True  # the head on masked positions only, as ours
    with torch.device(device):
        model = ModernBertForMaskedLM._from_config(
            options, dtype=dtype, attn_implementation=plan.case.attention
        )
    model.train()
    decay = config.optimizer.weight_decay
    fused = platform.is_cuda
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.optimizer.lr, weight_decay=decay, fused=fused
    )
    batches = build_loader(config, "train", 0, 0, 1, log=False)
    count = config.train.global_batch_size // config.train.micro_batch_size
    tokens = bases = 0

    def step() -> None:
        nonlocal tokens, bases
        optimizer.zero_grad()
        losses = []
        for batch in _take(batches, count):
            tokens += int(batch.num_tokens.sum())
            bases += int(batch.num_bases.sum())
            loss = model(**as_hf(batch, device)).loss / count
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad)
        optimizer.step()
        assert torch.stack(losses).sum().isfinite()

    for _ in range(warm_up):
        step()
    tokens = bases = 0
    seconds = [_timed(step, platform) for _ in range(steps)]
    return {
        "seconds": seconds,
        "tokens_a_step": tokens / steps,
        "bases_a_step": bases / steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": vocabulary.vocab_size,
        "optimizer": f"AdamW of torch{', fused' if fused else ''}",
        "attention": f"transformers, {plan.case.attention}",
        **memory_of(platform),
    }


def _timed(action: Callable[[], None], platform: Platform) -> float:
    platform.synchronize()
    start = time.perf_counter()
    action()
    platform.synchronize()
    return time.perf_counter() - start


def _take(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    return (next(batches) for _ in range(count))


def as_hf(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A micro-batch of one segment in transformers' terms."""
    ids = batch.input_ids[0]
    labels = torch.full_like(ids, -100)
    used = batch.loss_mask[0].bool()
    rows = torch.arange(len(ids))[:, None].expand_as(used)
    labels[rows[used], batch.masked_positions[0][used]] = batch.labels[0][used]
    inputs = {"input_ids": ids, "labels": labels}
    if batch.attention_mask is not None:
        inputs["attention_mask"] = batch.attention_mask[0].long()
    if device.type == "cuda":
        inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


if __name__ == "__main__":
    main()
