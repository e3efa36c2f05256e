"""The README.md of an exported model: what it is, what it was trained on, how well it does."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel

from megatron_dna import __version__
from megatron_dna.config import BlendSource, Config

_USAGE = """\
```python
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForMaskedLM.from_pretrained("{folder}"{remote_code})
inputs = tokenizer("ACGTTGCA" * 20, return_tensors="pt")  # upper case
with torch.no_grad():
    logits = model(**inputs).logits
```"""


_MEMORY_NOTE = """\
Longer input is read segment by segment; memory tokens carry what was read. `modeling_rmt.py` in
this folder, a thin layer over `ModernBertModel`, says how, and how to stream what does not fit
into memory."""


def model_card(checkpoint: Path, config: Config, model: PreTrainedModel) -> str:
    """Markdown with Hugging Face's metadata header."""
    shape, memory = config.model, config.memory
    has_memory = memory.num_mem_tokens > 0
    sources = [line for source in config.data.train for line in _source_lines(source)]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: fill-mask",
            "tags: [dna, genomics, modernbert, megatron_dna]",
            "---",
            "",
            "# DNA language model",
            "",
            f"A masked language model of DNA (`{type(model).__name__}`, "
            f"{model.num_parameters():,} parameters), trained with megatron_dna {__version__} "
            f"and converted from `{checkpoint.name}`.",
            "",
            "| shape | |",
            "| --- | --- |",
            f"| layers x hidden x heads | {shape.num_layers} x {shape.hidden_size} x "
            f"{shape.num_attention_heads} |",
            f"| GeGLU width | {shape.ffn_hidden_size} |",
            f"| vocabulary | {model.config.vocab_size} BPE tokens |",
            f"| segment | {config.data.segment_size} tokens, [CLS] and [SEP] included |",
            *(
                [
                    f"| memory | {memory.num_mem_tokens} tokens, update `{memory.update}` |",
                    f"| trained length | {memory.max_n_segments} segments |",
                ]
                if has_memory
                else []
            ),
            "",
            "## Use",
            "",
            _USAGE.format(folder=".", remote_code=", trust_remote_code=True" if has_memory else ""),
            "",
            *([_MEMORY_NOTE, ""] if has_memory else []),
            "## Training data",
            "",
            *(sources or ["Not recorded."]),
            "",
            "## Metrics",
            "",
            *_metric_lines(checkpoint),
            "",
        ]
    )


def _source_lines(source: BlendSource) -> list[str]:
    """One source of the blend, from the manifest that preprocessing wrote beside it."""
    prefix = source.prefix.removesuffix("_train").removesuffix("_valid")
    manifest = Path(f"{prefix}.json")
    lines = [f"- `{Path(source.prefix).name}`, weight {source.weight:g}"]
    if manifest.is_file():
        for item in json.loads(manifest.read_text(encoding="utf-8")).get("inputs", []):
            lines.append(f"  - `{Path(item['path']).name}` sha256 `{item['sha256']}`")
    return lines


def _metric_lines(checkpoint: Path) -> list[str]:
    """Last held-out metrics at or before the checkpoint's iteration."""
    metrics = checkpoint.parent.parent / "metrics.jsonl"
    iteration = int(checkpoint.name.removeprefix("iter_"))
    found: dict[str, float] = {}
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["iteration"] <= iteration and "valid/loss" in record:
                found = record
    if not found:
        return ["No held-out evaluation was recorded."]
    return [
        f"Held-out, at iteration {found['iteration']}:",
        "",
        "| loss (nats a masked token) | accuracy | bits a base |",
        "| --- | --- | --- |",
        f"| {found['valid/loss']:.4f} | {found['valid/accuracy']:.4f} | "
        f"{found['valid/bits_per_base']:.4f} |",
    ]
