"""Which trainings are measured, and with what options: a pure function of the device's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_dna.config import Config, load_config
from megatron_dna.parallel.schedule import SegmentSchedule
from megatron_dna.planning.gpus import GPUS, Gpu
from megatron_dna.planning.memory import stage_memory
from megatron_dna.training.flops import find_module, segment_flops

ROOT = Path(__file__).resolve().parents[2]
LARGEST = "largest"
"""Name of the model with the layers of examples/7b and as many of them as fit."""
USABLE = 0.85
"""Share of the memory that a plan may fill; the rest is for CUDA and workspaces."""
POSITIONS = {"large": 65536, "1b": 32768, "3b": 16384, LARGEST: 8192}
"""Input positions of a step, memory tokens included, by model."""
DEFAULT_POSITIONS = 2048
MAX_MICRO_BATCH = 32


@dataclass(frozen=True)
class Case:
    """One training to measure."""

    model: str
    """A recipe of examples/, or `largest`."""
    kind: str
    """`plain`, `rmt`, or a peer: `transformers-sdpa`, `transformers-flash_attention_2`."""
    recipe: str = "none"
    """FP8 recipe; `none` is BF16."""

    @property
    def name(self) -> str:
        """Of its files."""
        precision = "bf16" if self.recipe == "none" else f"fp8-{self.recipe}"
        return f"{self.model}-{self.kind}-{precision}"

    @property
    def is_peer(self) -> bool:
        """Whether `transformers` trains."""
        return self.kind.startswith("transformers")

    @property
    def attention(self) -> str:
        """A peer's implementation of attention."""
        return self.kind.partition("-")[2]


def all_cases(models: Sequence[str], recipes: Sequence[str], peers: Sequence[str]) -> list[Case]:
    """What is measured, the most telling first.

    Args:
        models: by size, the smallest first.
        recipes: of FP8.
        peers: attention implementations of `transformers`.
    """
    by_rank: list[Case] = []
    middle = sorted(models, key=lambda model: (model not in ("1b", "3b"), model == LARGEST))
    others = [peer for peer in peers if peer != "sdpa"]
    for kinds in _ranked(recipes[:1], peers[:1]):
        by_rank += [Case(model, *kind) for model in middle for kind in kinds]
    for kinds in _ranked(recipes[1:], others):
        by_rank += [Case(model, *kind) for model in middle for kind in kinds]
    no_peer = {Case(LARGEST, f"transformers-{peer}") for peer in peers}  # its memory is not planned
    return [case for case in dict.fromkeys(by_rank) if case not in no_peer]


def _ranked(recipes: Sequence[str], peers: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """(kind, recipe) in groups; within a group all models are measured before the next group."""
    yield [("plain", "none"), *((f"transformers-{peer}", "none") for peer in peers)]
    yield [("plain", recipe) for recipe in recipes]
    yield [("rmt", "none")]
    yield [("rmt", recipe) for recipe in recipes]


@dataclass(frozen=True)
class Plan:
    """A case with its options."""

    case: Case
    overrides: tuple[str, ...]
    """Of the recipe that `config` begins with."""
    recipe: str
    """Path of the YAML file."""

    @property
    def config(self) -> Config:
        """All options."""
        return load_config(self.recipe, list(self.overrides))


def plan_case(
    case: Case,
    memory_bytes: float,
    options: Sequence[str],
    vocab_size: int,
    positions: int | None = None,
    recompute: bool | None = None,
) -> Plan:
    """Choose layers (of `largest`), micro-batch and recomputation such that the plan fits.

    The shape is that which fits in FP8, whose copies of weights need room, in BF16 too. Plain and
    with memory a step reads the same number of input positions. Windows with memory are
    in flight all at once; plain micro-batches as large as fit, a power of two.

    Args:
        case: what to plan.
        memory_bytes: of the device.
        options: further options (data, platform, layer spec).
        vocab_size: ids of the tokenizer.
        positions: of a step; None is the model's own number.
        recompute: whether layers are computed again; None is where it must be.
    """
    positions = positions or POSITIONS.get(case.model, DEFAULT_POSITIONS)
    recipe = _recipe_of(case)
    shape = [*options, *_ONE_DEVICE, f"fp8.recipe={case.recipe}"]
    usable = USABLE * memory_bytes
    if case.model == LARGEST:
        with_memory = _recipe_of(Case(LARGEST, "rmt"))
        counts = range(load_config(recipe).model.num_layers // 3 * 3, 0, -3)  # a global, two local
        for count in counts:
            layers = f"model.num_layers={count}"
            tries = _tries(with_memory, [*shape, layers], positions, True)
            if any(_bytes(with_memory, chosen, vocab_size) <= usable for chosen in tries):
                break
        shape.append(layers)
    for chosen in _tries(recipe, shape, positions, recompute):
        if _bytes(recipe, chosen, vocab_size) <= usable:
            break
    return Plan(case, tuple(chosen), recipe)  # if none fits, the run itself says so


def _recipe_of(case: Case) -> str:
    """Path of the YAML file that a case begins with."""
    stem = "7b" if case.model == LARGEST else case.model
    return str(ROOT / "examples" / f"{stem}{'_rmt' if case.kind == 'rmt' else ''}.yaml")


def _tries(
    recipe: str, shape: Sequence[str], positions: int, recompute: bool | None
) -> Iterator[list[str]]:
    """Options to try, the fastest first: without recomputation, and in large micro-batches."""
    for again in (False, True) if recompute is None else (recompute,):
        granularity = f"train.recompute_granularity={'full' if again else 'null'}"
        for micro, whole in _batch_sizes(load_config(recipe, shape), positions):
            yield [
                *shape, granularity, f"train.micro_batch_size={micro}",
                f"train.global_batch_size={whole}",
            ]  # fmt: skip


_ONE_DEVICE = (
    "parallel.tensor_model_parallel_size=1",
    "parallel.pipeline_model_parallel_size=1",
    "parallel.sequence_parallel=false",
    # Nothing is sent between ranks that could be overlapped.
    "parallel.overlap_grad_reduce=false",
    "parallel.overlap_param_gather=false",
    "memory.curriculum=[]",
    "checkpoint.save_interval=0",
    "logging.log_interval=1",
)


def _batch_sizes(config: Config, positions: int) -> Iterator[tuple[int, int]]:
    """Micro-batch and global batch in windows, the largest first."""
    windows = max(1, positions // (config.seq_length * config.memory.max_n_segments))
    if config.memory.max_n_segments > 1:
        yield windows, windows
        return
    size = MAX_MICRO_BATCH
    while size >= 1:
        if windows % size == 0:
            yield size, windows
        size //= 2


def _bytes(recipe: str, options: Sequence[str], vocab_size: int) -> float:
    """What the planner says that these options need, in FP8 (with its copies of weights)."""
    config = load_config(recipe, [*options, "fp8.recipe=tensorwise"])
    train, memory = config.train, config.memory
    count = train.global_batch_size // train.micro_batch_size
    schedule = SegmentSchedule(memory.max_n_segments, memory.bptt_depth, count)
    return stage_memory(config, vocab_size, 0, 1, schedule).total


def step_flops(config: Config, vocab_size: int) -> float:
    """Model FLOPs of a training step: forward, and backward at twice that; nothing recomputed."""
    segments = config.train.global_batch_size * config.memory.max_n_segments
    return 3 * segment_flops(config, vocab_size) * segments


def positions_of(config: Config) -> int:
    """Input positions of a step, memory tokens included."""
    return config.train.global_batch_size * config.memory.max_n_segments * config.seq_length


def find_gpu_of(device_name: str) -> Gpu | None:
    """The planner's entry for a device; None where its peak is not known."""
    return GPUS.get((find_module(device_name) or "").lower())
