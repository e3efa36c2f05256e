"""Model FLOPs, and what GPUs can do of them: for the log, plans and benchmarks."""

from __future__ import annotations

from megatron_dna.config import Config
from megatron_dna.model.encoder import padded_vocab_size
from megatron_dna.model.layers import is_local_layer

PEAK_TFLOPS = {"A100": 312.0, "H100": 989.4, "H200": 989.4, "GH200": 989.4, "B200": 2250.0}
"""Dense BF16, of the SXM modules, by a word of the device's name. Source: NVIDIA's data sheets."""


def attended_tokens(config: Config, layer: int) -> int:
    """Keys that a query of `layer` sees."""
    if is_local_layer(config.model, layer):
        return min(config.seq_length, config.model.local_attention + 1)
    return config.seq_length


def computed_keys(config: Config, layer: int) -> int:
    """Keys whose scores with each query of `layer` a rank computes: more than count as FLOPs.

    Under context parallelism a window is a mask over all keys that any query of the rank sees.
    """
    if config.parallel.context_parallel_size == 1:
        return attended_tokens(config, layer)
    if is_local_layer(config.model, layer):
        return min(config.seq_length, config.context_length + config.model.local_attention)
    return config.seq_length


def segment_flops(config: Config, vocab_size: int) -> float:
    """FLOPs of the forward pass of one segment of one sample, through the whole model.

    A training step has three times as many: the backward pass counts as twice the forward. Two a
    multiply-add; matrix products, attention (within the window only in local layers) and the head
    on the k masked positions. Memory tokens count, recomputation does not.
    """
    model, length = config.model, config.seq_length
    width = model.hidden_size
    matrices = model.num_layers * (4 * width**2 + 3 * width * model.ffn_hidden_size)
    attended = sum(attended_tokens(config, layer) for layer in range(model.num_layers))
    padded_vocab = padded_vocab_size(vocab_size, model.make_vocab_size_divisible_by)
    head = width**2 + width * padded_vocab
    return 2 * (length * (matrices + 2 * width * attended) + config.num_masked_tokens * head)


def find_module(device_name: str) -> str | None:
    """The key of `PEAK_TFLOPS` for a device; None where its peak is not known.

    PCIe and NVL boards have lower peaks than the SXM modules of the same name.
    """
    words = device_name.upper().replace("-", " ").split()
    if "PCIE" in words or "NVL" in words:
        return None
    return next((name for name in PEAK_TFLOPS if name in words), None)
