"""Rules of the section `data`."""

from __future__ import annotations

from pathlib import Path

from megatron_dna.config import (
    RECALL_BARCODE_LENGTH,
    RECALL_FIRST_SYMBOL,
    DataConfig,
)
from megatron_dna.validation.rules import require, require_not_negative, require_one_of


def validate_data(data: DataConfig, files: bool) -> None:
    """What is read, and (with `files`) whether it is there.

    Raises:
        ConfigError: with key, value, rule and fix.
    """
    require_one_of("data", data, "kind", ("genome", "recall"))
    if data.kind == "recall":
        _validate_recall(data)
    elif files:
        _validate_files(data)
    require(
        data.segment_size >= 8, "data.segment_size", data.segment_size, "must be at least 8",
        "512 is the default, genomes are usually cut into 512 to 4096",
    )  # fmt: skip
    require(
        0 < data.mlm_probability < 1, "data.mlm_probability", data.mlm_probability,
        "must lie between 0 and 1", "BERT's is 0.15, ModernBERT's 0.3",
    )  # fmt: skip
    require(
        1 <= data.mean_span_length <= data.segment_size, "data.mean_span_length",
        data.mean_span_length, f"must lie between 1 and data.segment_size ({data.segment_size})",
        "1 masks single tokens",
    )  # fmt: skip
    require_not_negative("data", data, "num_workers")


def _validate_recall(data: DataConfig) -> None:
    """Room for the markers and more than one symbol, and for barcode and question in a segment."""
    least = RECALL_FIRST_SYMBOL + 2
    require(
        data.recall_vocab_size >= least, "data.recall_vocab_size", data.recall_vocab_size,
        f"must be at least {least}: {RECALL_FIRST_SYMBOL} special tokens and markers, then symbols",
        "64 is the default",
    )  # fmt: skip
    least = 2 + 2 * (1 + RECALL_BARCODE_LENGTH)
    require(
        data.segment_size >= least, "data.segment_size", data.segment_size,
        f"must be at least {least} for recall data: [CLS], barcode and question with a marker each "
        "(a window may have one segment), [SEP]", f"set it to {least} or more",
    )  # fmt: skip


def _validate_files(data: DataConfig) -> None:
    make_tokenizer = "make one with tools/train_tokenizer.py"
    require(
        bool(data.tokenizer), "data.tokenizer", "''", "must name a tokenizer.json", make_tokenizer
    )
    require(
        Path(data.tokenizer).is_file(), "data.tokenizer", data.tokenizer, "is not a file",
        make_tokenizer,
    )  # fmt: skip
    require(
        bool(data.train), "data.train", "[]", "must list at least one {prefix, weight}",
        "make one with tools/preprocess_genome.py",
    )  # fmt: skip
    for name, sources in (("train", data.train), ("valid", data.valid)):
        for i, source in enumerate(sources):
            key = f"data.{name}[{i}]"
            require(
                source.weight > 0, f"{key}.weight", source.weight, "must be positive",
                "leave a source out of the list to read nothing of it",
            )  # fmt: skip
            for suffix in (".bin", ".idx"):
                require(
                    Path(source.prefix + suffix).is_file(), f"{key}.prefix", source.prefix,
                    f"has no file {source.prefix}{suffix}",
                    "make it with tools/preprocess_genome.py",
                )  # fmt: skip
