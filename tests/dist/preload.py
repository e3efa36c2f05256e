"""What the fork server of `harness` imports once for all ranks."""

import megatron.core.dist_checkpointing
import megatron.core.models.bert.bert_model
import megatron.core.optimizer
import megatron.core.pipeline_parallel  # noqa: F401
import torch  # noqa: F401
