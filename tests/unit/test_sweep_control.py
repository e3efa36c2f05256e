"""What a sweep does with its trials, and how it goes on after it was cut off anywhere.

Runs are stand-ins here that write metrics; tests/integration/test_sweep.py trains.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine

from megatron_dna.config import ConfigError, load_config
from megatron_dna.sweep import report
from megatron_dna.sweep.control import Controller, TrialError, last_error
from megatron_dna.sweep.runners import CANCELLED, LocalRunner, Slot
from megatron_dna.sweep.space import Choice, Value
from megatron_dna.sweep.spec import Sweep, read_sweep
from megatron_dna.sweep.store import TrialStore, load_study
from megatron_dna.training.signals import StopRequest
from tests.unit.data_files import write_pair, write_tokenizer
from tests.unit.sweep_runs import METRIC, Killed, LateRuns, Runs

GRID = {"optimizer.lr": {"values": [1e-3, 2e-3, 3e-3, 4e-3]}}


@pytest.fixture(scope="module", autouse=True)
def _unsynced() -> Iterator[None]:
    """SQLite does not wait for the disk: what is killed here is no machine."""

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", relax)
    yield
    event.remove(Engine, "connect", relax)


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[..., Sweep]:
    """Makes sweeps of four iterations a trial in tmp_path/out."""
    write_tokenizer(tmp_path / "tokenizer.json")
    write_pair(tmp_path / "train", [range(6, 20)])

    def make(parameters: dict[str, Any] = GRID, *overrides: str, **keys: Any) -> Sweep:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"name": "test", "parameters": parameters, **keys}))
        options = [
            f"data.tokenizer={tmp_path}/tokenizer.json",
            f"data.train=[{{prefix: {tmp_path}/train}}]",
            f"data.valid=[{{prefix: {tmp_path}/train}}]",
            "train.train_iters=4", f"train.output_dir={tmp_path}/out", *overrides,
        ]  # fmt: skip
        return read_sweep(path, load_config(None, options))

    return make


def _run(sweep: Sweep, runs: Any, jobs: int = 1) -> bool:
    return Controller(sweep, TrialStore(sweep), runs, jobs, StopRequest(())).run()


def _trials(sweep: Sweep) -> list[FrozenTrial]:
    return load_study(sweep.folder).get_trials()


def _states(sweep: Sweep) -> list[str]:
    return [trial.state.name for trial in _trials(sweep)]


def _result(sweep: Sweep) -> list[tuple[Any, ...]]:
    """All that is known of the trials, but for the clock."""
    return [
        (t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs["tokens"])
        for t in _trials(sweep)
    ]


def test_a_grid_is_tried_in_order(make_sweep: Callable[..., Sweep]) -> None:
    sweep, runs = make_sweep(), Runs()
    assert _run(sweep, runs)
    assert runs.started == ["trial_0000", "trial_0001", "trial_0002", "trial_0003"]
    first = _trials(sweep)[0]
    assert first.params == {"optimizer.lr": 1e-3}
    assert first.intermediate_values == {i: 1 + 1 / i for i in (1, 2, 3, 4)}
    assert first.user_attrs["tokens"] == {str(i): 100 * i for i in (1, 2, 3, 4)}
    assert [t.values for t in _trials(sweep)] == [
        [1e3 * lr + 0.25] for lr in (1e-3, 2e-3, 3e-3, 4e-3)
    ]
    assert _run(sweep, Runs(trial_0000=[Killed])), "there is nothing left to start"


@pytest.mark.parametrize("killed_at", [0, 2])
def test_a_killed_sweep_goes_on(make_sweep: Callable[..., Sweep], killed_at: int) -> None:
    """If not, finished trials are paid for twice, or one that ran is lost or gets other options."""
    sweep = make_sweep()
    first = Runs(**{f"trial_{killed_at:04d}": [Killed]})
    with pytest.raises(Killed):
        _run(sweep, first)
    assert _states(sweep) == ["COMPLETE"] * killed_at + ["RUNNING"] + ["WAITING"] * (3 - killed_at)
    second = Runs()
    assert _run(sweep, second)
    assert second.started == [f"trial_{number:04d}" for number in range(killed_at, 4)]
    result = _result(sweep)
    shutil.rmtree(sweep.folder)
    _run(sweep, Runs())
    assert result == _result(sweep)


SPACE = {
    "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.num_layers": {"low": 1, "high": 9, "step": 2},
    "optimizer.weight_decay": {"values": [0, 0.1]},
}


@pytest.mark.parametrize(("sampler", "count"), [("random", 3), ("tpe", 11)])
def test_sampling_does_not_depend_on_interruptions(
    make_sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch, sampler: str, count: int
) -> None:
    """Killed between two draws of a trial, and given more trials, it ends as an unbroken sweep."""
    sweep = make_sweep(SPACE, "train.train_iters=1", sampler=sampler, trials=count)
    suggest = Choice.suggest

    def suggest_or_die(self: Choice, trial: Any) -> Value:
        if trial.number == count - 1:
            raise Killed
        return suggest(self, trial)

    monkeypatch.setattr(Choice, "suggest", suggest_or_die)  # the last of the three
    with pytest.raises(Killed):
        _run(sweep, Runs())
    monkeypatch.undo()
    assert _states(sweep) == ["COMPLETE"] * (count - 1) + ["RUNNING"]
    assert len(_trials(sweep)[-1].params) == 2
    more = make_sweep(SPACE, "train.train_iters=1", sampler=sampler, trials=count + 1)
    assert _run(more, Runs())
    result = _result(more)
    assert len({str(trial[2]) for trial in result}) == count + 1, "draws repeat themselves"
    shutil.rmtree(sweep.folder)
    _run(more, Runs())
    assert result == _result(more)


def test_parameters_are_drawn_apart(make_sweep: Callable[..., Sweep]) -> None:
    """One stream for all of a trial would look along a diagonal of the space only."""
    names = ("optimizer.lr", "optimizer.weight_decay")
    space = {name: {"low": 0.0, "high": 1.0} for name in names}
    sweep = make_sweep(space, sampler="random", trials=3)
    store = TrialStore(sweep)
    for trial in filter(None, (store.begin() for _ in range(3))):
        assert len(set(store.values(trial).values())) == 2


def test_what_the_end_of_a_run_means(make_sweep: Callable[..., Sweep]) -> None:
    """A run that crashed twice, diverged, was cancelled, or was asked to stop by somebody else."""
    sweep = make_sweep()
    runs = Runs(
        trial_0000=[1, 0], trial_0001=[75, 75, 1, 137], trial_0002=[3], trial_0003=[CANCELLED]
    )
    folder = sweep.trial_folder(2)
    folder.mkdir(parents=True)
    (folder / "run.log").write_text("error: loss is NaN for the 11th time\nlaunch: rank 0 ended\n")
    assert _run(sweep, runs)
    assert [runs.started.count(f"trial_000{number}") for number in range(4)] == [2, 4, 1, 1]
    assert _states(sweep) == ["COMPLETE", "FAIL", "FAIL", "FAIL"]
    reasons = [trial.user_attrs.get("reason", "") for trial in _trials(sweep)]
    assert reasons[1].startswith("ended with status 137")
    assert reasons[2].startswith("diverged: error: loss is NaN for the 11th time")
    assert reasons[3] == "its job was cancelled"


def test_a_refused_run_ends_the_sweep(make_sweep: Callable[..., Sweep]) -> None:
    """Status 2 is what all trials have in common, such as a damaged file: it is put right first."""
    sweep, runs = make_sweep(), Runs(trial_0001=[2])
    with pytest.raises(TrialError, match="trial_0001 was refused"):
        _run(sweep, runs)
    assert runs.is_closed
    assert _states(sweep) == ["COMPLETE", "RUNNING", "WAITING", "WAITING"]
    assert _run(sweep, Runs())
    assert _states(sweep) == ["COMPLETE"] * 4


def test_an_invalid_sample_is_a_failed_trial(make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(
        {"model.num_attention_heads": {"low": 1, "high": 7}}, sampler="random", trials=8
    )
    assert _run(sweep, Runs())
    for trial in _trials(sweep):
        is_valid = 768 % (2 * trial.params["model.num_attention_heads"]) == 0
        assert trial.state == (TrialState.COMPLETE if is_valid else TrialState.FAIL)
    assert {"COMPLETE", "FAIL"} == set(_states(sweep))
    assert any("must divide model.hidden_size" in str(t.user_attrs) for t in _trials(sweep))


def test_worse_than_the_median_ends_early(make_sweep: Callable[..., Sweep]) -> None:
    """After two trials, from iteration 2 on, and also if killed between decision and end."""
    sweep = make_sweep(pruner={"startup_trials": 2, "warmup_iters": 2})
    runs = Runs()
    runs.stop = lambda folder: (_ for _ in ()).throw(Killed)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        _run(sweep, runs)
    assert _states(sweep) == ["COMPLETE", "COMPLETE", "RUNNING", "WAITING"]
    again = Runs()
    assert _run(sweep, again)
    assert again.started == ["trial_0003"], "what was to end is not started again"
    assert again.stopped == ["trial_0002", "trial_0003"]
    assert _states(sweep) == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    pruned = _trials(sweep)[3]
    assert pruned.user_attrs["pruned_at"] == 2
    assert pruned.intermediate_values == {1: 5.0, 2: 4.5}


def test_a_last_evaluation_is_not_lost(make_sweep: Callable[..., Sweep]) -> None:
    """It may be written between two looks, just before its run ends."""
    sweep = make_sweep()
    assert _run(sweep, LateRuns())
    assert [t.values for t in _trials(sweep)] == [[1.25], [2.25], [3.25], [4.25]]


def test_a_trial_that_has_all_its_steps_is_complete(make_sweep: Callable[..., Sweep]) -> None:
    """However bad it is: there is nothing left to end early."""
    sweep, runs = make_sweep(pruner={"startup_trials": 1, "warmup_iters": 4}), Runs()
    assert _run(sweep, runs)
    assert _states(sweep) == ["COMPLETE"] * 4
    assert not runs.stopped


def test_the_newest_error_is_told(tmp_path: Path) -> None:
    """Logs of a run that was started again have those of its first start before it."""
    assert last_error(tmp_path) == f"see the logs in {tmp_path}"
    (tmp_path / "run.log").write_text("error: first\nfine\nerror: second\nerrors: none\nfine\n")
    assert last_error(tmp_path) == f"error: second ({tmp_path}/run.log)"
    (tmp_path / "logs").mkdir()
    for age, name in enumerate(("b", "a")):
        path = tmp_path / "logs" / f"{name}.log"
        path.write_text(f"error: of {name}\n")
        os.utime(path, (100 - age, 100 - age))
    assert last_error(tmp_path) == f"error: of b ({tmp_path}/logs/b.log)"


def test_objectives(make_sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    """Of loss the lowest is the best, of accuracy the highest; NaN is no value."""
    reported = {2: 0.5, 4: 0.7, 6: 0.6}
    for name, metric, take, expected in (
        ("a", "valid/loss", "last", 0.6), ("b", "valid/loss", "best", 0.5),
        ("c", "valid/accuracy", "best", 0.7),
    ):  # fmt: skip
        objective = {"metric": metric, "take": take}
        sweep = make_sweep(GRID, f"train.output_dir={tmp_path}/{name}", objective=objective)
        store = TrialStore(sweep)
        for extra in ({}, {8: float("nan")}):
            trial = store.begin()
            assert trial is not None
            store.values(trial)
            for iteration, value in {**reported, **extra}.items():
                store.report(trial, iteration, value, 10 * iteration)
            is_lost = extra and take == "last"
            assert store.complete(trial) == (None if is_lost else expected)
    assert "is no number" in str(_trials(sweep)[1].user_attrs) or not is_lost


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overrides": ["train.train_iters=5"]}, "recipe.train.train_iters 4, not 5"),
        ({"seed": 7}, "sweep.seed 1234, not 7"),
        ({"name": "other"}, "has the sweep test, not name (other)"),
    ],
)
def test_other_options_are_refused(
    make_sweep: Callable[..., Sweep], change: dict[str, Any], message: str
) -> None:
    """If not, a table compares runs that differ in what it does not show."""
    _run(make_sweep(), Runs())
    overrides = change.pop("overrides", [])
    with pytest.raises(ConfigError) as caught:
        TrialStore(make_sweep(GRID, *overrides, **change))
    assert message in str(caught.value)


def test_a_moved_sweep_goes_on(make_sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    sweep = make_sweep()
    with pytest.raises(Killed):
        _run(sweep, Runs(trial_0002=[Killed]))
    sweep.folder.rename(tmp_path / "moved")
    assert _run(make_sweep(GRID, f"train.output_dir={tmp_path}/moved"), Runs())


RUN = """
    import json, os, pathlib, signal, sys, time, yaml
    config = yaml.safe_load(open(sys.argv[sys.argv.index("--config") + 1]))
    folder = pathlib.Path(config["train"]["output_dir"])
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    count = len(list(folder.glob("start_*")))
    about = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "cores": list(os.sched_getaffinity(0))}
    (folder / f"start_{count}").write_text(json.dumps(about))
    while not told and not (folder / "go").exists():
        time.sleep(0.01)
    if told:
        sys.exit(75)
    line = {"iteration": 4, "valid/bits_per_base": 1.0, "train/consumed_tokens": 8}
    (folder / "metrics.jsonl").write_text(json.dumps(line))
"""


def test_child_processes(make_sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    """Two at once, each with its own share; a stopped sweep waits until its trials have saved."""
    sweep = make_sweep()
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(RUN))
    core = min(os.sched_getaffinity(0))
    stop = StopRequest(())

    class Watched(LocalRunner):
        def poll(self) -> dict[Path, int]:
            folders = [sweep.trial_folder(number) for number in range(4)]
            if stops and all((folder / "start_0").exists() for folder in folders[:2]):
                stop.signal = "SIGTERM"
            if not stops:
                for folder in folders:
                    if (folder / "start_0").exists():
                        (folder / "go").touch()
            time.sleep(0.01)
            return super().poll()

    slots = [Slot((core,), (0, 1)), Slot((core,), (2, 3))]
    for stops in (True, False):
        stop.signal = None
        runner = Watched([sys.executable, str(script)], slots)
        runner.poll_s = 0.01
        assert Controller(sweep, TrialStore(sweep), runner, 2, stop).run() is not stops
        if stops:
            assert _states(sweep) == ["RUNNING", "RUNNING", "WAITING", "WAITING"]
    assert _states(sweep) == ["COMPLETE"] * 4
    starts = [json.loads(path.read_text()) for path in sorted(sweep.folder.glob("*/start_0"))]
    assert [start["cores"] for start in starts] == [[core]] * 4
    assert {start["gpus"] for start in starts[:2]} == {"0,1", "2,3"}
    assert len(list(sweep.folder.glob("*/start_1"))) == 2


@pytest.mark.parametrize(
    ("metric", "order"), [("valid/loss", [0, 2, 1]), ("valid/accuracy", [1, 2, 0])]
)
def test_the_best_trial_is_the_first_row(
    make_sweep: Callable[..., Sweep], metric: str, order: list[int]
) -> None:
    store = TrialStore(make_sweep(objective={"metric": metric}))
    for value in (0.1, 0.3, 0.2):
        trial = store.begin()
        assert trial is not None
        store.values(trial)
        store.report(trial, 4, value, 400)
        store.complete(trial)
    assert [trial.number for trial in report.ranked(store.study)] == order


def test_reports_need_the_database_only(make_sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    """The table has the best first; the parameter that decides is the important one."""
    parameters = {"train.seed": {"values": [1, 2]}, **GRID}
    sweep = make_sweep(parameters)
    _run(sweep, Runs(trial_0004=[3]))
    for folder in sweep.folder.glob("trial_*"):
        shutil.rmtree(folder)
    study = load_study(sweep.folder)
    report.write_report(study, sweep.folder)
    with (sweep.folder / "trials.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["trial", "state", "optimizer.lr", "train.seed", METRIC, "iteration",
                       "tokens", "note"]  # fmt: skip
    values = [float(row[4]) for row in rows[1:-1]]
    assert values == sorted(values)
    assert rows[1][1:7] == ["complete", "0.001", "1", "1.2500", "4", "400"]
    assert rows[-1][:2] == ["4", "fail"]
    assert rows[-1][-1].startswith("diverged")
    shares = report.importances(study)
    assert list(shares) == ["optimizer.lr", "train.seed"]
    assert shares["optimizer.lr"] > 0.9
    page = (sweep.folder / "report.md").read_text()
    assert "Best: trial 0, valid/bits_per_base 1.2500 with" in page
    assert page.count("\n| ") == 1 + 8 + 1 + 1 + 2 + 1  # both tables, their rules included
    for name in ("loss.png", "parameters.png"):
        assert (sweep.folder / name).read_bytes().startswith(b"\x89PNG")
