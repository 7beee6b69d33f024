"""A project to sweep in, and jobs that are over as soon as they start."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from commands import Command
from pretend import COMMAND

from cifarlab.runs import record as records
from cifarlab.sweeps import here
from cifarlab.sweeps.jobs import Job

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(workplace: Path) -> Path:
    """With a command of its own."""
    (workplace / "train.py").write_text(COMMAND)
    return workplace


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the jobs that were started: instead of processes, records that say done at once."""
    titles: list[str] = []

    class Instant:
        def __init__(self, job: Job, environment: dict[str, str], aloud: bool) -> None:
            arguments = job.arguments()
            resumed = any(argument.startswith("resume=") for argument in arguments)
            titles.append(f"{job.title} resumed" if resumed else job.title)
            assert job.settled is not None
            plain, choices = job.settled.plain, job.settled.choices
            record = records.read(job.folder) if resumed else records.new(plain, choices)
            best = min(plain["optimizer"]["lr"], 0.5)
            failed = plain["seed"] == 13
            record |= {
                "status": "failed" if failed else "done",
                "error": "The loss became NaN in epoch 3." if failed else None,
                "overrides": job.settled.overrides,
                "config_hash": job.config_hash,
                "best_val": {"accuracy": best, "loss": 1.0, "epoch": 1},
                "val": {"accuracy": (1 + plain["data"]["fold"]) / 10, "loss": 1.0},
            }
            job.folder.mkdir(parents=True, exist_ok=True)
            records.write_config(job.folder, plain)
            records.write(job.folder, record)
            self.ended = int(failed)

        def code(self) -> int:
            return self.ended

        def stop(self) -> None: ...

        def kill(self) -> None: ...

    monkeypatch.setattr(here, "Process", Instant)
    monkeypatch.setattr(here.Here, "pause", 0)
    return titles


@pytest.fixture
def run(command: Command, project: Path) -> Command:
    return partial(command, project / "train.py")
