"""What a plan says, held to what it follows from."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from megatron_dna.checkpoint.compatibility import check_loadable
from megatron_dna.config import ConfigError, load_config
from megatron_dna.parallel.schedule import SegmentSchedule
from megatron_dna.parallel.timeline import finish_times
from megatron_dna.planning.dry_run import DryRun
from megatron_dna.planning.gpus import GPUS, find_gpu
from megatron_dna.planning.links import Link
from megatron_dna.planning.plan import make_plan, other_recompute, schedule_times
from megatron_dna.planning.report import as_json, page, search_table
from megatron_dna.planning.search import search

ROOT = Path(__file__).resolve().parents[2]
VOCAB = 32000
H100 = GPUS["h100"]


def _tool(name: str):
    """A file of tools/, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _recipe(name: str, *overrides: str):
    return load_config(ROOT / "examples" / f"{name}.yaml", list(overrides))


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize(
    ("segments", "depth", "count"), [(1, -1, 8), (8, -1, 4), (8, -1, 1), (7, 3, 4), (6, 2, 2)]
)
def test_bubble_is_that_of_the_clock(stages, segments, depth, count):
    """A bubble of its own making would rank pipelines wrongly."""
    schedule = SegmentSchedule(segments, depth, count)
    work, scheduled = schedule_times(schedule, 2.0, stages)
    assert work == pytest.approx(2.0 * segments * count)
    assert scheduled == pytest.approx(max(finish_times(schedule, stages).values()))


def test_mfu_and_days_follow_from_the_step():
    plan = make_plan(_recipe("7b_rmt"), 256, H100, VOCAB, tokens=10**12)
    speed = 256 * 8 * 1006 / plan.step_s
    assert plan.tokens_per_s == pytest.approx(speed)
    assert plan.days == pytest.approx(1e12 / speed / 86400)
    assert plan.gpu_hours == pytest.approx(plan.days * 24 * 256)
    assert plan.mfu == pytest.approx(plan.flops_per_token * speed / (256 * 989.4e12))
    assert plan.step_s > plan.scheduled_s > plan.work_s
    # Six FLOPs a parameter and token but for attention, the embedding, and what is not masked.
    assert plan.flops_per_token == pytest.approx(6 * plan.parameters, rel=0.1)


def test_more_of_anything_costs_more():
    """Signs that no refactoring may turn round."""
    plan = make_plan(_recipe("7b_rmt"), 256, H100, VOCAB)
    full = other_recompute(plan)
    assert full.memory.total < plan.memory.total
    assert full.step_s > 1.2 * plan.step_s
    apart = make_plan(_recipe("7b_rmt", "parallel.sequence_parallel=false"), 256, H100, VOCAB)
    sent = [one.traffic["tensor"].bytes_sent for one in (plan, apart, full)]
    # Four gathers or scatters forward, six back; two all-reduces each way; four again.
    assert sent == pytest.approx([sent[0], 0.8 * sent[0], 1.4 * sent[0]])
    deaf = make_plan(_recipe("7b_rmt", "parallel.overlap_grad_reduce=false",
                             "parallel.overlap_param_gather=false"), 256, H100, VOCAB)  # fmt: skip
    for kind in ("gradients", "parameters"):
        assert deaf.traffic[kind].exposed_s == deaf.traffic[kind].total_s
        assert plan.traffic[kind].exposed_s < deaf.traffic[kind].exposed_s
        assert plan.traffic[kind].bytes_sent == deaf.traffic[kind].bytes_sent
    faster = make_plan(_recipe("7b_rmt"), 256, GPUS["b200"], VOCAB)
    assert faster.step_s < plan.step_s
    unshared = ["parallel.use_distributed_optimizer=false", "fp8.recipe=none",
                "parallel.overlap_param_gather=false"]  # fmt: skip
    assert not make_plan(_recipe("7b", *unshared), 256, H100, VOCAB).fits  # 14 bytes a parameter
    unsharded = make_plan(_recipe("7b_rmt", *unshared), 256, H100, VOCAB)
    assert unsharded.memory.optimizer == pytest.approx(32 * plan.memory.optimizer)
    assert unsharded.memory.total > plan.memory.total
    gathered, reduced = (one.traffic["gradients"].bytes_sent for one in (plan, unsharded))
    assert reduced == pytest.approx(2 * gathered)  # to all ranks, not to the one that updates
    assert unsharded.traffic["parameters"].bytes_sent == 0 < plan.traffic["parameters"].bytes_sent


def test_stages_wait_for_each_other_unless_segments_hide_it():
    """Megatron's 1F1B waits for what it is sent; segments only for the way to the last stage."""
    plain = make_plan(_recipe("7b", "parallel.pipeline_model_parallel_size=4"), 256, H100, VOCAB)
    rmt = make_plan(_recipe("7b_rmt"), 256, H100, VOCAB)
    assert plain.traffic["pipeline"].exposed_s == plain.traffic["pipeline"].total_s > 0
    assert 0 < rmt.traffic["pipeline"].exposed_s < rmt.traffic["pipeline"].total_s / 10
    for plan in (plain, rmt):
        config, tp = plan.config, plan.config.parallel.tensor_model_parallel_size
        tokens = config.seq_length / tp  # under sequence parallelism; memory goes whole
        tokens += config.memory.num_mem_tokens if plan is rmt else 0
        one = 2 * config.train.micro_batch_size * config.model.hidden_size * tokens
        sends = 2 * config.memory.max_n_segments * plan.num_microbatches
        assert plan.traffic["pipeline"].bytes_sent == pytest.approx(sends * one)


LONG = ["data.segment_size=32768", "train.micro_batch_size=1", "train.global_batch_size=32",
        "fp8.recipe=none"]  # fmt: skip
TP4, CP4 = "parallel.tensor_model_parallel_size=4", "parallel.context_parallel_size=4"
SELECTIVE = "train.recompute_granularity=selective"


def test_context_parallelism_shares_positions_and_pays_for_keys_and_values():
    """Activations that were not split, or gathers that cost nothing, would rank it wrongly."""
    one, four, again = (
        make_plan(_recipe("7b", *LONG, TP4, "model.global_attn_every_n_layers=1", *more),
                  128, H100, VOCAB)
        for more in ([], [CP4], [CP4, SELECTIVE])
    )  # fmt: skip
    assert (one.dp, four.dp) == (32, 8)
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(four.memory, part) == getattr(one.memory, part)
    assert again.memory.activations == pytest.approx(one.memory.activations / 4, rel=0.01)
    # Keys and values of all positions, 8 numbers a token instead of 4 (rotated or not) of its own.
    layer = 2 * 8192 * 4096 / 4
    kept = four.memory.activations - again.memory.activations
    assert kept == pytest.approx(48 * (8 - 4) * layer)
    # Gathered in the forward pass, gradients added up in the backward pass: of 3 in 4 ranks.
    whole = 2 * 4 * layer
    assert four.traffic["context"].bytes_sent == four.num_microbatches * 48 * 2 * 3 / 4 * whole
    assert again.traffic["context"].bytes_sent == 1.5 * four.traffic["context"].bytes_sent
    assert one.traffic["context"].bytes_sent == one.traffic["context"].total_s == 0
    assert four.traffic["context"].exposed_s == four.traffic["context"].total_s > 0
    assert again.work_s > four.work_s > one.work_s * four.num_microbatches / 4
    assert (four.flops_per_token, four.tokens_per_step) == (
        one.flops_per_token,
        one.tokens_per_step,
    )


def test_search_offers_context_parallelism():
    """Without it long sequences on many GPUs with a small batch are said not to fit."""
    config = _recipe("7b", *LONG, "train.global_batch_size=4")
    plans = search(config, 64, H100, VOCAB)
    sizes = {plan.config.parallel.context_parallel_size for plan in plans}
    assert sizes == {1, 2, 4, 8}
    chosen = next(plan for plan in plans if plan.config.parallel.context_parallel_size == 2)
    assert " x CP 2 x PP " in search_table([chosen])
    assert as_json(chosen)["context_parallel_size"] == 2
    kinds = {(plan.config.parallel.context_parallel_size > 1,
              plan.config.train.recompute_granularity) for plan in plans}  # fmt: skip
    assert (True, "selective") in kinds
    assert (False, "selective") not in kinds


def test_links_know_where_a_node_ends():
    inside, across = Link(H100, 8, 1), Link(H100, 16, 1)
    assert inside.inside_node
    assert not across.inside_node
    assert across.gather_s(1e9) > inside.gather_s(1e9)
    # One member in a node has one network card; eight members share eight.
    assert Link(H100, 8, 8).gather_s(1e9) > 5 * across.gather_s(1e9)
    assert inside.gather_s(8e9) == pytest.approx(7e9 / (0.8 * 450e9), rel=0.01)
    assert inside.all_reduce_s(1e9) == 2 * inside.gather_s(1e9)
    assert Link(H100, 1, 1).gather_s(1e9) == 0
    assert inside.send_s(1e9) == pytest.approx(1e9 / (0.8 * 450e9), rel=0.01)
    assert across.send_s(1e9) == pytest.approx(1e9 / (0.8 * 50e9), rel=0.01)


def test_search_ranks_layouts_that_fit_and_train_the_same():
    config = _recipe("7b_rmt")
    plans = search(config, 256, H100, VOCAB)
    assert all(plan.fits for plan in plans)
    speeds = [plan.tokens_per_s for plan in plans]
    assert speeds == sorted(speeds, reverse=True)
    assert len({plan.tokens_per_step for plan in plans}) == 1
    assert {plan.config.parallel.tensor_model_parallel_size for plan in plans} == {1, 2, 4, 8}
    assert len({plan.config.parallel.pipeline_model_parallel_size for plan in plans}) > 1
    assert len({plan.config.train.micro_batch_size for plan in plans}) > 1
    assert {plan.config.train.recompute_granularity for plan in plans} >= {None, "full"}
    own = make_plan(config, 256, H100, VOCAB)
    assert own.tokens_per_s in speeds


def test_search_says_that_nothing_fits():
    with pytest.raises(ConfigError, match=r"--num-gpus \(1\) x --gpu \(h100\) holds none of"):
        search(_recipe("7b_rmt"), 1, H100, VOCAB)


def test_bad_wishes_are_named():
    with pytest.raises(ConfigError, match=r"--gpu \(h800\) must be one of a100"):
        find_gpu("h800")
    with pytest.raises(ConfigError, match=r"must divide the number of processes \(250\)"):
        make_plan(_recipe("7b_rmt"), 250, H100, VOCAB)
    with pytest.raises(ConfigError, match=r"must divide the number of processes \(7\)"):
        search(_recipe("7b_rmt"), 7, H100, VOCAB)  # no layout does: its own says why
    with pytest.raises(ConfigError, match="pipeline_model_parallel_size"):
        make_plan(_recipe("7b", "parallel.pipeline_model_parallel_size=5"), 250, H100, VOCAB)


def test_page_says_what_it_is():
    plan = make_plan(_recipe("7b_rmt"), 256, H100, VOCAB)
    text = page(plan, other_recompute(plan))
    assert "no run on a GPU has been measured" in text
    assert "256 x h100: TP 2 + SP x PP 4 x DP 32" in text
    assert "fits: " in text
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) <= 100


def _main(monkeypatch, *arguments: str) -> int:
    tool = _tool("plan_run")
    monkeypatch.setattr(sys, "argv", ["plan_run.py", *arguments])
    return tool.main()


RUN = ["--config", str(ROOT / "examples/7b_rmt.yaml"), "--num-gpus", "256"]


def test_json_holds_the_plan(monkeypatch, capsys):
    """Without --vocab-size the tokenizer that is not there is named, on stderr."""
    assert _main(monkeypatch, *RUN, "--json") == 0
    printed = capsys.readouterr()
    numbers = json.loads(printed.out)
    assert numbers["parameters"] == make_plan(_recipe("7b_rmt"), 256, H100, VOCAB).parameters
    assert len(numbers["stages_bytes"]) == 4
    assert "data.tokenizer (data/tokenizer.json) is not there" in printed.err


def test_arguments_reach_the_plan(monkeypatch, capsys):
    """Tokens to train on, the search, and the rank of a dry run."""
    given = [*RUN, "--vocab-size", str(VOCAB)]
    assert _main(monkeypatch, *given, "--json", "--tokens", "1e12") == 0
    plan = make_plan(_recipe("7b_rmt"), 256, H100, VOCAB, tokens=10**12)
    assert json.loads(capsys.readouterr().out)["days"] == pytest.approx(plan.days)
    assert _main(monkeypatch, *given, "--json", "--search") == 0
    speeds = [one["tokens_per_s"] for one in json.loads(capsys.readouterr().out)]
    assert plan.tokens_per_s in speeds
    assert speeds == sorted(speeds, reverse=True)
    asked: list[int] = []

    def build(config, world_size: int, rank: int, vocab_size: int) -> DryRun:
        asked.append(rank)
        return DryRun(rank, world_size, 0, 0, 0, 0, 1, 1, 1, 1, 1)

    monkeypatch.setattr("megatron_dna.planning.dry_run.dry_run", build)
    assert _main(monkeypatch, *given, "--dry-run", "--rank", "7") == 0
    assert _main(monkeypatch, *given, "--dry-run") == 0
    assert asked == [7, 0, 255]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "h800"], "--gpu (h800) must be one of"),
        (["--num-gpus", "0"], "--num-gpus (0) must be at least 1"),
        (["--num-gpus", "12"], "must divide the number of processes (12)"),
        (["--tokens", "-5"], "--tokens (-5) must be at least 1"),
        (["--rank", "3"], "--rank (3) goes with --dry-run"),
        (["--dry-run", "--rank", "256"], "--rank (256) goes with --dry-run and lies below"),
        (["train.micro_batch_size=3"], "train.global_batch_size (256) must be a multiple of"),
        (["model.no_such=3"], "model.no_such"),
        (["--config", "missing.yaml"], "--config (missing.yaml) is not a file"),
    ],
)
def test_bad_arguments_are_one_line(monkeypatch, capsys, arguments, said):
    assert _main(monkeypatch, *RUN, "--vocab-size", "32000", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_table_in_docs_is_up_to_date():
    """Write it with `make docs`."""
    assert _tool("generate_plan_docs").render() in (ROOT / "docs/planning.md").read_text()


def test_recipes_fit_and_obey_the_rules_of_fp8():
    """Rows of a rank in multiples of 8, widths in multiples of 16: Transformer Engine's FP8."""
    tool = _tool("generate_plan_docs")
    assert {path.stem for path in tool.recipe_paths()} == {
        path.stem for path in (ROOT / "examples").glob("*.yaml")
    }
    for path in tool.recipe_paths():
        plan = tool.plan_recipe(path)
        config, tp = plan.config, plan.config.parallel.tensor_model_parallel_size
        assert plan.fits, path
        assert config.seq_length * config.train.micro_batch_size % (8 * tp) == 0, path
        for width in (config.model.hidden_size, config.model.ffn_hidden_size):
            assert width % (16 * tp) == 0, path
        if config.memory.curriculum:
            stages = config.memory.curriculum
            assert stages[-1].n_segments == config.memory.max_n_segments
            assert sum(stage.train_iters or 0 for stage in stages) < config.train.train_iters


@pytest.mark.parametrize("name", ["1b", "3b", "7b"])
def test_large_recipes_survive_faults_and_memory_starts_from_the_plain_model(name: str):
    """A rate for a trained model on a new one, or a divergence without a way back, costs days."""
    plain, memory = _recipe(name), _recipe(f"{name}_rmt")
    for config in (plain, memory):
        assert config.train.loss_spike_factor == 2
        assert config.checkpoint.keep_every % config.checkpoint.save_interval == 0
        assert 4 <= config.train.train_iters // config.checkpoint.keep_every <= 20
    assert memory.checkpoint.load == plain.train.output_dir
    check_loadable(Path("plain"), plain, memory)
    assert memory.memory.curriculum[0].train_iters < memory.train.train_iters / 20
    assert memory.optimizer.lr < plain.optimizer.lr


def test_recipes_for_gpus_are_started_by_the_launcher():
    """torchrun alone leaves CUDA_DEVICE_MAX_CONNECTIONS as it is: no overlap."""
    for path in _tool("generate_plan_docs").recipe_paths():
        text = path.read_text()
        if not path.stem.startswith("tiny"):
            assert "#   python tools/launch.py " in text
            assert "torchrun" not in text


@pytest.mark.parametrize("name", ["3b", "3b_rmt", "7b", "7b_rmt"])
def test_large_recipes_are_planned_in_fp8(name: str):
    """FP8 makes steps shorter, and costs memory: copies of weights, of all but two layers."""
    num_gpus = 64 if name.startswith("3b") else 256
    config = _recipe(name)
    assert config.layer_precision == "FP8 (tensorwise, hybrid), the first 1 and last 1 in bf16"
    plan = make_plan(config, num_gpus, H100, VOCAB)
    plain = make_plan(_recipe(name, "fp8.recipe=none"), num_gpus, H100, VOCAB)
    assert 1.0 < plain.work_s / plan.work_s < 1.57
    assert plan.mfu > plain.mfu
    layers = config.model.num_layers // config.parallel.pipeline_model_parallel_size
    tp = config.parallel.tensor_model_parallel_size
    width, ffn = config.model.hidden_size, config.model.ffn_hidden_size
    is_whole = config.parallel.pipeline_model_parallel_size == 1
    matrices = (layers - (2 if is_whole else 1)) * (4 * width**2 + 3 * width * ffn) / tp
    for memory, other in ((plan.stages[0], plain.stages[0]), (plan.stages[-1], plain.stages[-1])):
        assert memory.weights - other.weights == pytest.approx(2 * matrices)
        assert memory.activations < other.activations
    kept = make_plan(_recipe(name, "fp8.param_gather=true"), num_gpus, H100, VOCAB)
    assert kept.stages[0].weights == pytest.approx(plain.stages[0].weights)
    in_fp8, in_bf16, in_both = (one.traffic["parameters"].bytes_sent for one in (kept, plain, plan))
    assert in_both == in_bf16 > in_fp8 > in_bf16 / 2


def test_plan_of_fp8_is_refused_where_there_is_none():
    with pytest.raises(ConfigError, match=r"fp8.recipe \(tensorwise\) needs a GPU with FP8.*a100"):
        make_plan(_recipe("7b"), 256, GPUS["a100"], VOCAB)
