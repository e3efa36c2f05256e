"""Bad configurations through the real entry: refused before any process group exists."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch.distributed as dist

import pretrain_dna_bert


class Bad(NamedTuple):
    """Options over those that run, with `&` between them, and what the error must say."""

    overrides: str
    key: str
    value: str
    rule: str
    fix: str


FP8 = "fp8.recipe=tensorwise & model.hidden_size=64 & model.ffn_hidden_size=128"
SP = "parallel.tensor_model_parallel_size=2 & parallel.sequence_parallel=true"
OVERLAP = SP + " & parallel.tp_comm_overlap=true"
MEMORY = "memory.num_mem_tokens=4 & memory.max_n_segments=4"
BAD = [
    Bad("model.num_layer=3", "model.num_layer", "num_layer", "not in", "docs/configuration.md"),
    Bad("model.num_layers=few", "model.num_layers", "few", "Integer", "docs/configuration.md"),
    Bad("model.num_layers=0", "model.num_layers", "0", "must be positive", "above 0"),
    Bad("model.num_attention_heads=3", "model.num_attention_heads", "3",
        "must divide model.hidden_size (64)", "model.hidden_size that fits is 66"),
    Bad("model.local_attention=7", "model.local_attention", "7", "must be even", "fits is 8"),
    Bad("model.layer_spec=locl", "model.layer_spec", "locl", "must be one of", "mean local?"),
    Bad("memory.num_mem_tokens=-1", "memory.num_mem_tokens", "-1", "negative", "0 or more"),
    Bad("memory.bptt_depth=9 & " + MEMORY, "memory.bptt_depth", "9", "max_n_segments (4)", "to -1"),
    Bad("memory.update=gate", "memory.update", "gate", "plain, binary", "default is plain"),
    Bad("memory.noise_std=0.5", "memory.noise_std", "0.5", "needs memory.num_mem", "to 0"),
    Bad("memory.curriculum=[{n_segments: 5}] & " + MEMORY, "memory.curriculum[0].n_segments", "5",
        "max_n_segments (4)", "raise memory.max_n_segments"),
    Bad("data.kind=proteins", "data.kind", "proteins", "genome, recall", "default is genome"),
    Bad("data.kind=genome & data.tokenizer=no.json", "data.tokenizer", "no.json", "is not a file",
        "tools/train_tokenizer.py"),
    Bad("data.segment_size=9", "data.segment_size", "9", "at least 12", "set it to 12"),
    Bad("data.mlm_probability=1.5", "data.mlm_probability", "1.5", "between 0 and 1", "0.15"),
    Bad("data.num_workers=-2", "data.num_workers", "-2", "negative", "0 or more"),
    Bad("parallel.pipeline_model_parallel_size=3", "parallel.pipeline_model_parallel_size", "3",
        "must divide model.num_layers (2)", "2 does"),
    Bad("parallel.tensor_model_parallel_size=2", "parallel.tensor_model_parallel_size", "2",
        "number of processes (1)", "--nproc_per_node"),
    Bad("parallel.context_parallel_size=0", "parallel.context_parallel_size", "0", "positive",
        "above 0"),
    Bad("parallel.context_parallel_size=3", "parallel.context_parallel_size", "3",
        "must divide memory.num_mem_tokens + data.segment_size (64)", "fits is 66"),
    Bad("parallel.context_parallel_size=2", "parallel.context_parallel_size", "2",
        "number of processes (1)", "multiple of 2 processes"),
    Bad("parallel.tensor_model_parallel_size=2 & parallel.sequence_parallel=true & "
        "parallel.context_parallel_size=2 & memory.num_mem_tokens=2",
        "parallel.context_parallel_size x parallel.tensor_model_parallel_size", "4",
        "(66) under parallel.sequence_parallel", "data.segment_size that fits is 66"),
    Bad("parallel.sequence_parallel=true", "parallel.sequence_parallel", "true",
        "needs parallel.tensor_model_parallel_size > 1", "to false"),
    Bad("parallel.overlap_param_gather=true", "parallel.overlap_param_gather", "true",
        "needs parallel.use_distributed_optimizer", "set both"),
    Bad("parallel.tp_comm_overlap=true", "parallel.tp_comm_overlap", "true",
        "needs parallel.sequence_parallel", "set that to true"),
    Bad(SP + " & data.segment_size=63", "parallel.tensor_model_parallel_size", "2",
        "memory.num_mem_tokens + data.segment_size (63)", "data.segment_size that fits is 64"),
    Bad(OVERLAP, "parallel.tp_comm_overlap", "true", "needs CUDA", "parallel.platform to cuda"),
    Bad(OVERLAP + " & model.layer_spec=local", "parallel.tp_comm_overlap", "true",
        "needs Transformer Engine's layers", "set model.layer_spec to transformer_engine"),
    Bad(OVERLAP + " & parallel.platform=auto & train.precision=fp32", "parallel.tp_comm_overlap",
        "true", "needs train.precision bf16, which is fp32", "set train.precision to bf16"),
    Bad("parallel.platform=tpu", "parallel.platform", "tpu", "auto, cpu, cuda", "mean cpu?"),
    Bad("train.global_batch_size=30", "train.global_batch_size", "30", "micro_batch_size", "is 32"),
    Bad("train.precision=fp16", "train.precision", "fp16", "bf16, fp32", "did you mean"),
    Bad("train.recompute_granularity=ful", "train.recompute_granularity", "ful",
        "null, selective, full", "did you mean full?"),
    Bad("train.loss_spike_factor=0.5", "train.loss_spike_factor", "0.5", "above 1", "2 skips"),
    Bad("optimizer.lr=0", "optimizer.lr", "0.0", "positive", "above 0"),
    Bad("optimizer.adam_beta2=1", "optimizer.adam_beta2", "1.0", "below 1", "default is 0.98"),
    Bad("optimizer.clip_grad=-1", "optimizer.clip_grad", "-1.0", "negative", "0 or more"),
    Bad("scheduler.lr_decay_style=cosin", "scheduler.lr_decay_style", "cosin",
        "constant, linear, cosine, WSD", "did you mean cosine?"),
    Bad("scheduler.lr_warmup_iters=1000", "scheduler.lr_warmup_iters", "1000",
        "below the end of the decay (1000)", "shorten it"),
    Bad("scheduler.min_lr=1", "scheduler.min_lr", "1.0", "optimizer.lr (0.0005)", "a tenth"),
    Bad("checkpoint.load=nowhere", "checkpoint.load", "nowhere", "is not a folder", "iter_..."),
    Bad("checkpoint.keep_last=-1", "checkpoint.keep_last", "-1", "negative", "0 or more"),
    Bad("logging.level=LOUD", "logging.level", "LOUD", "one of DEBUG", "default is INFO"),
    Bad("fp8.recipe=mxfp8", "fp8.recipe", "mxfp8", "none, tensorwise", "choose one"),
    Bad("fp8.format=e5m2", "fp8.format", "e5m2", "hybrid, e4m3", "default is hybrid"),
    Bad(FP8 + " & train.precision=fp32 & parallel.platform=auto", "fp8.recipe", "tensorwise",
        "needs train.precision bf16", "set train.precision to bf16"),
    Bad(FP8, "fp8.recipe", "tensorwise", "parallel.platform is cpu", "parallel.platform to cuda"),
    Bad("fp8.param_gather=true", "fp8.param_gather", "true", "needs fp8.recipe", "to tensorwise"),
    Bad(FP8 + " & parallel.platform=auto & data.segment_size=62", "data.segment_size", "62",
        "train.micro_batch_size (248) a multiple of 16", "fits is 64 (or a train.micro_batch_size"),
    Bad(FP8 + " & parallel.platform=auto & parallel.context_parallel_size=2 & data.segment_size=44",
        "data.segment_size", "44", "/ parallel.context_parallel_size (88) a multiple of 16",
        "fits is 48 (or a train.micro_batch_size"),
]  # fmt: skip


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A configuration that runs, and writes to a folder that does not exist."""
    return [
        "model.num_layers=2", "model.hidden_size=64", "model.ffn_hidden_size=96",
        "model.num_attention_heads=2", "data.kind=recall", "data.segment_size=64",
        "parallel.platform=cpu", f"train.output_dir={tmp_path / 'run'}",
    ]  # fmt: skip


class _ProcessGroup(Exception):
    """A process group was asked for."""


@pytest.fixture(autouse=True)
def _no_process_group(monkeypatch: pytest.MonkeyPatch):
    def ask(*args: object, **kwargs: object) -> None:
        raise _ProcessGroup

    monkeypatch.setattr(dist, "init_process_group", ask)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.overrides)
def test_bad_configuration_is_refused_with_key_value_rule_and_fix(
    bad: Bad, options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """If it fails, a mistake costs a queued job its nodes, or its message cannot be acted on."""
    assert pretrain_dna_bert.main([*options, *bad.overrides.split(" & ")]) == 2
    message = capfd.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1, "one line"
    what, _, fix = message.partition(";")
    for word in (bad.key, bad.value, bad.rule):
        assert word in what
    assert bad.fix in fix
    assert not dist.is_initialized()
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_under_them_starts(options: list[str]):
    """Without the mistake the same options get as far as the process group."""
    with pytest.raises(_ProcessGroup):
        pretrain_dna_bert.main(options)
