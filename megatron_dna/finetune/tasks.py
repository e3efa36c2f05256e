"""A task: what to predict from DNA, from which files, how to split them and how to train.

`load_task` merges the defaults below, a task's YAML and `section.key=value` overrides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

KINDS = ("classification", "regression", "multi_label", "token")

METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("mcc", "accuracy", "f1", "auroc", "auprc"),
    "regression": ("pearson", "spearman", "r2"),
    "multi_label": ("auroc", "auprc", "f1"),
    "token": ("mcc", "accuracy", "f1", "auroc", "auprc"),
}
"""What is measured of each kind, the higher the better; the first is a task's default."""

TABLES = ("table", "gue", "nt", "gena")
GENOMIC = ("intervals", "splice_sites", "exons", "shuffled", "density")
FORMATS = (*TABLES, *GENOMIC)

_KINDS_OF_FORMAT = {
    "intervals": ("classification",),
    "splice_sites": ("classification",),
    "exons": ("token",),
    "shuffled": ("classification",),
    "density": ("regression",),
}
_NEEDS_ANNOTATION = ("intervals", "splice_sites", "exons", "density")


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from."""

    format: str = MISSING
    """Files of sequences with labels: `table` (one CSV or TSV file), `gue` (folder of train.csv,
    dev.csv, test.csv), `nt` (folder of train.fna, test.fna with >name|label), `gena` (folder of
    fold_1.csv ... or of train, valid and test). Cut from a FASTA file: `intervals` (BED regions
    against others of the same GC), `splice_sites` (donor, acceptor, neither), `exons` (tokens
    inside exons), `shuffled` (real against dinucleotide-shuffled), `density` (records a window)."""
    path: str | None = None
    """The file or folder of sequences with labels."""
    sequence_column: str = "sequence"
    """Column of the sequences in a table."""
    label_columns: list[str] | None = None
    """Columns of the labels; default: `label`, for `gena` all but the sequence's. Token labels are
    one digit a base."""
    fasta: str | None = None
    """The genome, plain, gzipped or bgzipped."""
    annotation: str | None = None
    """`intervals`: BED or a table with chrom, start, end; `splice_sites`, `exons`: a table of
    transcripts; `density`: VCF or BED. Contigs may be named with or without `chr`."""
    window: int = 512
    """Bases of an example that is cut from a genome."""
    negatives_per_positive: float = 1.0
    """Of `intervals` and `splice_sites`."""
    max_examples: int | None = None
    """Take so many at random; default all."""
    crop_bases: int | None = None
    """Keep so many bases in the middle of longer sequences, for the model and the baselines."""


@dataclass(frozen=True)
class SplitConfig:
    """How examples are parted into train, valid and test: those of a genome by position, in
    contiguous blocks; those of a `table` at random, but sequences that overlap (on either strand)
    stay together; those of `gue`, `nt` and `gena` as the files say."""

    num_folds: int = 5
    """Each fold is the test part once, and the next one the valid part. For files that are split
    already, and have no folds: runs with other seeds."""
    gap_bases: int = 0
    """Split by position: least distance of a training example to a test or valid one."""
    min_overlap: int = 20
    """Split by overlap: bases that the end of one sequence and the start of another share."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is fine-tuned; the best epoch on the valid part is kept."""

    epochs: int = 5
    """Passes over the training part."""
    batch_size: int = 32
    """Sequences a step."""
    learning_rate: float = 1e-4
    """Highest, after the warm-up; it falls linearly to 0."""
    warmup_fraction: float = 0.1
    """Steps of the warm-up, as a share of all."""
    weight_decay: float = 0.01
    """Of AdamW."""
    pooling: str = "mean"
    """What a sequence is predicted from: `mean` of its tokens' states, or `cls`."""
    lora_rank: int = 0
    """0 trains all weights; above 0, adapters of this rank (and the head) are trained."""
    lora_alpha: int = 16
    """Adapters are scaled by lora_alpha / lora_rank."""


@dataclass(frozen=True)
class ProbeConfig:
    """Linear models: on embeddings, and the baselines."""

    kmers: list[int] = field(default_factory=lambda: [3, 4, 5])
    """Lengths of k-mers to try."""
    strengths: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0])
    """C of the logistic regression (1 / alpha of ridge regression) to try; as for k, the best on
    the valid part is taken."""
    context: int = 64
    """Bases around a token that the baselines of a token task see."""
    max_tokens: int = 20000
    """Tokens, of all parts, that linear models of a token task are fitted to and scored on."""


@dataclass(frozen=True)
class Task:
    """Everything about a task."""

    name: str = MISSING
    """Of folders and table rows."""
    kind: str = MISSING
    """`classification`, `regression`, `multi_label` or `token` (a class for each token)."""
    description: str = ""
    """A sentence for the report."""
    metric: str | None = None
    """What decides; default: mcc, pearson, auroc, mcc."""
    data_root: str = MISSING
    """What ${data_root} stands for in paths: `--data-root`."""
    seed: int = 0
    """Of every random choice."""
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    @property
    def main_metric(self) -> str:
        """The metric that decides."""
        return self.metric or METRICS[self.kind][0]

    @property
    def split_by(self) -> str:
        """`position`, `overlap` or `given`."""
        if self.data.format in GENOMIC:
            return "position"
        return "overlap" if self.data.format == "table" else "given"

    def to_dict(self) -> dict[str, Any]:
        """All options, for reports and to tell runs apart; of files their names alone."""
        options = asdict(self)
        del options["data_root"]
        for key in ("path", "fasta", "annotation"):
            if options["data"][key] is not None:
                options["data"][key] = Path(options["data"][key]).name
        return options


def load_task(path: Path, overrides: Sequence[str] = (), data_root: Path | None = None) -> Task:
    """Read and check a task.

    Args:
        path: the YAML.
        overrides: `section.key=value`, the last word.
        data_root: replaces ${data_root}.

    Raises:
        ValueError: unreadable file, unknown key, wrong type or value, a file that is not there.
    """
    if not path.is_file():
        raise ValueError(f"--task ({path}) is not a file; pass the path of a task's YAML")
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise ValueError(f"override ({override}) must have the form section.key=value")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Task),
            OmegaConf.load(path),
            OmegaConf.from_dotlist(list(overrides)),
            {} if data_root is None else {"data_root": str(data_root)},
        )
        if data_root is None and "${data_root}" not in path.read_text(encoding="utf-8"):
            merged = OmegaConf.merge(merged, {"data_root": ""})
        task = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key, reason = str(error.full_key or "task"), str(error).splitlines()[0]
        if isinstance(error, MissingMandatoryValue):
            reason = "is not given; every task needs it"
            if key == "data_root":
                reason = "${data_root} stands for --data-root, the folder of the data: pass it"
        raise ValueError(f"{path}: {key}: {reason}") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not YAML of a task: {reason}") from error
    assert isinstance(task, Task)
    _validate(path, task)
    return task


def _validate(path: Path, task: Task) -> None:
    """Rules that types cannot state."""

    def require(rule: bool, key: str, value: object, text: str) -> None:
        if not rule:
            raise ValueError(f"{path}: {key} ({value}) {text}")

    def one_of(key: str, value: object, choices: Sequence[object]) -> None:
        require(value in choices, key, value, f"must be one of {', '.join(map(str, choices))}")

    data, split, training, probe = task.data, task.split, task.training, task.probe
    name_is_plain = task.name.replace("_", "").replace("-", "").isalnum()
    require(name_is_plain, "name", task.name, "must be letters, digits, - and _: it names a folder")
    one_of("kind", task.kind, KINDS)
    one_of("data.format", data.format, FORMATS)
    one_of("metric", task.main_metric, METRICS[task.kind])
    kinds = _KINDS_OF_FORMAT.get(data.format, KINDS)
    require(
        task.kind in kinds, "kind", task.kind, f"must be {kinds[0]} for data.format {data.format}"
    )
    _validate_files(path, data)
    is_genomic = data.format in GENOMIC
    require(split.num_folds >= (1 if task.split_by == "given" else 3), "split.num_folds",
            split.num_folds, "must be at least 3: train, valid and test")  # fmt: skip
    require(split.gap_bases >= 0, "split.gap_bases", split.gap_bases, "must not be negative")
    require(split.min_overlap >= 8, "split.min_overlap", split.min_overlap, "must be at least 8")
    for key, value in (
        ("data.window", data.window), ("data.max_examples", data.max_examples),
        ("data.crop_bases", data.crop_bases), ("training.epochs", training.epochs),
        ("training.batch_size", training.batch_size),
        ("data.negatives_per_positive", data.negatives_per_positive),
        ("training.learning_rate", training.learning_rate),
        ("training.lora_alpha", training.lora_alpha), ("probe.context", probe.context),
        ("probe.max_tokens", probe.max_tokens),
    ):  # fmt: skip
        require(value is None or value > 0, key, value, "must be positive")
    require(data.window % 2 == 0 or not is_genomic, "data.window", data.window, "must be even")
    require(
        data.crop_bases is None or task.kind != "token", "data.crop_bases", data.crop_bases,
        "is for labels of whole sequences",
    )  # fmt: skip
    require(0 <= training.warmup_fraction < 1, "training.warmup_fraction",
            training.warmup_fraction, "must be at least 0 and below 1")  # fmt: skip
    one_of("training.pooling", training.pooling, ("mean", "cls"))
    require(training.lora_rank >= 0, "training.lora_rank", training.lora_rank, "must not be < 0")
    require(bool(probe.kmers) and all(1 <= k <= 8 for k in probe.kmers), "probe.kmers",
            probe.kmers, "must be numbers from 1 to 8")  # fmt: skip
    require(bool(probe.strengths) and all(c > 0 for c in probe.strengths), "probe.strengths",
            probe.strengths, "must be positive numbers")  # fmt: skip


def _validate_files(path: Path, data: DataConfig) -> None:
    needed: list[tuple[str, str | None]] = [("path", data.path)]
    if data.format in GENOMIC:
        needed = [("fasta", data.fasta)]
        if data.format in _NEEDS_ANNOTATION:
            needed.append(("annotation", data.annotation))
    for key, value in needed:
        if value is None:
            raise ValueError(f"{path}: data.{key} is not given; data.format {data.format} needs it")
        is_folder = data.format in ("gue", "nt", "gena")
        if not (Path(value).is_dir() if is_folder else Path(value).is_file()):
            what = "folder" if is_folder else "file"
            raise ValueError(
                f"{path}: data.{key} ({value}) is not a {what}; give its path, from the folder "
                "that the command is run in"
            )
