"""Jobs in submitit's queue: its local one, and what it would tell SLURM; jobs that ray has."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import Command
from pretend import records_of, rows, start

needs_submitit = pytest.mark.skipif(find_spec("submitit") is None, reason="submitit is not installed")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


@needs_submitit
def test_submitit_runs_jobs_on_this_machine(run: Command, project: Path) -> None:
    answer = run(
        "-m", "hydra/launcher=submitit_local", "hydra.launcher.n_jobs=2", "seed=1,15", "trainer.max_epochs=1",
        "optimizer.lr=0.3",
    )  # fmt: skip
    assert answer.code == 1
    assert rows(answer) == [["0", "done", "29.00%", "30.00%"], ["1", "failed", "-", "30.00%"]]
    killed = "Killed by SIGKILL, possibly for its memory."
    assert [record["error"] for _, record in sorted(records_of(project).items())] == [None, killed]


@needs_submitit
def test_at_its_time_limit_a_job_goes_on_in_a_new_one(project: Path) -> None:
    typed = ["-m", "hydra/launcher=submitit_local", "seed=16", "optimizer.lr=0.3", "trainer.max_epochs=100"]
    sweep = start(*typed)
    while not any(record["epochs"] for record in records_of(project).values()):
        assert sweep.poll() is None
        time.sleep(0.05)
    # submitit's controller gives its folder its own number, and at the limit signals its child
    (controller,) = (path.name for path in project.glob("logs/sweeps/*/.submitit/*") if path.name.isdigit())
    (child,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(child), signal.SIGUSR2)
    sweep.communicate()
    assert sweep.returncode == 0
    (record,) = records_of(project).values()
    assert (record["status"], record["epochs"]) == ("done", 100)
    (log,) = project.glob("logs/sweeps/*/.submitit/*/*_log.out")
    assert log.read_text().count("Requeued job") == 1
    (metrics,) = project.glob("logs/sweeps/*/*/metrics.csv")
    assert 1 < len(metrics.read_text().splitlines()) < 101  # the second command's epochs alone


def fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@needs_submitit
def test_slurm_gets_an_array_that_is_queued_again_at_its_limit(
    run: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sbatch` keeps the script and runs its tasks one after another, as SLURM would set them going."""
    bin_ = project / "bin"
    bin_.mkdir()
    fake(
        bin_,
        "srun",
        'while [ "$1" != "${1#-}" ]; do case $1 in --output|--error) shift;; esac; shift; done\n"$@"',
    )
    fake(bin_, "scontrol", "exit 0")
    fake(bin_, "sacct", "echo 'JobID|State|NodeList'")
    fake(
        bin_,
        "sbatch",
        f'cp "$1" {project}/script.sh\n'
        "echo 'Submitted batch job 7'\n"
        "export SLURM_ARRAY_JOB_ID=7 SLURM_JOB_NODELIST=here SLURM_PROCID=0 SUBMITIT_EXECUTOR=slurm\n"
        f"exec > {project}/out 2>&1\n"
        '(for task in 0 1; do sleep 1; SLURM_JOB_ID=$((8 + task)) SLURM_ARRAY_TASK_ID=$task sh "$1"; done) &',
    )
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    answer = run(
        "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu",
        "hydra.launcher.timeout_min=90", "seed=1,2", "trainer.max_epochs=1", "optimizer.lr=0.3",
    )  # fmt: skip
    assert answer.code == 0, (project / "out").read_text()
    assert [row[1:3] for row in rows(answer)] == [["done", "29.00%"], ["done", "28.00%"]]
    script = (project / "script.sh").read_text()
    for line in (
        "--array=0-1%2", "--time=90", "--partition=gpu", "--gpus-per-node=1", "--mem=16GB",
        "--job-name=cifarlab", "--signal=USR2@120",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in script


@needs_submitit
def test_without_slurm_there_is_one_sentence(
    run: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    answer = run("-m", "hydra/launcher=submitit_slurm", "seed=1")
    assert answer.code == 2
    assert answer.err.startswith("hydra/launcher=submitit_slurm: ")
    assert "srun" in answer.err
    assert answer.err.count("\n") == 1


@needs_ray
def test_ray_runs_jobs_on_this_machine(run: Command, project: Path) -> None:
    ray = pytest.importorskip("ray")
    answer = run(
        "-m", "hydra/launcher=ray", "hydra.launcher.num_cpus=1", "seed=1,15", "trainer.max_epochs=1",
        "optimizer.lr=0.3",
    )  # fmt: skip
    ray.shutdown()
    assert answer.code == 1
    assert rows(answer) == [["0", "done", "29.00%", "30.00%"], ["1", "failed", "-", "30.00%"]]


@pytest.mark.parametrize("engine, extra", [("ray", "ray"), ("submitit_local", "submitit")])
def test_what_is_not_installed_is_asked_for(
    run: Command, monkeypatch: pytest.MonkeyPatch, engine: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    answer = run("-m", f"hydra/launcher={engine}", "seed=1")
    assert answer.code == 2
    assert answer.err == f"hydra/launcher={engine} needs {extra}: pip install -e '.[{extra}]'.\n"
