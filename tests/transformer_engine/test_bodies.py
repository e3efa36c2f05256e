"""The GPU suite's comparisons of layer specs, with kernels in plain torch."""

from tests.gpu.test_fp8 import (
    test_gradients_are_near,
)
from tests.gpu.test_fp8 import (
    test_recomputation_changes_nothing as test_recomputation_changes_nothing_in_fp8,
)
from tests.gpu.test_layers import (
    test_attention_is_softmax_over_masked_scores,
    test_recomputation_changes_nothing,
    test_specs_agree_in_bf16,
    test_specs_agree_in_fp32,
)

__all__ = [
    "test_attention_is_softmax_over_masked_scores",
    "test_gradients_are_near",
    "test_recomputation_changes_nothing",
    "test_recomputation_changes_nothing_in_fp8",
    "test_specs_agree_in_bf16",
    "test_specs_agree_in_fp32",
]
