"""Model folders as the tools that use them read them. No code of a folder is run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import ModernBertConfig

from megatron_dna.genome.fasta import sha256_of
from megatron_dna.hf.architecture import read_hf_config
from megatron_dna.tokenizer.bpe import DnaTokenizer


def open_folder(folder: Path, option: str = "--model") -> tuple[ModernBertConfig, DnaTokenizer]:
    """Configuration (an `RmtConfig` with memory) and tokenizer.

    Args:
        folder: of a model, plain or RMT.
        option: of the command line that named it, for errors.

    Raises:
        ValueError: not a model folder that this package makes or trains, or not all of one.
    """
    config = read_hf_config(folder, option)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{option} ({folder}) has no tokenizer.json")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{option} ({folder}) has no safetensors, the model's weights")
    tokenizer = DnaTokenizer.from_file(folder / "tokenizer.json")
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{option} ({folder}): tokenizer.json has {tokenizer.vocab_size} tokens, but "
            f"config.json vocab_size {config.vocab_size}: they are of different models"
        )
    return config, tokenizer


def load_model(
    kind: Any,
    folder: Path,
    dtype: torch.dtype,
    need: str,
    option: str = "--model",
    new: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """A model whose weights are in the folder: transformers draws what is not there at random.

    Args:
        kind: class of the model.
        folder: see `open_folder`.
        dtype: of the weights.
        need: what the folder must be of, for errors.
        option: see `open_folder`.
        new: modules that may be drawn at random.
        **options: of transformers' `from_pretrained`.

    Raises:
        ValueError: a weight is not there.
    """
    model, found = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    missing = sorted(key for key in found["missing_keys"] if key.split(".")[0] not in new)
    if missing:
        raise ValueError(f"{option} ({folder}) has no weights for {missing[0]}: {need} is needed")
    return model


def folder_sha256(folder: Path, *more: str) -> str:
    """Of a folder's options, tokenizer and weights, and of `more`, in hex, to tell models apart."""
    digest = hashlib.sha256(" ".join(more).encode())
    for path in sorted(folder.glob("*")):
        if path.name in ("config.json", "tokenizer.json") or path.suffix == ".safetensors":
            digest.update(f"{path.name} {sha256_of(path)}".encode())
    return digest.hexdigest()
