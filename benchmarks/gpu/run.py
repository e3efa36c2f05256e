"""Training speed on one GPU, against `transformers` on the same batches in the same run.

    python -m benchmarks.gpu.run
    python -m benchmarks.gpu.run --output runs/gpu --models 1b 3b --recipes tensorwise blockwise

Writes into --output: results.json, results.md, results.png, and of each case its outcome (cases/)
and log (logs/). Each case is a process of its own: one that runs out of memory is reported as such.
What is measured already, on the same machine with the same options, is not measured again; a run
that reached its time limit is continued by the same command. See benchmarks/gpu/README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from benchmarks.gpu.data import ROOT, environment, prepare
from megatron_dna.training.logs import quiet_libraries

TRIES = 3
"""A case that runs out of memory is tried again with recomputation, then with fewer layers."""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/gpu/results")
    parser.add_argument(
        "--models", nargs="+", default=["large", "1b", "3b", "largest"], metavar="RECIPE",
        help="of examples/, by size; `largest` is the largest that fits (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--recipes", nargs="*", default=["tensorwise"],
        choices=["tensorwise", "blockwise", "delayed"], help="of FP8, besides BF16",
    )  # fmt: skip
    parser.add_argument(
        "--peers", nargs="*", metavar="ATTENTION", default=None,
        help="of transformers (default: sdpa, and flash_attention_2 where it is installed)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=6, help="timed (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=3, help="not timed (default: %(default)s)")
    parser.add_argument("--positions", type=int, help="input positions of a step, for all models")
    parser.add_argument("--vocab-size", type=int, default=32000, help="(default: %(default)s)")
    parser.add_argument("--time-limit", type=float, default=450.0, help="seconds, for all cases")
    parser.add_argument("--platform", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--layer-spec", choices=["transformer_engine", "local"], default="transformer_engine"
    )
    return parser.parse_args()


def main() -> int:
    """Measure what is missing and report; returns the exit status."""
    start = time.monotonic()
    args = parse_arguments()
    quiet_libraries()
    args.output = args.output.absolute()
    try:
        machine = probe(args.platform)
        data = prepare(args.output / "data", args.vocab_size)
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Benchmark(args, data, machine, start).run()
    return 0


PROBE = """
import importlib.metadata as m, json, sys, torch
is_cuda = sys.argv[1] == "cuda"
if is_cuda and not torch.cuda.is_available():
    sys.exit("no CUDA device is visible; --platform cpu --layer-spec local tries the benchmark out")
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
found = torch.cuda.get_device_properties(0) if is_cuda else None
json.dump({
    "device": found.name if is_cuda else "CPU",
    "memory_gib": round(found.total_memory / 2**30, 1) if is_cuda else None,
    "torch": torch.__version__, "CUDA": torch.version.cuda if is_cuda else None,
    "cuDNN": torch.backends.cudnn.version() if is_cuda else None,
    **{name: version(name) for name in
       ("megatron-core", "transformer-engine", "transformers", "flash-attn")},
}, sys.stdout)
"""


def probe(platform: str) -> dict[str, Any]:
    """The device and the libraries, asked for in another process: this one holds no memory of it.

    Raises:
        RuntimeError: there is no such device.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE, platform], text=True, capture_output=True,
        env=environment(), check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    machine: dict[str, Any] = json.loads(done.stdout)
    return machine


class Worker:
    """A process that has begun to import and waits for a case."""

    def __init__(self, log: Path) -> None:
        """Start it; it writes into `log`."""
        self._log: IO[str] = log.open("w")
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.worker"], cwd=ROOT, env=environment(),
            stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, text=True,
        )  # fmt: skip

    def measure(self, order: dict[str, Any], timeout_s: float) -> bool:
        """Give it its case and wait; False if it took too long or died."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.close()
            return self.process.wait(timeout_s) == 0
        except (subprocess.TimeoutExpired, BrokenPipeError):
            return False
        finally:
            self.close()

    def close(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self._log.close()


class Benchmark:
    """All cases of one run."""

    def __init__(
        self, args: argparse.Namespace, data: list[str], machine: dict[str, Any], start: float
    ) -> None:
        """`start`: of the run, by time.monotonic."""
        from benchmarks.gpu import cases, report

        self.args, self.machine, self.start = args, machine, start
        self.cases, self.report = cases, report
        self.options = [
            *data, f"parallel.platform={args.platform}", f"model.layer_spec={args.layer_spec}"
        ]  # fmt: skip
        for name in ("cases", "logs"):
            (args.output / name).mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Measure what is missing, in order, then write the report."""
        flash = ["flash_attention_2"] if self.machine["flash-attn"] else []
        peers = ["sdpa", *flash] if self.args.peers is None else self.args.peers
        chosen = self.cases.all_cases(self.args.models, self.args.recipes, peers)
        outcomes = {case: self._known(case) for case in chosen}
        waiting = [case for case, outcome in outcomes.items() if outcome is None]
        next_worker: Worker | None = None
        try:
            with tqdm(waiting, unit="case", disable=None) as bar:
                for case in bar:
                    bar.set_description(case.name)
                    if self._left() <= 0:
                        break
                    worker = next_worker or self._worker(case.name)
                    following = waiting[waiting.index(case) + 1 :][:1]
                    next_worker = self._worker(following[0].name) if following else None
                    outcomes[case] = self._measure(case, worker)
                    self._write(outcomes)
        finally:
            if next_worker is not None:
                next_worker.close()
        self._write(outcomes)
        print((self.args.output / "results.md").read_text())

    def _left(self) -> float:
        return self.args.time_limit - (time.monotonic() - self.start)

    def _worker(self, name: str) -> Worker:
        return Worker(self.args.output / "logs" / f"{name}.log")

    def _measure(self, case: Any, worker: Worker) -> dict[str, Any] | None:
        """One case, tried again with less where the memory does not suffice."""
        outcome: dict[str, Any] | None = None
        shrink, recompute = 1.0, None
        for attempt in range(TRIES):
            plan = self._plan(case, shrink, recompute)
            worker = worker if attempt == 0 else self._worker(case.name)
            if not worker.measure(self._order(plan), max(30.0, self._left())):
                last = worker.log.read_text(errors="replace").strip().splitlines()[-1:]
                about = "ended or took too long" + f" ({last[0][-200:]})" * bool(last)
                return self._about(plan) | {"status": f"failed: {about}"}
            outcome = self._known(case)
            if outcome is None or outcome["status"] != "out of memory":
                break
            # Recomputation first; where that was on already, fewer layers of `largest`.
            can_shrink = case.model == self.cases.LARGEST and recompute
            if recompute and not can_shrink:
                break
            shrink, recompute = (shrink * 0.85 if recompute else shrink), True
            if case.is_peer or self._left() <= 0:
                break
        return outcome

    def _plan(self, case: Any, shrink: float = 1.0, recompute: bool | None = None) -> Any:
        gib = self.machine["memory_gib"] or 1024.0
        return self.cases.plan_case(
            case, shrink * gib * 2**30, self.options, self.args.vocab_size, self.args.positions,
            recompute,
        )  # fmt: skip

    def _about(self, plan: Any) -> dict[str, Any]:
        """What an outcome says of itself, whatever came out."""
        case = plan.case
        return {
            "name": case.name, "model": case.model, "kind": case.kind, "fp8": case.recipe,
            "precision": plan.config.train.precision, "overrides": list(plan.overrides),
            "asked": self._asked(), "machine": self.machine,
        }  # fmt: skip

    def _asked(self) -> dict[str, Any]:
        """Options that an outcome depends on."""
        names = ("steps", "warm_up", "positions", "vocab_size", "platform", "layer_spec")
        return {name: getattr(self.args, name) for name in names}

    def _order(self, plan: Any) -> dict[str, Any]:
        return {
            "case": asdict(plan.case), "overrides": list(plan.overrides), "recipe": plan.recipe,
            "warm_up": self.args.warm_up, "steps": self.args.steps, "about": self._about(plan),
            "output": str(self._path(plan.case)),
        }  # fmt: skip

    def _path(self, case: Any) -> Path:
        path: Path = self.args.output / "cases" / f"{case.name}.json"
        return path

    def _known(self, case: Any) -> dict[str, Any] | None:
        """The outcome of a case that was finished on this machine with these options."""
        if not self._path(case).is_file():
            return None
        outcome: dict[str, Any] = json.loads(self._path(case).read_text())
        is_same = outcome["machine"] == self.machine and outcome["asked"] == self._asked()
        is_done = outcome["status"] in ("measured", "out of memory")
        if not is_same or not is_done:
            return None
        if outcome["status"] == "out of memory":
            return outcome
        plan = self.cases.Plan(
            case, tuple(outcome["overrides"]), self._plan(case).recipe
        )  # fmt: skip
        rated: dict[str, Any] = self.report.add_rates(plan, outcome, self.machine["device"])
        return rated

    def _write(self, outcomes: dict[Any, dict[str, Any] | None]) -> None:
        """results.json, results.md and results.png."""
        rows: list[dict[str, Any]] = []
        for case, outcome in outcomes.items():
            rows.append(outcome or self._about(self._plan(case)) | {"status": self._why(case)})
        content = {"machine": self.machine, "asked": self._asked(), "cases": rows}
        models: Sequence[str] = self.args.models
        _replace(self.args.output / "results.json", json.dumps(content, indent=1) + "\n")
        _replace(
            self.args.output / "results.md", self.report.table(self.machine, rows, models)
        )  # fmt: skip
        self.report.draw(self.machine, rows, self.args.output / "results.png")

    def _why(self, case: Any) -> str:
        """Why a case has no outcome."""
        if self._path(case).is_file():
            outcome = json.loads(self._path(case).read_text())
            if outcome["status"] == "failed":
                return f"failed: {outcome['error'].splitlines()[-1]} (logs/{case.name}.log)"
        return "not begun before the time limit; the same command goes on"


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
