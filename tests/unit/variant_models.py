"""Small random model folders, and a slow way to know what a variant's scores are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import ModernBertConfig, ModernBertForMaskedLM

from megatron_dna.hf.modeling_rmt import RmtConfig, RmtForMaskedLM
from megatron_dna.tokenizer.bpe import DnaTokenizer
from tests.unit.genome_files import reverse_complement

SEGMENT = 48
FLANK = 4 * SEGMENT


def save_model(folder: Path, tokenizer: Path, num_mem_tokens: int = 0) -> Path:
    """A folder with random weights, none of them trivial."""
    vocab_size = DnaTokenizer.from_file(tokenizer).vocab_size
    options: dict[str, Any] = {
        "vocab_size": vocab_size + 5, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": SEGMENT,
        "initializer_range": 0.2, "local_attention": 16, "global_attn_every_n_layers": 2,
        "pad_token_id": 3, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    model: Any
    if num_mem_tokens:
        memory = {"num_mem_tokens": num_mem_tokens, "segment_size": SEGMENT}
        model = RmtForMaskedLM(RmtConfig(**options, **memory))
    else:
        model = ModernBertForMaskedLM(ModernBertConfig(**options))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn(parameter.shape) * 0.3
    model.save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return folder


class Oracle:
    """docs/variants.md read aloud: one variant, one strand and one allele at a time."""

    def __init__(self, folder: Path) -> None:
        kind: Any = RmtForMaskedLM if "rmt" in folder.name else ModernBertForMaskedLM
        self.model = kind.from_pretrained(folder).eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def __call__(self, contig: str, start: int, ref: str, alt: str) -> tuple[float, float]:
        """log_ratio and distance; `contig` in upper case."""
        window = surroundings(contig, start, ref.upper(), alt.upper())
        left, *alleles, right = window
        other = [reverse_complement(part) for part in (right, *alleles, left)]
        found = np.array([self._strand(*window), self._strand(*other)])
        log_ratio, distance = found.mean(0)
        return float(log_ratio) + (len(alt) - len(ref)) * float(np.log(4)), float(distance)

    def _strand(self, left: str, ref: str, alt: str, right: str) -> tuple[float, float]:
        a, b = self._parts(left, ref, alt, right)
        (log_p_ref, mean_ref), (log_p_alt, mean_alt) = self._read(*a), self._read(*b)
        return log_p_alt - log_p_ref, float(np.linalg.norm(mean_alt - mean_ref))

    def _encode(self, text: str) -> list[tuple[int, int]]:
        """Ids, and bases of each."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [(i, 1 if i == 0 else len(self.tokenizer.id_to_token(i))) for i in ids]

    def _parts(self, left: str, ref: str, alt: str, right: str) -> list[list[list[int]]]:
        """Each allele's tokens: left, changed, right."""
        cut_left = cut_right = False
        while True:
            a, b = (
                [
                    token
                    for text in f"{left}{'|' * cut_left}{allele}{'|' * cut_right}{right}".split("|")
                    for token in self._encode(text)
                ]
                for allele in (ref, alt)
            )
            before = shared(a, b, len(left))
            after = shared(a[::-1], b[::-1], len(right))
            far_left = len(left) - sum(bases for _, bases in a[:before]) > 128
            far_right = len(right) - sum(bases for _, bases in a[len(a) - after :]) > 128
            if (far_left <= cut_left) and (far_right <= cut_right):
                break
            cut_left, cut_right = cut_left or far_left, cut_right or far_right
        room = SEGMENT - 2 - (max(len(a), len(b)) - before - after)
        num_left = min(before, max(room // 2, room - after))
        num_right = min(after, room - num_left)
        return [
            [
                [i for i, _ in ids[before - num_left : before]],
                [i for i, _ in ids[before : len(ids) - after]],
                [i for i, _ in ids[len(ids) - after :][:num_right]],
            ]
            for ids in (a, b)
        ]

    @torch.no_grad()
    def _read(self, left: list[int], changed: list[int], right: list[int]) -> tuple[float, Any]:
        """Log-probability of the changed tokens, and mean state beside them."""
        masked = torch.tensor([[1, *left, *[4] * len(changed), *right, 2]])
        log_p = self.model(masked).logits[0].log_softmax(-1)
        total = sum(float(log_p[1 + len(left) + i, token]) for i, token in enumerate(changed))
        states = self.model.model(torch.tensor([[1, *left, *changed, *right, 2]]))
        rows = states.last_hidden_state[0, 1:-1].double().numpy()
        flanks = np.concatenate([rows[: len(left)], rows[len(left) + len(changed) :]])
        return total, flanks.mean(0) if len(flanks) else np.full(rows.shape[1], np.nan)


def shared(a: list[tuple[int, int]], b: list[tuple[int, int]], bases: int) -> int:
    """Tokens that both begin with, within so many bases."""
    num = used = 0
    for x, y in zip(a, b, strict=False):
        used += x[1]
        if x != y or used > bases:
            break
        num += 1
    return num


class Window(NamedTuple):
    left: str
    ref: str
    alt: str
    right: str


def surroundings(contig: str, start: int, ref: str, alt: str) -> Window:
    """The alleles over all bases that they can be shifted over, found by trying all places."""
    assert contig[start : start + len(ref)] == ref
    gaps = [(0, 0), *(m.span() for m in re.finditer("N{10,}", contig)), (len(contig), 0)]
    begin = max(end for _, end in gaps if end <= start)
    contig, start = contig[begin : min(b for b, _ in gaps if b >= start + len(ref))], start - begin
    changed = contig[:start] + alt + contig[start + len(ref) :]
    longer, shorter = sorted((contig, changed), key=len, reverse=True)
    size = len(longer) - len(shorter)
    places = [p for p in range(len(shorter) + 1) if longer[:p] + longer[p + size :] == shorter]
    if places:  # an insertion, a deletion or nothing at all
        if size == 0:
            prefix = next(
                (i for i, (x, y) in enumerate(zip(ref, alt, strict=True)) if x != y), None
            )
            places = [start + (len(ref) if prefix is None else prefix)]
        first, tail = min(places), len(shorter) - max(places)
        first, tail = max(0, first - 1), max(0, tail - 1)
    else:
        first = next(i for i in range(len(shorter)) if contig[i] != changed[i])
        tail = next(i for i in range(len(shorter)) if contig[-1 - i] != changed[-1 - i])
    return Window(
        contig[max(0, first - FLANK) : first],
        contig[first : len(contig) - tail],
        changed[first : len(changed) - tail],
        contig[len(contig) - tail :][:FLANK],
    )
