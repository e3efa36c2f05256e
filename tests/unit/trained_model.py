"""A checkpoint written by the trainer's own code, small and with weights that are not trivial."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_dna.checkpoint.saving import save_checkpoint
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.config import Config, load_config
from megatron_dna.model.encoder import DnaBert, build_model
from megatron_dna.parallel import topology
from megatron_dna.parallel.platform import setup_platform
from megatron_dna.tokenizer.bpe import DnaTokenizer
from tests.unit.data_files import write_tokenizer

SEQ = 40


def save_trained(folder: Path, *overrides: str) -> tuple[Path, Config, DnaBert]:
    """The checkpoint, its options and the model in it. The caller shuts the topology down."""
    tokenizer = write_tokenizer(folder / "tokenizer.json")
    config = load_config(
        None,
        [
            "model.num_layers=4", "model.hidden_size=32", "model.ffn_hidden_size=48",
            "model.num_attention_heads=4", "model.init_method_std=0.2", "model.norm_bias=true",
            "model.global_attn_every_n_layers=3", "model.local_attention=8",
            "train.precision=fp32", f"data.segment_size={SEQ}", f"data.tokenizer={tokenizer}",
            f"data.train=[{{prefix: {folder}/d_train}}]", *overrides,
        ],
    )  # fmt: skip
    place = topology.initialize(config, setup_platform("cpu"))
    vocab = DnaTokenizer.from_file(tokenizer).vocab_size
    model = build_model(config, vocab, place.groups, "local", torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    path = save_checkpoint(folder / "checkpoints", model, None, TrainState(iteration=7), config)
    return path, config, model
