"""What the tests of fine-tuning share: tiny model folders, and tasks that are learned at once."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from megatron_dna.finetune.models import ModelFolder
from megatron_dna.finetune.tasks import Task, load_task
from megatron_dna.hf import modeling_rmt
from megatron_dna.hf.architecture import AUTO_MAP
from megatron_dna.hf.convert import hf_tokenizer
from megatron_dna.hf.modeling_rmt import RmtConfig, RmtForMaskedLM
from tests.unit.data_files import write_tokenizer

MAX_TOKENS = 40
CPU = torch.device("cpu")


def write_model(folder: Path, has_memory: bool = False) -> Path:
    """A folder as to-hf writes it, with random weights."""
    options = {
        "vocab_size": 27, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": MAX_TOKENS, "norm_eps": 1e-5,
        "global_attn_every_n_layers": 1, "initializer_range": 0.1, "decoder_bias": True,
        "pad_token_id": 3, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(1234)
    folder.mkdir(parents=True)
    if has_memory:
        config = RmtConfig(
            **options, num_mem_tokens=3, segment_size=MAX_TOKENS, auto_map=AUTO_MAP,
            architectures=["RmtForMaskedLM"],
        )  # fmt: skip
        RmtForMaskedLM(config).save_pretrained(folder)
        shutil.copyfile(modeling_rmt.__file__, folder / "modeling_rmt.py")
    else:
        ModernBertForMaskedLM(ModernBertConfig(**options)).save_pretrained(folder)
    tokenizer = write_tokenizer(folder.parent / "tokenizer.json")
    hf_tokenizer(tokenizer, MAX_TOKENS).save_pretrained(folder)
    return folder


def model_folder(path: Path) -> ModelFolder:
    return ModelFolder(path, CPU)


def rich(draw: random.Random, letters: str, length: int) -> str:
    """Random bases, four in five of them among `letters`."""
    return "".join(
        draw.choice(letters) if draw.random() < 0.8 else draw.choice("ACGT") for _ in range(length)
    )


def write_table(path: Path, kind: str, count: int, length: int = 40, seed: int = 0) -> Path:
    """Sequences whose label is what they consist of."""
    draw = random.Random(seed)
    header = "sequence,label"
    lines = []
    for i in range(count):
        first, second = i % 2, draw.randrange(2)
        text = rich(draw, ("AT", "CG")[first] if kind != "multi_label" else
                    ("AC" if second else "A", "GC" if second else "G")[first], length)  # fmt: skip
        gc = (text.count("G") + text.count("C")) / length
        label = {
            "classification": ("at", "gc")[first],
            "regression": f"{100 + 10 * gc:.4f}",
            "multi_label": f"{first},{second}",
            "token": "".join(str(int(base in "CG")) for base in text),
        }[kind]
        lines.append(f"{text},{label}")
    if kind == "multi_label":
        header = "sequence,has_g,has_c"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def write_task(path: Path, kind: str, table: Path, *lines: str) -> Path:
    """A task over a table."""
    columns = "[has_g, has_c]" if kind == "multi_label" else "[label]"
    text = [
        f"name: {path.stem}", f"kind: {kind}", *lines, "data:", "  format: table",
        f"  path: {table}", f"  label_columns: {columns}",
    ]  # fmt: skip
    path.write_text("\n".join(text) + "\n")
    return path


def make_task(folder: Path, kind: str, *overrides: str, count: int = 90, length: int = 40) -> Task:
    """A task of a kind that a tiny model learns in seconds; fold 0 of 3."""
    folder.mkdir(parents=True, exist_ok=True)
    table = write_table(folder / f"{kind}.csv", kind, count, length)
    path = write_task(folder / f"{kind}.yaml", kind, table)
    quick = ["split.num_folds=3", "training.epochs=6", "training.batch_size=6",
             "training.learning_rate=3e-3", "probe.kmers=[1,2]"]  # fmt: skip
    return load_task(path, [*quick, *overrides])


def task_of(folder: Path, text: str, *overrides: str) -> Task:
    path = folder / "t.yaml"
    path.write_text(text)
    return load_task(path, overrides)
