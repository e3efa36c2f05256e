"""What recurrent memory adds to a training step: S segments against the plain encoder.

    python benchmarks/memory_overhead.py [--num-segments S] [--update binary] [--rounds R]

One process, one thread, the same model shape. Both read the same number of input positions a step:
the plain encoder S micro-batches of segments of L tokens, the other one window of S segments of M
memory and L - M other tokens, with backpropagation through all of them. Both mask 30% of the genome
tokens, as the recipes do. They take turns; seconds are CPU time of the whole step (forward,
backward, optimizer). Prints JSON: the median of each, and of the ratio of neighbouring steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist
from machine import cpu_model

from megatron_dna.config import Config, load_config
from megatron_dna.data.loader import Batch
from megatron_dna.model.encoder import build_model
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.parallel.step import run_step
from megatron_dna.parallel.topology import Topology
from megatron_dna.parallel.wrap import wrap_model
from megatron_dna.training.logs import quiet_libraries
from megatron_dna.training.optimizer import build_optimizer

VOCAB = 4096
MASKED_SHARE = 0.3
"""Of the genome tokens, as in the recipes."""


class Stepper:
    """A model and its optimizer, and batches of one shape for it."""

    def __init__(
        self,
        config: Config,
        place: Topology,
        num_segments: int,
        count: int,
        vocab_size: int = VOCAB,
    ) -> None:
        """`count` micro-batches of windows of `num_segments` segments make a step."""
        self.config, self.place, self.count = config, place, count
        self.token_lengths = torch.ones(vocab_size, dtype=torch.long)
        model = build_model(config, vocab_size, place.groups, "local", torch.device("cpu"))
        self.model = wrap_model(model, config.parallel)
        self.optimizer = build_optimizer(config, self.model)
        self.batches = [window(config, num_segments, number) for number in range(count)]

    def step(self) -> float:
        """Train once; CPU seconds."""
        start = time.process_time()
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        run_step(
            self.model, iter(self.batches), self.config, self.place, self.token_lengths, self.count
        )
        self.optimizer.step()
        return time.process_time() - start


def window(config: Config, num_segments: int, number: int) -> Batch:
    """Random tokens."""
    generator = torch.Generator().manual_seed(number)
    size, length = config.train.micro_batch_size, config.data.segment_size
    shape = (num_segments, size)
    num_masked = round(MASKED_SHARE * (length - 2))
    positions = 1 + torch.randperm(length - 2, generator=generator)[:num_masked].sort().values
    return Batch(
        input_ids=torch.randint(6, VOCAB, (*shape, length), generator=generator),
        attention_mask=None,
        masked_positions=positions.expand(*shape, num_masked).contiguous(),
        labels=torch.randint(6, VOCAB, (*shape, num_masked), generator=generator),
        loss_mask=torch.ones(*shape, num_masked),
        num_tokens=torch.full(shape, length - 2),
        num_bases=torch.full(shape, 6 * (length - 2)),
        samples=torch.arange(size),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-segments", type=int, default=4, metavar="S")
    parser.add_argument("--num-mem-tokens", type=int, default=10, metavar="M")
    parser.add_argument("--length", type=int, default=512, metavar="L", help="positions a segment")
    parser.add_argument("--update", choices=["plain", "binary"], default="plain")
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    shape = [
        f"model.num_layers={args.num_layers}", f"model.hidden_size={args.hidden_size}",
        f"model.ffn_hidden_size={2 * args.hidden_size}",
        f"model.num_attention_heads={args.hidden_size // 64}", "train.precision=fp32",
        "train.micro_batch_size=2", "train.global_batch_size=2", "parallel.platform=cpu",
    ]  # fmt: skip
    plain = load_config(None, [*shape, f"data.segment_size={args.length}"])
    memory = load_config(None, [
        *shape, f"data.segment_size={args.length - args.num_mem_tokens}",
        f"memory.num_mem_tokens={args.num_mem_tokens}", f"memory.update={args.update}",
        f"memory.max_n_segments={args.num_segments}",
    ])  # fmt: skip
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    place = topology.initialize(plain, setup_platform("cpu"))
    without = Stepper(plain, place, num_segments=1, count=args.num_segments)
    with_memory = Stepper(memory, place, num_segments=args.num_segments, count=1)
    seconds = [(without.step(), with_memory.step()) for _ in range(args.rounds + 2)][2:]
    parameters = sum(parameter.numel() for parameter in without.model.parameters())
    print(json.dumps({
        "machine": cpu_model(), "torch": torch.__version__, "parameters": parameters,
        **vars(args),
        "plain_s": statistics.median(first for first, _ in seconds),
        "memory_s": statistics.median(second for _, second in seconds),
        "ratio": statistics.median(second / first for first, second in seconds),
    }, indent=1))  # fmt: skip
    topology.shutdown()


if __name__ == "__main__":
    main()
