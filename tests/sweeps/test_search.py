"""A search: what it suggests, that its study is gone on with, and what it stops."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from commands import Command
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pretend import records_of

optuna = pytest.importorskip("optuna")

from cifarlab.errors import UserError  # noqa: E402
from cifarlab.sweeps.command import command as sweep_command  # noqa: E402
from cifarlab.sweeps.jobs import Job, Outcome  # noqa: E402
from cifarlab.sweeps.search import Search, space  # noqa: E402


def parsed(*overrides: str) -> list:
    return OverridesParser.create().parse_overrides(list(overrides))


def test_what_a_trial_chooses() -> None:
    typed = ["seed=3", "a=tag(log, interval(0.001, 0.1))", "b=interval(0,1)", "c=range(2,5)", "d=x,[y,z]"]
    fixed, open_ = space(parsed(*typed))
    assert fixed == ["seed=3"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [[suggest(trial) for suggest in open_.values()] for trial in (study.ask() for _ in range(200))]
    a, b, c, d = ([text.partition("=")[2] for text in column] for column in zip(*trials, strict=True))
    logs = sorted(math.log10(float(text)) for text in a)
    assert -3 <= logs[0] < -2.9
    assert logs[100] == pytest.approx(-2, abs=0.2)
    assert sorted(map(float, b))[100] == pytest.approx(0.5, abs=0.1)
    assert {*c} == {"2", "3", "4"}  # as in Python
    assert {*d} == {"x", "[y,z]"}
    with pytest.raises(UserError, match="nothing to search"):
        space(parsed("seed=3"))


def test_a_study_is_gone_on_with(run: Command, project: Path, started: list[str]) -> None:
    typed = ["-m", "search=optuna", "optimizer.lr=interval(0.1,0.4)"]
    answer = run(*typed, "hydra.sweeper.trials=3")
    assert answer.code == 0
    assert len(started) == 3
    assert "\nBest of 3 finished: trial " in f"\n{answer.out}"
    assert run(*typed, "hydra.sweeper.trials=5").code == 0
    assert [title.split()[0] for title in started] == ["#0", "#1", "#2", "#3", "#4"]
    assert len(set(started)) == 5  # the sampler does not draw the same points again
    runs = records_of(project)
    assert len(runs) == 5
    assert len(list(project.glob("logs/sweeps/*"))) == 1
    assert {record["choices"]["reg"][0] for record in runs.values()} == {"dropout"}
    study = optuna.load_study(
        study_name="search", storage=f"sqlite:///{next(project.glob('logs/sweeps/*/study.db'))}"
    )
    assert study.best_value == max(record["best_val"]["accuracy"] for record in runs.values())
    assert {*study.best_params} == {"optimizer.lr", "reg.weight_decay.rate", "reg.dropout.rate"}


def test_repeated_trials_get_the_result_of_the_first(run: Command, project: Path, started: list[str]) -> None:
    typed = ["-m", "search=optuna", "reg=none", "seed=3,13", "optimizer.lr=0.1,0.2"]
    for trials in (6, 8):
        run(*typed, f"hydra.sweeper.trials={trials}")
        (file,) = project.glob("logs/sweeps/*/study.db")
        study = optuna.load_study(study_name="search", storage=f"sqlite:///{file}")
        assert len(study.trials) == trials
        for trial in study.trials:
            failed = trial.params["seed"] == "13"
            assert trial.state.name == ("FAIL" if failed else "COMPLETE")
            assert trial.value == (None if failed else float(trial.params["optimizer.lr"]))


def test_a_repeated_trial_waits_for_the_first(tmp_path: Path) -> None:
    first = search(tmp_path)
    jobs = first.jobs()
    one, two, three = (Job(*next(jobs), tmp_path, config_hash="abc") for _ in range(3))
    first.hear(Outcome(two, "skipped", "the same as #0"))
    assert {trial.state.name for trial in first.study.trials} == {"RUNNING"}
    first.hear(Outcome(one, "done", None, record(0.5)))
    first.hear(Outcome(three, "skipped", "the same as #0"))
    assert [trial.value for trial in first.study.trials] == [0.5] * 3


@pytest.mark.parametrize(
    "typed, sentence",
    [
        ("a=interval(0.5,0.1)", "holds no value: expected two numbers, the smaller one first."),
        ("a=range(5,2)", "holds no value: expected two numbers, the smaller one first."),
        ("a=tag(log,interval(0,1))", ": a logarithmic scale begins above 0."),
    ],
)
def test_bounds_that_cannot_be_are_refused(typed: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        space(parsed(typed))
    assert str(error.value) == f"{typed}{sentence if sentence[0] == ':' else ' ' + sentence}"


def test_how_to_go_on_is_said_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    own = ["hydra.sweeper.trials=9", "hydra/sweeper=cifarlab/optuna", "hydra.mode=MULTIRUN"]
    config = OmegaConf.create({"hydra": {"overrides": {"hydra": own, "task": ["search=optuna"]}}})
    assert sweep_command(config) == "python train.py -m search=optuna hydra.sweeper.trials=9"


def test_a_trial_is_a_command_as_any_job(run: Command, project: Path) -> None:
    answer = run("-m", "search=optuna", "seed=1", "trainer.max_epochs=1", "hydra.sweeper.trials=1")
    assert answer.code == 0
    (record,) = records_of(project).values()
    assert record["status"] == "done"
    assert record["overrides"][:2] == ["search=optuna", "seed=1"]


def search(folder: Path, **options: object) -> Search:
    chosen: dict = {"trials": 9, "minutes": None, "seed": 0, "startup": 2, "warmup": 1} | options
    return Search(folder, parsed("optimizer.lr=interval(0.1,0.4)"), **chosen)


def write(job: Job, *accuracies: float) -> Job:
    job.folder.mkdir(exist_ok=True)
    rows = [f"{epoch},{value}" for epoch, value in enumerate(accuracies, 1)]
    (job.folder / "metrics.csv").write_text("\n".join(["epoch,val/accuracy", *rows, ""]))
    return job


def record(accuracy: float) -> dict:
    return {"best_val": {"accuracy": accuracy}, "status": "", "error": None}


def test_the_worst_are_stopped_and_the_interrupted_come_back(tmp_path: Path) -> None:
    first = search(tmp_path)
    jobs = first.jobs()
    for accuracy in (0.5, 0.6):  # before these are done nothing can be below their median
        number, overrides = next(jobs)
        job = write(Job(number, overrides, tmp_path / str(number)), accuracy, accuracy)
        assert not first.watch(job)
        first.hear(Outcome(job, "done", None, record(accuracy)))
    number, overrides = next(jobs)
    poor = Job(number, overrides, tmp_path / str(number))
    assert not first.watch(poor)  # has no epoch yet
    assert not first.watch(write(poor, 0.1))  # its first epoch is granted
    assert first.watch(write(poor, 0.1, 0.1))
    stopped = Outcome(poor, "interrupted", None, record(0.1))
    first.hear(stopped)
    assert (stopped.status, stopped.error) == ("pruned", "pruned by the search")
    number, overrides = next(jobs)
    first.hear(Outcome(Job(number, overrides, tmp_path / str(number)), "interrupted"))
    number, failing = next(jobs)
    first.hear(Outcome(Job(number, failing, tmp_path / str(number)), "failed", "NaN"))
    states = [trial.state.name for trial in first.study.trials]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "RUNNING", "FAIL"]
    again = search(tmp_path)
    assert next(again.jobs()) == (3, overrides)
    assert again.summary().startswith("Best of 2 finished: trial 1, validation 60.00%: optimizer.lr=0.")


def test_a_call_ends_when_its_time_is_over(tmp_path: Path) -> None:
    late = search(tmp_path, minutes=1e-9)
    assert list(late.jobs()) == []
    early = search(tmp_path, minutes=60)
    number, overrides = next(early.jobs())
    job = write(Job(number, overrides, tmp_path / "0"), 0.5)
    assert not early.watch(job)
    early.deadline = 0
    assert early.watch(job)
    assert next(early.jobs(), None) == (0, overrides)  # the open one comes back, with the next call's time
