"""benchmarks/gpu: its arithmetic by hand, its choices, and a whole run of it on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.cases import (
    LARGEST,
    Case,
    all_cases,
    find_gpu_of,
    plan_case,
    positions_of,
    step_flops,
)
from benchmarks.gpu.report import add_rates, goals

ROOT = Path(__file__).parents[2]
H200 = 140.4 * 2**30
H100 = 79.2 * 2**30


def test_flops_and_mfu_by_hand():
    """A multiply-add is two, the backward pass twice the forward one, k positions for the head."""
    plan = plan_case(Case("1b", "plain"), H200, [], 32000)
    config = plan.config
    h, f, length = 2048, 3072, 1024
    layers, every_third = 28, 10
    weights = layers * (4 * h * h + 3 * h * f)
    keys = every_third * length + (layers - every_third) * (128 + 1)
    k = round(0.3 * (length - 2))
    head = k * (h * h + h * 32000)
    forward = 2 * (length * weights + length * 2 * h * keys + head)
    windows = 32
    assert positions_of(config) == windows * length == 32768
    assert step_flops(config, 32000) == 3 * windows * forward
    # About 6 N D: attention and the head's few positions are the rest.
    assert step_flops(config, 32000) == pytest.approx(6 * weights * 32768, rel=0.15)
    outcome = {"seconds": [0.5, 0.4, 9.0], "vocab_size": 32000,
               "tokens_a_step": 32 * 1022.0, "bases_a_step": 2e5}  # fmt: skip
    rates = add_rates(plan, outcome, "NVIDIA H200")
    assert rates["step_s"] == 0.5  # the median
    assert rates["positions_per_s"] == 65536
    assert rates["tokens_per_s"] == 2 * 32 * 1022
    assert rates["bases_per_s"] == 4e5
    assert rates["tflops"] == pytest.approx(3 * windows * forward / 0.5 / 1e12)
    assert rates["mfu"] == pytest.approx(3 * windows * forward / 0.5 / 989.4e12)
    assert rates["mfu_of_fp8_peak"] is None
    in_fp8 = plan_case(Case("1b", "plain", "tensorwise"), H200, [], 32000)
    rates = add_rates(in_fp8, outcome, "NVIDIA H200")
    assert rates["mfu_of_fp8_peak"] == pytest.approx(rates["mfu"] / 2, rel=1e-4)


def test_a_peer_recomputes_nothing():
    """A row that said otherwise would excuse a slow peer, or flatter it."""
    outcome = {"seconds": [0.5], "vocab_size": 32000, "tokens_a_step": 1.0, "bases_a_step": 1.0}
    for kind, said in (("plain", "full"), ("transformers-sdpa", None)):
        plan = plan_case(Case("1b", kind), H200, [], 32000, recompute=True)
        assert plan.config.train.recompute_granularity == "full"
        assert add_rates(plan, outcome, "NVIDIA H200")["recompute"] == said


def test_no_peak_no_mfu():
    """PCIe and NVL boards and what is not known have another peak than the table's."""
    for name, key in {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200",
                      "NVIDIA A100-SXM4-80GB": "a100"}.items():  # fmt: skip
        gpu = find_gpu_of(name)
        assert gpu is not None
        assert gpu.name == key
    for name in ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "CPU", "NVIDIA L4"):
        assert find_gpu_of(name) is None


@pytest.mark.parametrize("memory", [H100, H200], ids=["h100", "h200"])
def test_plans_fit_and_read_as_much_with_memory_as_without(memory: float):
    """Everything that is measured by default is a valid configuration."""
    from megatron_dna.validation import validate

    sizes: dict[str, set] = {}
    for case in all_cases(["large", "1b", "3b", LARGEST], ["tensorwise"], ["sdpa"]):
        plan = plan_case(case, memory, ["parallel.platform=cuda"], 32000)
        validate(plan.config, 1, files=False)
        sizes.setdefault(case.model, set()).add(
            (positions_of(plan.config), plan.config.model.num_layers)
        )
        assert plan.config.train.recompute_granularity in (None, "full")
    assert {model: len(found) for model, found in sizes.items()} == dict.fromkeys(sizes, 1)
    largest = plan_case(Case(LARGEST, "plain"), memory, [], 32000).config.model.num_layers
    third = plan_case(Case(LARGEST, "plain"), memory / 3, [], 32000).config.model.num_layers
    assert third < largest / 2


def test_the_most_telling_comes_first():
    """Time may run out."""
    names = [case.name for case in all_cases(["large", "1b", "3b", LARGEST], ["tensorwise"],
                                             ["sdpa", "flash_attention_2"])]  # fmt: skip
    assert names[:2] == ["1b-plain-bf16", "1b-transformers-sdpa-bf16"]
    assert names.index("3b-plain-fp8-tensorwise") < names.index("large-rmt-bf16")
    assert len(names) == len(set(names)) == 4 * 4 + 3 * 2


def test_goals_are_judged():
    """By the fastest of each kind."""

    def row(kind: str, fp8: str, rate: float) -> dict:
        again = "full" if kind == "rmt" else None
        return {"status": "measured", "model": "3b", "kind": kind, "fp8": fp8, "mfu": 0.5,
                "positions_per_s": rate, "recompute": again}  # fmt: skip

    rows = [
        row("plain", "none", 100.0), row("plain", "tensorwise", 140.0), row("rmt", "none", 90.0),
        row("plain", "blockwise", 120.0), row("transformers-sdpa", "none", 50.0),
        row("transformers-flash_attention_2", "none", 80.0),
        {"status": "out of memory", "model": "3b", "kind": "rmt", "fp8": "tensorwise"},
    ]  # fmt: skip
    lines = "\n".join(goals(rows, ["3b"]))
    assert "BF16 MFU: 0.500 (goal 0.55): not met" in lines
    assert "FP8 over BF16: 1.400 (goal 1.35): met" in lines
    assert "recomputing full where plain does None: 0.900 (goal 0.95): not met" in lines
    assert "this over transformers: 1.250 (goal 1.3): not met" in lines


def test_a_run_on_the_cpu_is_written_and_not_repeated(tmp_path: Path):
    """Three cases of the smallest recipe, then the same command again."""
    command = [
        sys.executable, "-m", "benchmarks.gpu.run", "--platform", "cpu", "--layer-spec", "local",
        "--models", "tiny", "--recipes", "--output", str(tmp_path), "--steps", "2", "--warm-up",
        "1", "--vocab-size", "300", "--positions", "256",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    cases = {case["name"]: case for case in results["cases"]}
    assert list(cases) == ["tiny-plain-bf16", "tiny-transformers-sdpa-bf16", "tiny-rmt-bf16"]
    for case in cases.values():
        assert case["status"] == "measured", case
        assert case["mfu"] is None  # nothing is claimed for a device without a known peak
        assert case["tokens_per_s"] > 0
    plain, peer = cases["tiny-plain-bf16"], cases["tiny-transformers-sdpa-bf16"]
    assert plain["tokens_a_step"] == peer["tokens_a_step"]
    assert plain["bases_a_step"] == peer["bases_a_step"]
    assert "| tiny | plain |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cases").iterdir()}
    (tmp_path / "cases" / "tiny-rmt-bf16.json").unlink()
    done = subprocess.run(
        [*command, "--time-limit", "0"], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "results.md").read_text()
    assert "tiny-rmt-bf16: not begun before the time limit; the same command goes on" in table
    assert "| tiny | plain |" in table
    for path in (tmp_path / "cases").iterdir():
        assert path.stat().st_mtime_ns == written[path]
