"""Small model folders with random weights that are not trivial, as transformers writes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from megatron_dna.hf.modeling_rmt import RmtConfig, RmtForMaskedLM
from megatron_dna.tokenizer.bpe import DnaTokenizer

SEGMENT = 40


def save_model(folder: Path, tokenizer: Path, kind: Any = None, **options: Any) -> Path:
    """A model of 3 layers, 32 wide; with `num_mem_tokens` one with memory.

    Args:
        folder: to make.
        tokenizer: its tokenizer.json.
        kind: class of the model; default the masked language model.
        **options: of its configuration.
    """
    vocabulary = DnaTokenizer.from_file(tokenizer)
    has_memory = "num_mem_tokens" in options
    shape: dict[str, Any] = {
        "vocab_size": vocabulary.vocab_size, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": SEGMENT,
        "local_attention": 8, "pad_token_id": vocabulary.pad_id, "decoder_bias": True,
        "initializer_range": 0.2, "initializer_cutoff_factor": 3.0,
        "cls_token_id": vocabulary.cls_id, "sep_token_id": vocabulary.sep_id,
        "bos_token_id": vocabulary.cls_id, "eos_token_id": vocabulary.sep_id,
    }  # fmt: skip
    if has_memory:
        shape["segment_size"] = SEGMENT
    config = (RmtConfig if has_memory else ModernBertConfig)(**shape | options)
    torch.manual_seed(0)
    kind = kind or (RmtForMaskedLM if has_memory else ModernBertForMaskedLM)
    kind(config).save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return folder
