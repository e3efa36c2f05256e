"""Bytes that a pipeline stage saves for the backward pass; for the log, and for plans.

Held to what training saves on CPU by tests (`tests/dist/test_planning.py`) but for FP8, which is
what Transformer Engine's source saves, and was never measured.
"""

from __future__ import annotations

from megatron_dna.config import Config
from megatron_dna.model.encoder import padded_vocab_size
from megatron_dna.model.layers import is_fp8_layer
from megatron_dna.training.flops import computed_keys


def item_bytes(config: Config) -> int:
    """Bytes of a weight or an activation outside of FP8."""
    return 2 if config.train.precision == "bf16" else 4


def layer_bytes(config: Config, layer: int) -> float:
    """What a layer saves for the backward pass of one segment of one micro-batch, in bytes.

    Two norms and what they normalise; queries, keys and values, two of them rotated, and what
    attention makes of them; GeGLU's input, its two halves once more (one activated) and their
    product; cosines and sines; statistics of norms and attention, whose scores are never kept.

    Under context parallelism attention keeps rotated queries and its result of the rank's own
    positions, but keys and values of all that these see. Where it is recomputed, and gathers them
    again, it keeps its own only.

    In FP8 the inputs of matrix products take a byte, in one orientation: the norms' results and
    GeGLU's product instead of BF16, attention's result besides.
    """
    model, parallel = config.model, config.parallel
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    sharded = tp if parallel.sequence_parallel else 1
    item, hidden, ffn = item_bytes(config), model.hidden_size, model.ffn_hidden_size
    gathers = cp > 1 and config.train.recompute_granularity != "selective"
    keys = computed_keys(config, layer) / config.context_length
    attention = (2 + 2 * keys if gathers else 6) * hidden
    per_token = item * (4 * hidden / sharded + (attention + 5 * ffn) / tp)
    if is_fp8_layer(config, layer):
        per_token -= (item - 1) * (2 * hidden / sharded + ffn / tp)
        per_token += hidden / tp
    head_width = hidden // model.num_attention_heads
    rotation = 4 * config.context_length * head_width * item
    statistics = 4 * 2 / sharded + model.num_attention_heads / tp
    rows = config.train.micro_batch_size * config.context_length
    return rotation + rows * (per_token + 4 * statistics)


def segment_bytes(config: Config, vocab_size: int, stage: int, has_segments: bool) -> float:
    """What a stage saves of one segment of one micro-batch, in bytes.

    Under full recomputation the inputs of layers instead of what is in them. Selective
    recomputation saves nothing without context parallelism: attention keeps no scores.

    Args:
        config: the run's options.
        vocab_size: ids of the vocabulary.
        stage: of the pipeline.
        has_segments: whether windows have more than one segment (other schedules).
    """
    count = config.model.num_layers // config.parallel.pipeline_model_parallel_size
    if config.train.recompute_granularity == "full":
        count += stage == 0  # input of the embedding norm; else layer 0 has one norm less
        layers = count * residual_bytes(config)
    else:
        layers = sum(layer_bytes(config, stage * count + i) for i in range(count))
    return layers + ends_bytes(config, vocab_size, stage, has_segments)


def residual_bytes(config: Config) -> float:
    """Hidden states between two layers."""
    rows = config.train.micro_batch_size * config.residual_length
    return rows * config.model.hidden_size * item_bytes(config)


def rotary_bytes(config: Config) -> float:
    """Angles of all positions in fp32, global and local: once a process, kept for recomputation."""
    head_width = config.model.hidden_size // config.model.num_attention_heads
    return 2.0 * config.seq_length * head_width * 4


def ends_bytes(config: Config, vocab_size: int, stage: int, has_segments: bool) -> float:
    """What a stage keeps of a segment after its layers."""
    model, parallel = config.model, config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    residual, item = residual_bytes(config), item_bytes(config)
    if stage < pp - 1:
        # The engine frees what it has sent, Megatron's 1F1B does not.
        return 0.0 if has_segments else residual
    micro_batch = config.train.micro_batch_size
    kept = residual  # input of the final norm
    kept += micro_batch * config.memory.num_mem_tokens * model.hidden_size * item
    # Head: inputs of dense, GELU, norm and decoder; the fp32 probabilities.
    padded_vocab = padded_vocab_size(vocab_size, model.make_vocab_size_divisible_by)
    positions = micro_batch * config.num_head_positions
    return kept + positions * (4 * model.hidden_size * item + 4 * padded_vocab / tp)
