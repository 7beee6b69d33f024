"""How jobs share this machine, and how a second signal ends them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from cifarlab.signals import TOGETHER, Stop
from cifarlab.sweeps import here
from cifarlab.sweeps.jobs import Job
from cifarlab.sweeps.loop import Stopped, listening, run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One of eight cores and two GPUs, the third and the sixth of its host."""
    monkeypatch.setattr(here, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    return monkeypatch


def shares(*options: int | None) -> list[tuple[str | None, str | None]]:
    """Threads and GPU of each place."""
    engine = here.Here(*options)
    places = [engine.environment(slot) for slot in range(engine.room)]
    return [(place.get("OMP_NUM_THREADS"), place.get("CUDA_VISIBLE_DEVICES")) for place in places]


def test_jobs_share_cores_and_gpus(machine: pytest.MonkeyPatch) -> None:
    assert shares(-1) == [("4", "2"), ("4", "5")]
    assert shares(3) == [("2", "2"), ("2", "5"), ("2", "2")]
    assert shares(2, 6) == [("6", "2"), ("6", "5")]
    assert shares(1) == [(None, None)]  # one after another: as a single run would be
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert shares(-1) == [("1", None)] * 8
    assert shares(16, None) == [("1", None)] * 16


def test_gpus_are_those_that_the_driver_lists(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.delenv("CUDA_VISIBLE_DEVICES")
    machine.setenv("PATH", str(tmp_path))
    assert here.gpus() == []
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho GPU-1a\necho GPU-2b\n")
    driver.chmod(0o755)
    assert here.gpus() == ["GPU-1a", "GPU-2b"]


class Stubborn:
    """An engine with one job that ends only when killed."""

    room, pause = 1, 0.0

    def __init__(self, stopped: Stopped) -> None:
        self.stopped, self.ended, self.heard = stopped, None, []

    def start(self, jobs: list[Job]) -> list[Stubborn]:
        return [self]

    def code(self) -> int | None:
        self.stopped.note(signal.SIGINT, None)
        return self.ended

    def stop(self) -> None:
        self.heard.append("stop")

    def kill(self) -> None:
        self.heard.append("kill")
        self.ended = -signal.SIGKILL


def test_a_second_signal_kills(tmp_path: Path) -> None:
    stopped = Stopped()
    engine = Stubborn(stopped)
    jobs = iter([Job(0, [], tmp_path / "0"), Job(1, [], tmp_path / "1")])
    (outcome,) = run(jobs, engine, stopped)
    assert engine.heard == ["stop", "kill"]
    assert (outcome.job.number, outcome.status) == (0, "interrupted")
    with pytest.raises(Stop) as stop:
        stopped.leave()
    assert stop.value.code == 130


def test_signals_that_come_together_are_one() -> None:
    stopped = Stopped()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        stopped.note(number, None)
    assert len(stopped.signals) == 1
    stopped.signals[0].came -= TOGETHER
    stopped.note(signal.SIGHUP, None)
    assert len(stopped.signals) == 1
    stopped.note(signal.SIGTERM, None)
    assert len(stopped.signals) == 2


def test_what_stops_a_sweep_ends_its_command() -> None:
    for number, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 143)):
        with listening() as stopped:
            signal.raise_signal(number)
        with pytest.raises(SystemExit) as stop:
            stopped.leave()
        assert stop.value.code == code
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with listening() as stopped:
        signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)
    assert stopped.signals == []


def test_no_job_is_left_behind_when_the_sweep_itself_fails(tmp_path: Path) -> None:
    stopped = Stopped()
    engine = Stubborn(stopped)

    def watch(job: Job) -> bool:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        list(run(iter([Job(0, [], tmp_path)]), engine, stopped, watch))
    assert engine.heard == ["stop"]
