"""Checkpoints of this package as Hugging Face models, and the way back.

The plain encoder is exactly `transformers.ModernBertForMaskedLM`, so it loads with no remote code.
With memory the folder brings its own `modeling_rmt.py`. Weights pass one by one: a conversion needs
memory for the largest tensor, not for the model.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from megatron_dna.checkpoint.reader import WeightReader, read_config
from megatron_dna.checkpoint.state import TrainState
from megatron_dna.checkpoint.writer import write_weights
from megatron_dna.config import Config, to_yaml
from megatron_dna.genome.folders import output_folder
from megatron_dna.hf import modeling_rmt
from megatron_dna.hf.architecture import hf_config, read_hf_config, training_config
from megatron_dna.hf.card import model_card
from megatron_dna.hf.modeling_rmt import RmtConfig, RmtForMaskedLM
from megatron_dna.hf.shards import ShardReader, parse_size, write_shards
from megatron_dna.hf.weights import weight_rules
from megatron_dna.model.encoder import padded_vocab_size
from megatron_dna.tokenizer.bpe import DnaTokenizer

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

TIED = "decoder.weight"
"""The decoder's matrix: the token embedding's, so in no file of ours."""

_ALIGNMENT = 128
"""Rows of an embedding that has more than the tokenizer needs are padded to a multiple of this."""


def to_hugging_face(
    checkpoint: Path,
    output: Path,
    dtype: str = "fp32",
    tokenizer: Path | None = None,
    max_shard_size: str = "5GB",
    vocab_size: int | None = None,
) -> None:
    """Write `checkpoint` as a folder that AutoModelForMaskedLM and AutoTokenizer load.

    Written beside `output` and moved into place when complete.

    Args:
        checkpoint: an `iter_...` folder.
        output: folder to make; must not exist yet.
        dtype: `fp32` or `bf16`.
        tokenizer: tokenizer.json, if it is no longer where the run's config says.
        max_shard_size: of one safetensors file, such as `5GB`.
        vocab_size: rows of the embedding to write; None is the tokenizer's number of tokens.

    Raises:
        ValueError: the checkpoint, the tokenizer or the output folder cannot be used.
    """
    shard_bytes = parse_size(max_shard_size)
    config = read_config(checkpoint)
    tokenizer_path = tokenizer or Path(config.data.tokenizer)
    if not tokenizer_path.is_file():
        raise ValueError(f"tokenizer ({tokenizer_path}) is not a file; name it with --tokenizer")
    dna_tokenizer = DnaTokenizer.from_file(tokenizer_path)
    rows = _rows_to_write(vocab_size, dna_tokenizer.vocab_size, config)
    theirs = hf_config(config, dna_tokenizer, rows)
    theirs.dtype = DTYPES[dtype]
    has_memory = isinstance(theirs, RmtConfig)
    rules = {rule.hf_name: rule for rule in weight_rules(config.model, rows, has_memory)}
    shapes = _shapes(theirs)
    assert shapes.keys() == rules.keys(), f"no rule: {sorted(shapes.keys() ^ rules.keys())}"
    with _made_whole(output) as partial:
        weights = WeightReader(checkpoint)

        def read(name: str) -> Tensor:
            return rules[name].to_hf(weights.read(rules[name].key))

        write_shards(partial, shapes, read, DTYPES[dtype], shard_bytes)
        theirs.save_pretrained(partial)
        max_length = config.data.segment_size
        if has_memory:
            shutil.copyfile(modeling_rmt.__file__, partial / "modeling_rmt.py")
            max_length = config.memory.max_n_segments * (max_length - 2) + 2
        hf_tokenizer(tokenizer_path, max_length).save_pretrained(partial)
        card = model_card(checkpoint, config, _empty_model(theirs))
        (partial / "README.md").write_text(card, encoding="utf-8")
    logger.info("wrote %s", output)


def _rows_to_write(wanted: int | None, tokens: int, config: Config) -> int:
    stored = padded_vocab_size(tokens, config.model.make_vocab_size_divisible_by)
    if wanted is not None and not tokens <= wanted <= stored:
        raise ValueError(
            f"--vocab-size ({wanted}) must be between {tokens}, the tokenizer's, and {stored}, "
            "the rows in the checkpoint"
        )
    return wanted or tokens


def from_hugging_face(model: Path, output: Path, tokenizer: Path | None = None) -> Path:
    """Write a `ModernBertForMaskedLM` or exported RMT folder as the start of a run.

    `output` gets config.yaml (the model's shape, `checkpoint.load` of these weights),
    tokenizer.json and checkpoints/iter_0000000, weights only, for any TP and PP.

    Args:
        model: a folder with config.json and safetensors.
        output: folder to make; must not exist yet.
        tokenizer: tokenizer.json; None takes the model folder's.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: another architecture, a tokenizer that is not the model's or not of GENA's kind,
            weights that are missing or damaged.
    """
    theirs = read_hf_config(model)
    tokenizer_path = tokenizer or model / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise ValueError(f"tokenizer ({tokenizer_path}) is not a file; name it with --tokenizer")
    _check_tokenizer(model, tokenizer_path, theirs.vocab_size)
    dna_tokenizer = DnaTokenizer.from_file(tokenizer_path)
    config = _config_of_start(model, output, theirs, dna_tokenizer.vocab_size)
    weights = ShardReader(model)
    rules = weight_rules(config.model, theirs.vocab_size, isinstance(theirs, RmtConfig))
    by_key = {rule.key: rule for rule in rules}
    _check_weights(model, weights, theirs)

    def read(key: str) -> Tensor:
        return by_key[key].from_hf(weights.read(by_key[key].hf_name).to(torch.float32))

    shapes = {
        key: tuple(rule.from_hf(torch.empty(weights.shapes[rule.hf_name], device="meta")).shape)
        for key, rule in by_key.items()
    }
    with _made_whole(output) as partial:
        state = TrainState(tokenizer_sha256=dna_tokenizer.sha256)
        written = write_weights(partial / "checkpoints", shapes, read, state, config)
        shutil.copyfile(tokenizer_path, partial / "tokenizer.json")
        start = replace(config, checkpoint=replace(config.checkpoint, load=str(output.resolve())))
        (partial / "config.yaml").write_text(to_yaml(start), encoding="utf-8")
    logger.info("wrote %s", output)
    return output / written.relative_to(partial)


def _config_of_start(
    model: Path, output: Path, theirs: ModernBertConfig, num_tokens: int
) -> Config:
    """The options with the model's shape; spare rows of the embedding are kept."""
    config = training_config(model, theirs, Config())
    shape = config.model
    if theirs.vocab_size > num_tokens:
        rows = -(-theirs.vocab_size // _ALIGNMENT) * _ALIGNMENT
        shape = replace(shape, make_vocab_size_divisible_by=rows)
    data = replace(config.data, tokenizer=str(output.resolve() / "tokenizer.json"))
    return replace(config, model=shape, data=data)


def _check_tokenizer(model: Path, path: Path, vocab_size: int) -> None:
    """Refuse a tokenizer that gives other ids than the model's own, or ids the model lacks."""
    ids = Tokenizer.from_file(str(path)).get_vocab()
    own = model / "tokenizer.json"
    if own.is_file() and Tokenizer.from_file(str(own)).get_vocab() != ids:
        raise ValueError(f"--tokenizer ({path}) has other ids than {own}, the model's own")
    if len(ids) > vocab_size:
        raise ValueError(
            f"tokenizer ({path}) has {len(ids)} tokens, the model in {model} only {vocab_size}; "
            "name the model's own with --tokenizer"
        )


def _check_weights(model: Path, weights: ShardReader, theirs: ModernBertConfig) -> None:
    """Refuse a folder whose tensors are not those of its configuration."""
    wanted = _shapes(theirs)
    for what, names in (
        ("lacks", wanted.keys() - weights.shapes.keys()),
        ("also has", weights.shapes.keys() - wanted.keys() - {TIED}),
    ):
        if names:
            raise ValueError(
                f"--model ({model}) {what} {min(names)} ({len(names)} such tensors); it must hold "
                "a masked language model, head included and nothing else"
            )
    for name, shape in wanted.items():
        if weights.shapes[name] != shape:
            raise ValueError(
                f"--model ({model}): {name} has shape {list(weights.shapes[name])}, config.json "
                f"asks for {list(shape)}"
            )


def _shapes(theirs: ModernBertConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a model's files, by transformers' own word."""
    state = _empty_model(theirs).state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if name != TIED}


def _empty_model(theirs: ModernBertConfig) -> PreTrainedModel:
    with torch.device("meta"):
        if isinstance(theirs, RmtConfig):
            return RmtForMaskedLM(theirs)
        return ModernBertForMaskedLM(theirs)


@contextlib.contextmanager
def _made_whole(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write into, which gets its name when all went well."""
    if output.exists():
        raise ValueError(f"--output ({output}) exists already; choose another folder or remove it")
    with output_folder(output.parent):
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            yield partial
            partial.chmod(0o755)
            partial.rename(output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def hf_tokenizer(path: str | Path, model_max_length: int) -> PreTrainedTokenizerFast:
    """The run's tokenizer.json for transformers: special tokens named, segments framed."""
    tokenizer = Tokenizer.from_file(str(path))
    frame = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, frame)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
