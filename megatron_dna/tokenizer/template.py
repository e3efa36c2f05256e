"""The part of a tokenizer.json that every tokenizer made here has: GENA-LM's, but for the model."""

from __future__ import annotations

import os
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from megatron_dna.genome.sequence import MIN_GAP_LENGTH
from megatron_dna.tokenizer.spec import CLS, GAP, SEP, SPECIAL_TOKENS


def check_output(output: Path) -> None:
    """Raises unless a file can lie at `output`.

    Raises:
        ValueError: it is a folder, or what should be its folder is a file.
    """
    nearest = next(folder for folder in output.absolute().parents if folder.exists())
    if output.is_dir() or not nearest.is_dir():
        raise ValueError(f"output ({output}) must be a file in a folder, there or to be made")


def save_tokenizer(model: models.Model, output: Path, pattern: str | Regex = GAP) -> None:
    """Writes the tokenizer.json of a model; the file appears when it is complete.

    Args:
        model: its vocabulary has the special tokens.
        output: the file; its folder is made.
        pattern: what the pre-tokenizer cuts out before the model sees it.
    """
    tokenizer = Tokenizer(model)
    gap = Regex(f"N{{{MIN_GAP_LENGTH},}}")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Replace(gap, GAP)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = decoders.BPEDecoder(suffix=" ")
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.BertProcessing((SEP, ids[SEP]), (CLS, ids[CLS]))
    _write_atomic(output, tokenizer.to_str(pretty=True) + "\n")


def _write_atomic(path: Path, text: str) -> None:
    """Writes beside `path`, then renames: whoever sees the file sees all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
