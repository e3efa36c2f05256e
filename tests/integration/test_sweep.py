"""tools/sweep.py with real trainings: killed in the midst of a trial, and done again to its end."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import yaml

from megatron_dna.sweep.report import table
from megatron_dna.sweep.store import load_study
from megatron_dna.training.metrics import read_records
from tests.dist.harness import run_ranks
from tests.dist.small_data import write_data
from tests.dist.test_resume import _record, _train
from tests.dist.whole_runs import children, is_alive, start, wait_for
from tests.integration.commands import run_python

GOOD = {"optimizer.lr": 0.01}
FAIR = {"optimizer.lr": 0.002}
# It would take hours, and is worse from the first evaluation on.
BAD = {"optimizer.lr": 1e-7, "train.train_iters": 1_000_000}


def write_sweep(path: Path, choices: dict[str, dict[str, float]], startup_trials: int) -> None:
    """A sweep file that prunes by the median."""
    sweep = {"name": "small", "parameters": {"what": {"choices": choices}},
             "pruner": {"startup_trials": startup_trials}}  # fmt: skip
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))


def run_options(folder: Path) -> list[str]:
    """Options of the trials, which train and save within seconds."""
    often = ["train.eval_interval=40", "logging.log_interval=40", "checkpoint.save_interval=20"]
    return [*write_data(folder), "train.train_iters=120", "checkpoint.keep_last=2", *often]


def iteration(folder: Path) -> int:
    """The newest checkpoint's."""
    latest = folder / "checkpoints" / "latest"
    return int(latest.read_text().strip()[5:]) if latest.is_file() else 0


def test_a_killed_sweep_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    """SIGKILL takes the trial along; the same command keeps what is done and resumes the rest."""
    sweep, out = tmp_path / "sweep.yaml", tmp_path / "out"
    write_sweep(sweep, {"good": GOOD, "fair": FAIR, "bad": BAD}, startup_trials=2)
    options = run_options(tmp_path)
    command = ["--sweep", str(sweep), f"train.output_dir={out}", *options]
    trials = [out / f"trial_000{number}" for number in range(3)]
    with start(command, tmp_path / "log", script="tools/sweep.py") as first:
        first.wait_for(lambda: iteration(trials[1]) >= 20)
        (launcher,) = children(first.process.pid)
        family = [first.process.pid, launcher, *children(launcher)]
        assert len(family) == 3
        os.kill(first.process.pid, signal.SIGKILL)
        wait_for(lambda: not any(map(is_alive, family)))
    assert 20 <= iteration(trials[1]) < 120, "it was to be killed in the midst of the trial"
    before = (trials[0] / "run.log").read_text(), (trials[0] / "metrics.jsonl").read_text()
    done = run_python("tools/sweep.py", *command)
    assert done.returncode == 0, done.stderr
    assert before == (
        (trials[0] / "run.log").read_text(),
        (trials[0] / "metrics.jsonl").read_text(),
    )
    (resumed,) = re.findall(
        r"resumed from .*: iteration (\d+)", (trials[1] / "run.log").read_text()
    )
    assert int(resumed) >= 20
    for trial, choice in zip(trials, (GOOD, FAIR), strict=False):
        whole = tmp_path / f"whole_{trial.name}"
        own = [f"{key}={value}" for key, value in choice.items()]
        run_ranks(_train, 1, [*options, *own, f"train.output_dir={whole}"])
        assert _record(trial) == _record(whole)
    # The bad one was told to stop at its first evaluation, and saved.
    assert "asked to stop (SIGTERM)" in (trials[2] / "run.log").read_text()
    _, *rows = table(load_study(out))
    rows.sort()
    finals = [read_records(trial / "metrics.jsonl")[-1]["valid/bits_per_base"] for trial in trials]
    assert [row[:5] for row in rows] == [
        ["0", "complete", "good", f"{finals[0]:.4f}", "120"],
        ["1", "complete", "fair", f"{finals[1]:.4f}", "120"],
        ["2", "pruned", "bad", rows[2][3], "40"],
    ]
    assert float(rows[2][3]) > max(finals[:2])
    for line in (out / "report.md", out / "trials.csv"):
        assert "pruned" in line.read_text()


def test_a_sweep_is_refused_in_one_line(tmp_path: Path) -> None:
    """Before anything is written: a grid of which one trial is no valid run."""
    sweep = tmp_path / "sweep.yaml"
    write_sweep(sweep, {"good": GOOD, "odd": {"model.num_attention_heads": 3}}, startup_trials=1)
    done = run_python("tools/sweep.py", "--sweep", sweep, *write_data(tmp_path),
                      f"train.output_dir={tmp_path}/out")  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: trial with what=odd: model.num_attention_heads (3) must divide")
    assert not (tmp_path / "out").exists()
