"""Sweeps as a user meets them: what runs, what is said and left, and what the same command does again."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from itertools import product
from pathlib import Path
from threading import Timer

import pytest
from commands import Command
from pretend import records_of, rows, start

from cifarlab.errors import UserError
from cifarlab.runs import record as records
from cifarlab.sweeps.folders import Claim, is_claimed
from cifarlab.sweeps.jobs import Job, ended


def test_every_job_is_a_command_of_its_own(run: Command, project: Path) -> None:
    answer = run("-m", "seed=1,13,15", "optimizer.lr=0.3", "trainer.max_epochs=2")
    assert answer.code == 1
    assert rows(answer) == [
        ["0", "done", "29.00%", "30.00%"],
        ["1", "failed", "-", "30.00%"],
        ["2", "failed", "-", "30.00%"],
    ]
    killed = "Killed by SIGKILL, possibly for its memory."
    assert f"#1: The loss became NaN in epoch 3.\n#2: {killed}\n1 done, 2 failed.\n" in answer.out
    assert answer.err.endswith("2 of 3 jobs did not end well; the same command tries them again.\n")
    done, nan, dead = (record for _, record in sorted(records_of(project).items()))
    assert (done["status"], done["error"], done["epochs"]) == ("done", None, 2)
    assert (nan["status"], nan["error"]) == ("failed", "The loss became NaN in epoch 3.")
    assert (dead["status"], dead["error"], dead["epochs"]) == ("failed", killed, 1)
    assert dead["finished"] is not None
    log = next((project / "logs/sweeps").glob("*/1_*/train.log"))
    assert log.read_text() == "The loss became NaN in epoch 3.\n"


def test_a_job_that_cannot_begin_is_recorded(run: Command, project: Path) -> None:
    # at once on this machine; a bug's traceback goes to its train.log
    answer = run("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=14", "optimizer.lr=1,fast")
    assert answer.code == 1
    bug, wrong = (record for _, record in sorted(records_of(project).items()))
    assert (bug["status"], bug["error"]) == ("failed", "KeyError: 'a bug'")
    assert "Traceback (most recent call last)" in next(project.glob("logs/*/*/0_*/train.log")).read_text()
    assert (wrong["status"], wrong["config_hash"]) == ("failed", None)
    assert wrong["error"] == "optimizer.lr=fast: expected a number above 0."
    assert wrong["seed"] == 14
    assert wrong["overrides"] == ["seed=14", "optimizer.lr=fast"]
    assert "#1 optimizer.lr=fast: failed (optimizer.lr=fast: expected a number above 0)\n" in answer.out


def test_a_stopped_sweep_saves_its_jobs_and_says_how_to_go_on(project: Path) -> None:
    typed = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "optimizer.lr=0.3"]
    typed += ["seed=1,16,17", "trainer.max_epochs=300"]
    sweep = start(*typed)
    assert sweep.stdout is not None
    said = ""
    while "#2 seed=17: starts" not in said or not epochs_of_16(project):
        said += sweep.stdout.readline() if "#2 seed=17: starts" not in said else ""
    sweep.send_signal(signal.SIGINT)
    said += sweep.stdout.read()
    assert sweep.wait() == 130
    assert "\nTo go on: python train.py -m optimizer.lr=0.3 seed=1,16,17 trainer.max_epochs=300 " in said
    name = "1_seed=16_lr=0.3_max_epochs=300"
    before = records_of(project)
    assert before[name]["status"] == "interrupted"
    assert before["0_seed=1_lr=0.3_max_epochs=300"]["status"] == "done"
    assert not is_claimed(next(project.glob(f"logs/sweeps/*/{name}")))


def epochs_of_16(project: Path) -> int:
    return sum(record["epochs"] for name, record in records_of(project).items() if "seed=16" in name)


def test_the_same_command_skips_goes_on_and_tries_again(
    run: Command, project: Path, started: list[str]
) -> None:
    typed = ["-m", "optimizer.lr=0.2", "seed=1,2,3"]
    assert run(*typed).code == 0
    assert started == ["#0 seed=1", "#1 seed=2", "#2 seed=3"]
    one, two, _ = sorted(project.glob("logs/sweeps/*/*_lr*"))
    for folder, status, epochs in ((one, "interrupted", 5), (two, "failed", 0)):
        records.write(folder, records.read(folder) | {"status": status, "epochs": epochs})
    started.clear()
    # in any order, with another launcher and logger
    answer = run("seed=1,2,3", "optimizer.lr=0.2", "-m", "hydra/launcher=joblib", "logger=none")
    assert answer.code == 0
    assert started == ["#0 seed=1 resumed", "#1 seed=2"]
    assert rows(answer)[2][:2] == ["2", "skipped"]
    assert len(records_of(project)) == 3


def test_more_of_the_same_is_found_in_the_sweep_before(
    run: Command, project: Path, started: list[str]
) -> None:
    run("-m", "seed=1,2")
    started.clear()
    assert [row[1] for row in rows(run("-m", "seed=range(4)"))] == ["done", "skipped", "skipped", "done"]
    assert started == ["#0 seed=0", "#3 seed=3"]
    assert len(list(project.glob("logs/sweeps/*"))) == 2
    # but a folder of one's own choice is a sweep of its own
    assert run("-m", "seed=1,2", "hydra.sweep.dir=mine").out.count(": starts") == 2
    assert run("-m", "seed=1,2", "hydra.sweep.dir=mine").out.count(": starts") == 0


def test_force_runs_all_again(run: Command, project: Path, started: list[str]) -> None:
    run("-m", "seed=1,2")
    assert run("-m", "seed=1,2", "force=true").code == 0
    assert len(started) == 4
    assert len(list(project.glob("logs/sweeps/*"))) == 2
    assert run("-m", "seed=1,2", "force=false").code == 0
    assert len(started) == 4


def test_a_forced_sweep_is_finished_without_force(run: Command, project: Path, started: list[str]) -> None:
    run("-m", "seed=1,2,3")
    run("-m", "seed=1,2,3", "force=true")
    latest = max(project.glob("logs/sweeps/*"))
    _, second, third = sorted(latest.glob("*/"))  # as if it had been stopped in the second
    records.write(second, records.read(second) | {"status": "interrupted", "epochs": 5})
    shutil.rmtree(third)
    started.clear()
    for left in (["#1 seed=2 resumed", "#2 seed=3"], []):
        answer = run("-m", "seed=1,2,3")
        assert answer.code == 0
        assert f"Sweep folder: {latest.relative_to(project)}\n" in answer.out
        assert started == left
        started.clear()


def test_what_varies_comes_first(run: Command, project: Path, started: list[str]) -> None:
    long = "data.root=" + "x" * 80
    answer = run("-m", long, "reg=none,dropout", "seed=0,1")
    names = [
        f"{n}_reg={reg}_seed={seed}_" for n, (reg, seed) in enumerate(product(("none", "dropout"), (0, 1)))
    ]
    folders = sorted(records_of(project))
    assert [folder.partition("root=")[0] for folder in folders] == names
    assert {len(folder) for folder in folders} == {82}
    assert "\n3  done    -     1.00%       reg=dropout seed=1  3_reg=dropout_seed=1_root=xxx" in answer.out


@pytest.mark.parametrize(
    "typed, sentence",
    [
        (
            "hydra.launcher.n_jobs=two",
            "hydra.launcher.n_jobs=two: expected a whole number of 1 or more, or -1.",
        ),
        ("hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0: expected a whole number of 1 or more, or -1."),
        (
            "hydra/launcher=submitit_local hydra.launcher.n_jobs=-1",
            "hydra.launcher.n_jobs=-1: expected a whole number of 1 or more.",
        ),
        (
            "hydra.launcher.threads=0",
            "hydra.launcher.threads=0: expected a whole number of 1 or more, or null.",
        ),
        (
            "search=optuna hydra.sweeper.trials=many",
            "hydra.sweeper.trials=many: expected a whole number of 1 or more.",
        ),
        (
            "search=optuna hydra.sweeper.trials=0",
            "hydra.sweeper.trials=0: expected a whole number of 1 or more.",
        ),
        (
            "search=optuna hydra.sweeper.minutes=-1",
            "hydra.sweeper.minutes=-1: expected a number above 0, or null.",
        ),
    ],
)
def test_the_values_of_a_sweeps_own_keys_are_checked(
    run: Command, project: Path, typed: str, sentence: str
) -> None:
    answer = run("-m", "seed=0,1", *typed.split(" "))
    assert (answer.code, answer.err) == (2, f"{sentence}\n")
    assert not (project / "logs").exists()


def test_a_run_at_work_elsewhere_keeps_its_record(tmp_path: Path) -> None:
    """A job's command may find its folder taken, or be killed before it does."""
    records.write(tmp_path, records.EMPTY | {"status": "running"})
    job = Job(0, [], tmp_path)
    claim = Claim(tmp_path)
    job.arguments()
    outcomes = [ended(job, code) for code in (2, -signal.SIGKILL, "Its machine is gone.")]
    claim.release()
    assert {(o.status, o.error) for o in outcomes} == {("elsewhere", "at work in another process")}
    assert records.read(tmp_path)["status"] == "running"
    assert ended(job, 2).status == records.read(tmp_path)["status"] == "failed"


def test_a_changed_yaml_makes_other_jobs(run: Command, project: Path, started: list[str]) -> None:
    run("-m", "seed=1,2")
    file = project / "conf/optimizer/sgd.yaml"
    file.write_text(file.read_text().replace("lr: 0.01", "lr: 0.1"))
    assert run("-m", "seed=1,2").code == 0
    assert len(started) == 4
    assert sorted(records_of(project)) == ["0_seed=1", "0_seed=1_2", "1_seed=2", "1_seed=2_2"]


def test_equal_jobs_run_once(run: Command, started: list[str]) -> None:
    answer = run("-m", "seed=1", "logger=none,tensorboard")
    assert started == ["#0 logger=none"]
    assert [row[1] for row in rows(answer)] == ["done", "skipped"]


def test_a_wrong_job_is_tried_again_in_its_folder(run: Command, project: Path, started: list[str]) -> None:
    typed = ["-m", "seed=1", "optimizer.lr=fast,0.5"]
    assert run(*typed).code == run(*typed).code == 1
    assert started == ["#1 optimizer.lr=0.5"]
    assert len(records_of(project)) == 2


def test_a_swept_number_of_devices_is_refused_in_its_job(run: Command, started: list[str]) -> None:
    answer = run("trainer.devices=1,2", "-m", "trainer.strategy=ddp")
    assert answer.code == 1
    assert started == ["#0 trainer.devices=1"]
    assert "#1: trainer.devices=2: each process would start the sweep again; sweep with one " in answer.out


def test_what_is_at_work_elsewhere_is_left_alone(run: Command, project: Path, started: list[str]) -> None:
    run("-m", "seed=1,2")
    sweep = next(project.glob("logs/sweeps/*"))
    job = sweep / "0_seed=1"
    records.write(job, records.read(job) | {"status": "running"})
    claim = Claim(job)
    answer = run("-m", "seed=1,2,3")
    claim.release()
    assert answer.code == 1
    assert [row[1] for row in rows(answer)] == ["elsewhere", "skipped", "done"]
    assert "\n#0: at work in another process\n1 elsewhere, 1 skipped, 1 done.\n" in answer.out
    assert answer.err.endswith("1 of 3 jobs did not end well; the same command tries them again.\n")
    claim = Claim(sweep)
    answer = run("-m", "seed=1,2")
    claim.release()
    assert answer.code == 2
    folder = sweep.relative_to(project)
    assert answer.err == f"{folder} is at work in another process; wait for it, or stop it.\n"


def test_a_run_cannot_be_resumed_while_it_runs(tmp_path: Path) -> None:
    claim = Claim(tmp_path)
    with pytest.raises(UserError, match="is at work in another process"):
        Claim(tmp_path)
    claim.release()
    Claim(tmp_path).release()


def test_who_asks_for_a_claim_is_in_nobodys_way(tmp_path: Path) -> None:
    """Neither of another who asks, nor of one who claims, who waits for it."""
    asking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert not is_claimed(tmp_path)
    Timer(0.1, os.close, [asking]).start()
    claim = Claim(tmp_path)
    assert is_claimed(tmp_path)
    claim.release()
    assert not is_claimed(tmp_path)


def test_of_equal_runs_the_finished_one_is_found(tmp_path: Path) -> None:
    """A torn record is passed over, a finished one preferred."""
    from cifarlab.sweeps.folders import Finder

    for number, (status, epochs) in enumerate([("failed", 9), ("done", 3), ("interrupted", 5)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        record = records.EMPTY | {"config_hash": "abc", "status": status, "epochs": epochs}
        records.write(folder, record)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/record.json").write_text('{"config_hash": "abc", ')
    found = Finder(tmp_path).find("abc")
    assert found is not None
    assert found[0].name == "1"
    assert Finder(tmp_path).find("abd") is None


def test_what_is_no_sweep_is_refused(run: Command, project: Path) -> None:
    for typed, sentence in {
        "force=true": "force=true is about a sweep: type -m.\n",
        "ablation=alone reg=[flip,crop]": "ablation=alone is about a sweep: type -m.\n",
        "search=optuna": "search=optuna is about a sweep: type -m.\n",
        "-m force=3": "force=3: expected true or false.\n",
        "-m ablation=alon reg=[flip]": "ablation=alon: did you mean 'alone'?\n",
        "-m ablation=alone": "ablation= needs a list of regularizers, such as ",
        "-m ablation=alone reg=[flip],[crop]": "reg=[flip],[crop]: ablation= takes one list of regularizers",
        "-m ablation=alone reg=[flip,flip]": "reg=[flip,flip]: ablation= takes one list of regularizers,",
        "-m ablation=alone reg=[flip] search=optuna": "ablation= runs all that it lists and search= ",
        "-m search=optuna data.validation=test": "data.validation=test: a search chooses by",
    }.items():
        answer = run(*typed.split(" "))
        assert answer.code == 2
        assert answer.err.startswith(sentence)
    assert not (project / "logs").exists()


def test_the_folder_of_a_sweep_is_the_latest_of_the_same(project: Path) -> None:
    from cifarlab.sweeps.folders import remember, sweep_folder

    for name, swept in {"a": ["seed=1,2"], "b": ["seed=1,2"], "c": ["seed=1"]}.items():
        folder = project / "logs/sweeps" / name
        folder.mkdir(parents=True)
        remember(folder, swept, forced=False)
    (project / "logs/sweeps/c/sweep.json").write_text("[]")
    typed = {"task": ["seed=1,2"], "hydra": ["hydra.launcher.n_jobs=3"]}
    assert sweep_folder(typed, "now") == "logs/sweeps/b"
    assert sweep_folder(typed | {"hydra": ["hydra.launcher.force=true"]}, "now") == "logs/sweeps/now"
    assert sweep_folder(typed | {"hydra": ["hydra.sweeper.ablation=alone"]}, "now") == "logs/sweeps/now"


def test_folds_are_cross_validated(run: Command, started: list[str]) -> None:
    typed = ["-m", "data.validation=fold", "data.fold=range(3)", "data.folds=3", "seed=0,13"]
    # the folds' accuracies are 0.1, 0.2 and 0.3; those of seed 13 failed
    said = "\nCross-validated accuracy over 3 folds: 20.00%, standard deviation 10.00% (seed=0)\n"
    assert said in run(*typed).out
    assert "Cross-validated" not in run("-m", "data.validation=fold", "data.fold=0,1", "data.folds=3").out
