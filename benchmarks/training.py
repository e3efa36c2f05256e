"""The parts of a training run that cost time, each against what it is to beat. Prints JSON.

    python benchmarks/training.py [--measure step] [--batch-size B] [--length L] [--vocab-size V]
    python benchmarks/training.py --measure save [--folder DIR]

`step`: a training step (forward, backward, clipping, AdamW) against `transformers`' ModernBERT with
torch's AdamW, same shape, same tokens, same masked positions, fp32, one thread. The peer computes
logits for every position, as it does by default, and for masked ones alone (`sparse_prediction`).
The three take turns; CPU seconds, medians, and the medians of the ratios within a turn.

`save`: how long training stands still for a checkpoint that is written in the background, against
one that is written at once. One process on the CPU; the two take turns. While the copy is written,
training goes on: the steps meanwhile against steps without a save are reported too. Wall time,
because that is what training loses.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist
from machine import cpu_model
from memory_overhead import Stepper
from transformers import ModernBertConfig, ModernBertForMaskedLM

from megatron_dna.checkpoint.saving import Saver
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.config import load_config
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.training.logs import quiet_libraries

IGNORED = -100
"""The label of a position that has no loss, in transformers."""


class Peer:
    """ModernBERT of `transformers` with torch's AdamW, on the batches of a `Stepper`."""

    def __init__(self, ours: Stepper, vocab_size: int, sparse_prediction: bool) -> None:
        """`sparse_prediction`: logits for masked positions only."""
        model, options = ours.config.model, ours.config.optimizer
        self.model = ModernBertForMaskedLM(
            ModernBertConfig(
                vocab_size=vocab_size,
                hidden_size=model.hidden_size,
                intermediate_size=model.ffn_hidden_size,
                num_hidden_layers=model.num_layers,
                num_attention_heads=model.num_attention_heads,
                global_attn_every_n_layers=model.global_attn_every_n_layers,
                local_attention=model.local_attention,
                max_position_embeddings=ours.config.seq_length,
                sparse_prediction=sparse_prediction,
                pad_token_id=0, bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2,
            )
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), options.lr, (options.adam_beta1, options.adam_beta2),
            options.adam_eps, options.weight_decay,
        )  # fmt: skip
        self.clip_grad = options.clip_grad
        self.batches = []
        for batch in ours.batches:
            tokens = batch.input_ids[0]
            labels = torch.full_like(tokens, IGNORED)
            labels.scatter_(1, batch.masked_positions[0], batch.labels[0])
            self.batches.append((tokens, labels))

    def step(self) -> float:
        """Train once; CPU seconds."""
        start = time.process_time()
        self.optimizer.zero_grad()
        for tokens, labels in self.batches:
            self.model(tokens, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.optimizer.step()
        return time.process_time() - start


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", choices=["step", "save"], default="step")
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--length", type=int, default=512, metavar="L", help="tokens a sample")
    parser.add_argument("--batch-size", type=int, default=1, metavar="B", help="samples a step")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--global-attn-every-n-layers", type=int, default=1, metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="`save`: on the file system to measure")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    config = load_config(None, [
        f"model.num_layers={args.num_layers}", f"model.hidden_size={args.hidden_size}",
        f"model.ffn_hidden_size={2 * args.hidden_size}",
        f"model.num_attention_heads={args.hidden_size // 64}",
        f"model.global_attn_every_n_layers={args.global_attn_every_n_layers}",
        f"data.segment_size={args.length}", "train.precision=fp32",
        f"train.micro_batch_size={args.batch_size}", f"train.global_batch_size={args.batch_size}",
        "parallel.platform=cpu", "checkpoint.keep_last=1",
        # One rank has nothing to share; gloo would copy all gradients and weights all the same.
        "parallel.use_distributed_optimizer=false",
    ])  # fmt: skip
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    place = topology.initialize(config, setup_platform("cpu"))
    stepper = Stepper(config, place, num_segments=1, count=1, vocab_size=args.vocab_size)
    if args.measure == "step":
        outcome = measure_step(stepper, args.vocab_size, args.rounds)
    else:
        folder = Path(tempfile.mkdtemp(dir=args.folder))
        try:
            outcome = measure_save(stepper, folder, args.rounds)
        finally:
            shutil.rmtree(folder)
    print(json.dumps({
        "machine": cpu_model(), "torch": torch.__version__, **vars(args) | {"folder": None},
        "parameters": sum(parameter.numel() for parameter in stepper.model.parameters()),
        **outcome,
    }, indent=1))  # fmt: skip
    topology.shutdown()


def measure_step(stepper: Stepper, vocab_size: int, rounds: int) -> dict[str, float]:
    """CPU seconds of a step here and there."""
    everywhere, masked = (Peer(stepper, vocab_size, sparse) for sparse in (False, True))
    steps = [(stepper.step(), everywhere.step(), masked.step()) for _ in range(rounds + 2)][2:]
    ours, theirs, sparse = (statistics.median(column) for column in zip(*steps, strict=True))
    return {
        "here_s": ours,
        "transformers_s": theirs,
        "transformers_masked_positions_s": sparse,
        "ratio": statistics.median(there / here for here, there, _ in steps),
        "ratio_masked_positions": statistics.median(there / here for here, _, there in steps),
    }


def measure_save(stepper: Stepper, folder: Path, rounds: int) -> dict[str, float]:
    """Seconds that training stands still, saving at once and in the background by turns."""
    saver = Saver(folder, stepper.config)
    state = TrainState()
    for _ in range(2):
        stepper.step()
    at_once, stalls, steps, steps_meanwhile = [], [], [], []
    for _ in range(rounds + 1):  # the first is a warm-up
        steps.append(_timed(stepper.step))
        state.iteration += 1
        at_once.append(_timed(lambda: _save(saver, stepper, state, in_background=False)))
        state.iteration += 1
        stalled = _timed(lambda: _save(saver, stepper, state, in_background=True))
        for _ in range(2):  # the tensors, then the rest; as the training loop does it
            while saver.is_busy:
                steps_meanwhile.append(_timed(stepper.step))
            stalled += _timed(saver.advance)
        stalls.append(stalled)
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "checkpoint_mb": num_bytes / 1e6,
        "at_once_s": statistics.median(at_once[1:]),
        "stall_s": statistics.median(stalls[1:]),
        "ratio": statistics.median(
            stall / save for stall, save in zip(stalls[1:], at_once[1:], strict=True)
        ),
        "step_s": statistics.median(steps[1:]),
        "step_while_writing_s": statistics.median(steps_meanwhile),
        "steps_while_writing": len(steps_meanwhile),
    }


def _save(saver: Saver, stepper: Stepper, state: TrainState, in_background: bool) -> None:
    saver.save(stepper.model, stepper.optimizer, state, in_background)


def _timed(action: object) -> float:
    start = time.perf_counter()
    action()  # type: ignore[operator]
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
