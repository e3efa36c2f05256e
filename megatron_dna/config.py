"""Every option of a run: typed, documented, checked before any process group exists.

`load_config` merges the defaults below, a YAML recipe and `section.key=value` overrides (the last
word). Names are Megatron's and RMT's own. The rules between options are in `validation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

RECALL_BARCODE_LENGTH = 4
"""Symbols of a barcode in recall data: the masked positions of a window."""
RECALL_FIRST_SYMBOL = 8
"""Ids of recall data below this one are special tokens and markers."""

_OPTIONS = "docs/configuration.md lists every option and its type"


class ConfigError(ValueError):
    """A bad option. The message names the full key, the value, the rule and the fix."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the ModernBERT-compatible encoder."""

    num_layers: int = 12
    """Transformer layers."""
    hidden_size: int = 768
    """Width of the residual stream."""
    ffn_hidden_size: int = 1152
    """Width of the gated MLP (GeGLU): `linear_fc1` has twice as many rows."""
    num_attention_heads: int = 12
    """Attention heads; each is hidden_size / num_attention_heads wide."""
    norm_eps: float = 1e-5
    """Added to the variance in every LayerNorm."""
    norm_bias: bool = False
    """Whether LayerNorms have a bias."""
    global_attn_every_n_layers: int = 1
    """Layer i attends globally if i is a multiple of this, else locally; 1 is global only."""
    local_attention: int = 128
    """Width of the local attention window in tokens, half to each side."""
    global_rope_theta: float = 160000.0
    """RoPE base of global layers."""
    local_rope_theta: float = 10000.0
    """RoPE base of local layers."""
    init_method_std: float = 0.02
    """Standard deviation of initial weights; output projections use std / sqrt(2 num_layers)."""
    make_vocab_size_divisible_by: int = 128
    """The embedding is padded to a multiple of this; padded ids never get probability."""
    layer_spec: str = "auto"
    """Modules of a layer: `transformer_engine` (CUDA), `local` (torch), or `auto`: the first
    where it can run, else the second."""


@dataclass(frozen=True)
class UntilConfig:
    """When a stage of the curriculum has converged: at a threshold, or on a plateau."""

    metric: str = "train/loss"
    """`train/loss`, `train/accuracy`, `valid/loss` or `valid/accuracy`."""
    threshold: float | None = None
    """The stage ends when the mean over the window is as good as this."""
    patience: int | None = None
    """The stage ends when that mean has had no new best for so many batches (or evaluations)."""
    window: int = 20
    """Batches (for `valid/...`: evaluations) of the mean; only those of all n_segments count."""


@dataclass(frozen=True)
class StageConfig:
    """One stage of the curriculum. The last stage lasts until train.train_iters."""

    n_segments: int = 1
    """Segments of a window."""
    train_iters: int | None = None
    """Length of the stage in iterations; or `until`."""
    until: UntilConfig | None = None
    """Convergence that ends the stage; or `train_iters`."""
    lr: float | None = None
    """Peak learning rate in this stage; null is optimizer.lr."""
    vary_n_segments: float = 0.0
    """Share of the batches whose number of segments is drawn from 1..n_segments."""


@dataclass(frozen=True)
class MemoryConfig:
    """Recurrent memory. M = 0 and S = 1 is the plain encoder."""

    num_mem_tokens: int = 0
    """M, memory tokens in front of every segment."""
    max_n_segments: int = 1
    """S, consecutive segments of a window."""
    bptt_depth: int = -1
    """W, segments that gradients flow through; the memory is detached between groups. -1: all."""
    update: str = "plain"
    """New memory from final states: `plain` (the published RMT) or `binary` (their signs)."""
    noise_std: float = 0.0
    """Standard deviation of Gaussian noise on new memory before its update, in training only."""
    noise_start: int = 0
    """Curriculum stage (from 0) at whose start the noise begins."""
    noise_ramp_iters: int = 30
    """Iterations over which the noise grows to `noise_std`."""
    curriculum: list[StageConfig] = field(default_factory=list)
    """Stages of training, in order; empty trains on max_n_segments from the start."""
    constant_tokens: bool = True
    """Cut a window into floor(S / n) windows of n segments; false takes its first n only."""


@dataclass(frozen=True)
class BlendSource:
    """One preprocessed data set in a blend."""

    prefix: str
    """Path of the .bin/.idx pair, without extension."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources."""


@dataclass(frozen=True)
class DataConfig:
    """From .bin/.idx files, or from nothing, to batches."""

    kind: str = "genome"
    """`genome` (preprocessed files) or `recall` (synthetic: tests what memory holds)."""
    recall_vocab_size: int = 64
    """Ids of recall data: 8 special tokens and markers, the rest symbols."""
    tokenizer: str = ""
    """Path of tokenizer.json."""
    train: list[BlendSource] = field(default_factory=list)
    """Training data, blended by weight."""
    valid: list[BlendSource] = field(default_factory=list)
    """Held-out data; empty switches evaluation off."""
    segment_size: int = 512
    """C, tokens of a segment, [CLS] and [SEP] included."""
    mlm_probability: float = 0.15
    """Share of a segment's content tokens that is masked, rounded to k positions."""
    mean_span_length: float = 1.0
    """Mean length of masked spans in tokens (geometric); 1 masks single tokens."""
    seed: int = 1234
    """Seed of sample order, window phase, masks and numbers of segments."""
    num_workers: int = 0
    """Loader processes a rank; 0 loads in the training process."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the work is split. What the world size leaves over is data parallelism."""

    tensor_model_parallel_size: int = 1
    """TP, ranks that share each layer."""
    pipeline_model_parallel_size: int = 1
    """PP, stages that share the layers."""
    context_parallel_size: int = 1
    """CP, ranks that share the positions of every sequence, memory tokens included."""
    sequence_parallel: bool = False
    """Split norms and residuals along the sequence over the TP ranks."""
    use_distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass runs."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the forward pass runs (distributed optimizer only)."""
    tp_comm_overlap: bool = False
    """Hide TP's collectives behind matrix products (Transformer Engine's user buffers); with
    `sequence_parallel` only."""
    platform: str = "auto"
    """`cpu` (gloo), `cuda` (NCCL) or `auto` (cuda where there is one)."""
    timeout_minutes: float = 30.0
    """A process that makes no progress for longer says where it is, and ends the run."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    train_iters: int = 1000
    """Optimizer steps."""
    micro_batch_size: int = 4
    """Samples a rank computes at once."""
    global_batch_size: int = 32
    """Samples of one optimizer step, over all ranks and accumulation steps."""
    seed: int = 1234
    """Seed of the initial weights and memory noise, the same at every parallel layout."""
    output_dir: str = "runs/default"
    """Where everything the run makes goes."""
    precision: str = "bf16"
    """`bf16` (fp32 main weights and gradient sums) or `fp32`."""
    eval_interval: int = 200
    """Evaluate every so many iterations, and at the end; 0 only at the end."""
    eval_iters: int = 10
    """Global batches of an evaluation, the same ones each time."""
    recompute_granularity: str | None = None
    """None, `selective` (attention core) or `full` (whole layers) activation recomputation."""
    loss_spike_factor: float = 0.0
    """Skip a step whose loss is above so many times its running mean; 0 takes any finite loss."""
    max_skipped_steps: int = 10
    """Skip so many steps in a row with a spike, NaN or infinity; one more ends the run."""


@dataclass(frozen=True)
class Fp8Config:
    """Matrix products of the layers in FP8 (Transformer Engine, on CUDA); see docs/fp8.md."""

    recipe: str = "none"
    """`none`, or where scales come from: `tensorwise` (one a tensor, from the tensor itself),
    `blockwise` (one a block of 128) or `delayed` (one a tensor, from the steps before)."""
    format: str = "hybrid"
    """`hybrid` (E4M3, gradients E5M2) or `e4m3` (both)."""
    param_gather: bool = False
    """Keep the layers' weights in FP8 and gather them so; the optimizer keeps its fp32 ones."""
    first_last_layers_bf16: bool = False
    """Keep the first and last layers in BF16, and the others in FP8."""
    num_layers_at_start_in_bf16: int = 1
    """How many at the start, with `first_last_layers_bf16`."""
    num_layers_at_end_in_bf16: int = 1
    """How many at the end, with `first_last_layers_bf16`."""
    amax_history_len: int = 1024
    """Forward passes whose largest values `delayed` takes the scale from."""

    @property
    def is_on(self) -> bool:
        """Whether layers compute in FP8."""
        return self.recipe != "none"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and gradient clipping."""

    lr: float = 5e-4
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; norms and biases have none."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.98
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 never clips."""


@dataclass(frozen=True)
class SchedulerConfig:
    """Learning rate over iterations."""

    lr_decay_style: str = "cosine"
    """`constant`, `linear`, `cosine` or `WSD` (warm-up, stable, decay)."""
    lr_warmup_iters: int = 0
    """Linear warm-up from zero."""
    lr_decay_iters: int | None = None
    """Iteration at which the decay ends; None is train_iters."""
    lr_wsd_decay_iters: int | None = None
    """WSD only: length of the final decay; None is a tenth of lr_decay_iters."""
    min_lr: float = 0.0
    """Learning rate at and after the end of the decay."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving and resuming."""

    save_interval: int = 500
    """Save every so many iterations, and at the end; 0 only at the end."""
    keep_last: int = 3
    """Newest complete checkpoints to keep; 0 keeps all."""
    keep_every: int = 0
    """Keep those too whose iteration is a multiple of this; 0 keeps no more than `keep_last`."""
    async_save: bool = True
    """Train on while a copy of the tensors (in host memory) is written."""
    load: str | None = None
    """Start from the weights of this checkpoint (or newest of this run); memory may be new."""
    load_optimizer: bool = False
    """Take over the optimizer's state from `load` too, else it starts afresh."""


@dataclass(frozen=True)
class LoggingConfig:
    """What is reported."""

    log_interval: int = 10
    """Iterations between two lines of metrics."""
    level: str = "INFO"
    """Level of the `megatron_dna` logger."""
    wandb_project: str | None = None
    """Weights & Biases project; None switches it off (extra `wandb`)."""


@dataclass(frozen=True)
class Config:
    """All options of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    fp8: Fp8Config = field(default_factory=Fp8Config)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def seq_length(self) -> int:
        """Length of one model input in tokens: M memory tokens, then the segment."""
        return self.memory.num_mem_tokens + self.data.segment_size

    @property
    def context_length(self) -> int:
        """Positions of a model input that a rank computes: its part under context parallelism."""
        return self.seq_length // self.parallel.context_parallel_size

    @property
    def residual_length(self) -> int:
        """Positions that a rank has between layers: split over TP too, under SP."""
        parallel = self.parallel
        sharded = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
        return self.context_length // sharded

    @property
    def layer_precision(self) -> str:
        """What layers compute in, for the log."""
        fp8 = self.fp8
        if not fp8.is_on:
            return self.train.precision
        line = f"FP8 ({fp8.recipe}, {fp8.format})"
        if fp8.first_last_layers_bf16:
            start, end = fp8.num_layers_at_start_in_bf16, fp8.num_layers_at_end_in_bf16
            line += f", the first {start} and last {end} in bf16"
        return line + (", weights kept in FP8" if fp8.param_gather else "")

    @property
    def num_masked_tokens(self) -> int:
        """k, masked positions of a segment; [CLS] and [SEP] are never among them."""
        if self.data.kind == "recall":
            return RECALL_BARCODE_LENGTH
        return max(1, round(self.data.mlm_probability * (self.data.segment_size - 2)))

    @property
    def num_head_positions(self) -> int:
        """Masked positions of a segment at which a rank runs the head: CP ranks share the k."""
        return -(-self.num_masked_tokens // self.parallel.context_parallel_size)


def load_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), base: Config | None = None
) -> Config:
    """Merge defaults (or `base`), a YAML recipe and `section.key=value` overrides, in that order.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type, or malformed override.
    """
    merged = OmegaConf.structured(Config if base is None else base)
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"--config ({path}) is not a file; pass the path of a YAML recipe")
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise ConfigError(
                f"override ({override}) must have the form section.key=value; {_OPTIONS}"
            )
    try:
        if path is not None:
            merged = OmegaConf.merge(merged, OmegaConf.load(path))
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{error.full_key or 'config'}: {reason} (in {path or overrides}); {_OPTIONS}"
        ) from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(
            f"--config ({path}) is not YAML of sections: {error}; {_OPTIONS}"
        ) from error
    assert isinstance(config, Config)
    return config


def to_yaml(config: Config) -> str:
    """The resolved options as YAML text that `load_config` reads back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
