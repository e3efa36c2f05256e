"""What a tokenizer.json says, as the encoder that follows it exactly; any other file is refused.

Two kinds are known. Both have GENA-LM's special tokens, and its normalizer, which turns 10 or more
N into "-"; a letter outside the vocabulary becomes [UNK].

BPE of GENA's kind: the pre-tokenizer cuts at "-" and nowhere else.
k-mers: the pre-tokenizer cuts off k bases, else one letter, and each of these is looked up whole
(WordLevel). With k = 1 every letter is a token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from megatron_dna._core import BpeEncoder, Encoder, KmerEncoder
from megatron_dna.genome.sequence import MIN_GAP_LENGTH

UNK, CLS, SEP, PAD, MASK, GAP = SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "-")
"""GENA's special tokens, in the order of GENA's ids: 0 to 5."""

STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
REPLACE_GAPS = {
    "type": "Replace",
    "pattern": {"Regex": f"N{{{MIN_GAP_LENGTH},}}"},
    "content": GAP,
}
_NORMALIZERS = (
    {"type": "Sequence", "normalizers": [STRIP, REPLACE_GAPS]},
    {"type": "Sequence", "normalizers": [REPLACE_GAPS]},
    REPLACE_GAPS,
)

_BPE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "type": ("BPE", "WordLevel"),
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (None, False),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
"""What each option of the BPE model may be; anything else changes ids."""


LETTERS = ("A", "C", "G", "N", "T")
"""Always in a vocabulary made here, so that no cleaned sequence has an [UNK]."""

MAX_KMER_LENGTH = 8
"""65,536 k-mers."""


def kmer_pattern(k: int) -> str:
    """How the pre-tokenizer of k-mers cuts: k bases are a piece, else one letter of any kind is."""
    return f"[ACGT]{{{k}}}|[\\s\\S]"


def _isolate(pattern: dict[str, str]) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


_SPLIT_AT_GAPS = _isolate({"String": GAP})
_SPLITS_OF_KMERS = [_isolate({"Regex": kmer_pattern(k)}) for k in range(1, MAX_KMER_LENGTH + 1)]


def parse_tokenizer(content: bytes) -> tuple[Encoder, list[str]]:
    """The encoder and the token of each id, from the bytes of a tokenizer.json.

    Raises:
        ValueError: it is not JSON, or not a tokenizer of a known kind; names what differs.
    """
    try:
        spec = json.loads(content)
    except ValueError as error:
        raise ValueError(f"not a JSON file ({error}); give the tokenizer.json itself") from error
    spec = _object(spec, "the file")
    model = _object(spec.get("model"), "model")
    for key in ("truncation", "padding"):
        _check(key, spec.get(key), (None,))
    _check("normalizer", spec.get("normalizer"), _NORMALIZERS)
    tokens, specials = _vocabulary(spec, model)
    ids = {token: i for i, token in enumerate(tokens)}
    _check("model.unk_token", model.get("unk_token"), (UNK,))
    common: dict[str, Any] = {
        "vocab": tokens,
        "specials": specials,
        "unk_id": ids[UNK],
        "strip": STRIP in spec["normalizer"].get("normalizers", []),
        "min_gap_length": MIN_GAP_LENGTH,
    }
    if model.get("type") == "WordLevel":
        _check("pre_tokenizer", spec.get("pre_tokenizer"), _SPLITS_OF_KMERS)
        k = 1 + _SPLITS_OF_KMERS.index(spec["pre_tokenizer"])
        return KmerEncoder(length=k, **common), tokens
    for key, allowed in _BPE_OPTIONS.items():
        _check(f"model.{key}", model.get(key), allowed)
    _check("pre_tokenizer", spec.get("pre_tokenizer"), (_SPLIT_AT_GAPS,))
    return BpeEncoder(merges=_merges(model, ids), **common), tokens


def _vocabulary(spec: dict[str, Any], model: dict[str, Any]) -> tuple[list[str], list[int]]:
    """The token of each id, and the ids that are matched in the raw text (added tokens)."""
    ids = dict(_object(model.get("vocab"), "model.vocab"))
    specials: list[int] = []
    for i, added in enumerate(_list(spec.get("added_tokens"), "added_tokens")):
        key = f"added_tokens[{i}]"
        added = _object(added, key)
        for option in ("single_word", "lstrip", "rstrip", "normalized"):
            _check(f"{key}.{option}", added.get(option), (None, False))
        token, token_id = added.get("content"), added.get("id")
        if not isinstance(token, str) or not token or ids.get(token) != token_id:
            raise ValueError(
                f"{key} ({token!r}, id {token_id!r}) must be in model.vocab with that id"
            )
        specials.append(ids[token])
    if any(type(i) is not int for i in ids.values()) or sorted(ids.values()) != [*range(len(ids))]:
        raise ValueError(f"the {len(ids)} tokens must have the ids 0 to {len(ids) - 1}, each once")
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise ValueError(f"the vocabulary lacks {missing}; GENA's special tokens must be there")
    tokens = sorted(ids, key=ids.__getitem__)
    strange = next((token for token in tokens if not token.isascii()), None)
    if strange is not None:
        raise ValueError(f"token {strange!r} must be ASCII, as DNA is")
    return tokens, specials


def _merges(model: dict[str, Any], ids: dict[str, int]) -> list[tuple[int, int, int]]:
    """Ids (left, right, merged) of every merge by rank; both file formats, "A C" and ["A", "C"]."""
    merges: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(_list(model.get("merges"), "model.merges")):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], str)
        ):
            raise ValueError(f"model.merges[{rank}] ({merge!r}) must be two tokens")
        left, right = pair
        for token in (left, right, left + right):
            if token not in ids:
                raise ValueError(f"model.merges[{rank}] ({merge!r}) needs {token!r} in model.vocab")
        if (left, right) in merges:
            first = merges[left, right]
            raise ValueError(f"model.merges[{rank}] ({merge!r}) repeats model.merges[{first}]")
        merges[left, right] = rank
    return [(ids[left], ids[right], ids[left + right]) for left, right in merges]


def _check(key: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises unless `value` is one of `allowed` (of the same type: 0 is not False)."""
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        choices = " or ".join(json.dumps(choice) for choice in allowed)
        raise ValueError(
            f"{key} ({json.dumps(value)}) must be {choices}: only BPE of GENA's kind and k-mers "
            "can be encoded exactly; make one with tools/train_tokenizer.py"
        )


def _object(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be a JSON object")
    return value


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a JSON list")
    return value
