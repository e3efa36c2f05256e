"""DNA text to BPE ids and back: a typed facade over the exact encoder in `csrc/bpe.cpp`.

A tokenizer is a `tokenizer.json` of GENA-LM's kind, and nothing else is read: BPE whose normalizer
turns 10 or more N into "-", whose pre-tokenizer cuts at "-" and nowhere else, and whose unknown
characters each become [UNK]. Ids equal those of Hugging Face `tokenizers` on every string; a file
that asks for anything more is refused, since it could not be followed exactly.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_dna._core import BpeEncoder
from megatron_dna.genome.sequence import MIN_GAP_LENGTH

logger = logging.getLogger(__name__)

UNK, CLS, SEP, PAD, MASK, GAP = SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "-")
"""GENA's special tokens, in the order of GENA's ids: 0 to 5."""

STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
REPLACE_GAPS = {
    "type": "Replace",
    "pattern": {"Regex": f"N{{{MIN_GAP_LENGTH},}}"},
    "content": GAP,
}
SPLIT_AT_GAPS = {
    "type": "Split",
    "pattern": {"String": GAP},
    "behavior": "Isolated",
    "invert": False,
}

_NORMALIZERS = (
    {"type": "Sequence", "normalizers": [STRIP, REPLACE_GAPS]},
    {"type": "Sequence", "normalizers": [REPLACE_GAPS]},
    REPLACE_GAPS,
)

_MODEL_OPTIONS: dict[str, tuple[Any, ...]] = {
    "type": ("BPE",),
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (None, False),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
"""What each option of the BPE model may be; anything else changes ids."""


class DnaTokenizer:
    """Encodes DNA with the ids of one tokenizer.json.

    Attributes:
        vocab_size: number of ids, special tokens included.
        unk_id, cls_id, sep_id, pad_id, mask_id, gap_id: ids of [UNK] [CLS] [SEP] [PAD] [MASK] "-".
        special_ids: these six: never masked, never drawn as a random replacement.
        token_lengths: int32 [vocab_size], bases that each token spells; 0 for the special ones.
        sha256: of the file, in hex.
    """

    def __init__(self, encoder: BpeEncoder, tokens: Sequence[str], sha256: str) -> None:
        """Use `from_file`."""
        ids = {token: i for i, token in enumerate(tokens)}
        self._encoder = encoder
        self.vocab_size = len(tokens)
        self.unk_id, self.cls_id, self.sep_id = ids[UNK], ids[CLS], ids[SEP]
        self.pad_id, self.mask_id, self.gap_id = ids[PAD], ids[MASK], ids[GAP]
        self.special_ids = frozenset(ids[token] for token in SPECIAL_TOKENS)
        self._bases = ["" if i in self.special_ids else token for i, token in enumerate(tokens)]
        self.token_lengths: npt.NDArray[np.int32] = np.array(
            [len(bases) for bases in self._bases], np.int32
        )
        self.sha256 = sha256

    @classmethod
    def from_file(cls, path: str | Path) -> DnaTokenizer:
        """Reads a tokenizer.json.

        Raises:
            ValueError: it is not JSON, or not a tokenizer of GENA's kind; names what differs.
            OSError: the file cannot be read.
        """
        content = Path(path).read_bytes()
        try:
            encoder, tokens = _parse(content)
        except ValueError as error:
            raise ValueError(f"tokenizer {path}: {error}") from error
        if not encoder.is_fast:
            logger.warning(
                "tokenizer %s: its vocabulary is too large for the fast tables, or has a token of "
                "more than 64 bases or no A, C, G, T: encoding is exact, but several times slower",
                path,
            )
        return cls(encoder, tokens, hashlib.sha256(content).hexdigest())

    def encode(self, sequence: bytes | str) -> npt.NDArray[np.int32]:
        """Ids of a whole sequence, int32 [tokens], without [CLS] and [SEP].

        Runs in C++ with the GIL released. Letters outside the vocabulary, lower case too, become
        [UNK] one by one, as in `tokenizers`: upper-case soft-masked sequence first.

        Raises:
            ValueError: the bytes are not UTF-8 (ASCII is).
        """
        return self._encoder.encode(sequence)

    def may_follow(self, left: int, right: int) -> bool:
        """Whether two tokens of bases can be neighbours: the text of both is encoded as the two.

        A sequence of tokens of which every two neighbours can be is the encoding of its text.
        """
        ids = self.encode(self._bases[left] + self._bases[right])
        return np.array_equal(ids, (left, right))

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """The bases that the ids spell: `token_lengths[ids].sum()` letters, special ids none.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        values = np.asarray(ids, np.int64)
        if values.size and not (values.min() >= 0 and values.max() < self.vocab_size):
            raise ValueError(f"ids must be between 0 and {self.vocab_size - 1}, the vocabulary's")
        return "".join(self._bases[i] for i in values.tolist())


def _parse(content: bytes) -> tuple[BpeEncoder, list[str]]:
    """The encoder and the token of each id, from the bytes of a tokenizer.json."""
    try:
        spec = json.loads(content)
    except ValueError as error:
        raise ValueError(f"not a JSON file ({error}); give the tokenizer.json itself") from error
    spec = _object(spec, "the file")
    model = _object(spec.get("model"), "model")
    for key in ("truncation", "padding"):
        _check(key, spec.get(key), (None,))
    _check("normalizer", spec.get("normalizer"), _NORMALIZERS)
    _check("pre_tokenizer", spec.get("pre_tokenizer"), (SPLIT_AT_GAPS,))
    for key, allowed in _MODEL_OPTIONS.items():
        _check(f"model.{key}", model.get(key), allowed)
    tokens, specials = _vocabulary(spec, model)
    ids = {token: i for i, token in enumerate(tokens)}
    _check("model.unk_token", model.get("unk_token"), (UNK,))
    encoder = BpeEncoder(
        vocab=tokens,
        merges=_merges(model, ids),
        specials=specials,
        unk_id=ids[UNK],
        strip=STRIP in spec["normalizer"].get("normalizers", []),
        min_gap_length=MIN_GAP_LENGTH,
    )
    return encoder, tokens


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
        if not isinstance(token, str) or not token or ids.setdefault(token, token_id) != token_id:
            raise ValueError(f"{key} ({token!r}, id {token_id!r}) must name a token by its own id")
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
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
        ):
            raise ValueError(f"model.merges[{rank}] ({merge!r}) must be two tokens")
        left, right = pair
        absent = next((token for token in (left, right, left + right) if token not in ids), None)
        if absent is not None:
            raise ValueError(f"model.merges[{rank}] ({merge!r}) needs {absent!r} in model.vocab")
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
            f"{key} ({json.dumps(value)}) must be {choices}: only tokenizers of GENA's kind can be "
            "encoded exactly; train one with tools/train_tokenizer.py"
        )


def _object(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be a JSON object")
    return value


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a JSON list")
    return value
