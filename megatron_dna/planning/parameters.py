"""How many parameters a model has, and how many of them each rank holds."""

from __future__ import annotations

from megatron_dna.config import Config
from megatron_dna.model.encoder import padded_vocab_size
from megatron_dna.model.layers import is_fp8_layer


def _norm(config: Config) -> int:
    return config.model.hidden_size * (2 if config.model.norm_bias else 1)


def _embedding(config: Config, vocab_size: int, tp: int) -> int:
    model = config.model
    rows = padded_vocab_size(vocab_size, model.make_vocab_size_divisible_by)
    memory = config.memory.num_mem_tokens * model.hidden_size
    return rows // tp * model.hidden_size + memory + _norm(config)


def _head(config: Config, vocab_size: int, tp: int) -> int:
    """Final norm, dense, norm, and the decoder's bias; its matrix is the embedding's."""
    model = config.model
    rows = padded_vocab_size(vocab_size, model.make_vocab_size_divisible_by)
    return model.hidden_size**2 + 2 * _norm(config) + rows // tp


def _matrices(config: Config) -> int:
    """Weights of a layer's four products."""
    model = config.model
    return 4 * model.hidden_size**2 + 3 * model.hidden_size * model.ffn_hidden_size


def _layers(config: Config, first: int, count: int, tp: int) -> int:
    """Layers `first` to `first + count`; layer 0 has no norm before its attention."""
    norms = 2 * count - (1 if first == 0 else 0)
    return count * _matrices(config) // tp + norms * _norm(config)


def total_parameters(config: Config, vocab_size: int) -> int:
    """Parameters of the whole model, each counted once; the padded rows of the vocabulary too."""
    return (
        _embedding(config, vocab_size, 1)
        + _layers(config, 0, config.model.num_layers, 1)
        + _head(config, vocab_size, 1)
    )


def stage_parameters(config: Config, vocab_size: int, stage: int) -> int:
    """Parameters that each rank of pipeline stage `stage` holds.

    Where PP > 1 the last stage has a copy of the embedding's matrix.
    """
    model, parallel = config.model, config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    count = model.num_layers // pp
    parameters = _layers(config, stage * count, count, tp)
    if stage == 0:
        parameters += _embedding(config, vocab_size, tp)
    if stage == pp - 1:
        parameters += _head(config, vocab_size, tp)
        if pp > 1:
            rows = padded_vocab_size(vocab_size, model.make_vocab_size_divisible_by)
            parameters += rows // tp * model.hidden_size
    return parameters


def fp8_parameters(config: Config, stage: int) -> int:
    """Those of them that are multiplied in FP8."""
    count = config.model.num_layers // config.parallel.pipeline_model_parallel_size
    layers = sum(is_fp8_layer(config, stage * count + i) for i in range(count))
    return layers * _matrices(config) // config.parallel.tensor_model_parallel_size
