"""The loop that all sweeps share: start a job where there is room, see how it goes, stop when told to."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from cifarlab import signals
from cifarlab.sweeps.jobs import Job, Outcome, ended

log = logging.getLogger(__name__)

Watch = Callable[[Job], bool]


class Work(Protocol):
    """A job that was started."""

    def code(self) -> int | str | None:
        """None while it runs, then its exit code (below 0 the signal that killed it), or what went wrong."""

    def stop(self) -> None:
        """Ask it to save its last finished epoch and end."""

    def kill(self) -> None:
        """End it at once."""


class Engine(Protocol):
    """Starts jobs, here or elsewhere."""

    room: int  # how many there may be at once
    pause: float  # seconds between two looks at them

    def start(self, jobs: list[Job]) -> list[Work]:
        """Start those jobs, no more than there is room for."""


class Stopped:
    """The signals that have come: the first asks the jobs to end, a second kills them."""

    def __init__(self) -> None:
        self.signals: list[signals.Stop] = []

    def note(self, number: int, frame: object) -> None:
        if not self.signals or self.signals[0].is_pressed(number):
            self.signals.append(signals.Stop(number))

    def leave(self) -> None:
        """Raises what the first signal means.

        Raises:
            Stop: there was one.
        """
        if self.signals:
            raise self.signals[0]


@contextmanager
def listening() -> Iterator[Stopped]:
    """Collects the signals that stop a sweep; what was ignored before, as under nohup, stays so."""
    stopped, before = Stopped(), {}
    for number in signals.NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stopped.note)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    jobs: Iterator[Job], engine: Engine, stopped: Stopped, watch: Watch | None = None
) -> Iterator[Outcome]:
    """Run the jobs, each drawn when there is room for it, and yield what comes of them as it comes.

    Args:
        stopped: once it holds a signal no more jobs are started, and those at work are stopped.
        watch: looks at a job at work; True stops it.
    """
    working: list[tuple[Job, Work]] = []
    heard, asked = 0, set()
    try:
        while True:
            new, known = draw(jobs, 0 if stopped.signals else engine.room - len(working))
            yield from known
            for job in new:
                log.info(f"{job.title}: {'goes on' if job.goes_on else 'starts'}")
            working += zip(new, engine.start(new) if new else [], strict=True)
            if not working and (stopped.signals or not known):
                return
            if len(stopped.signals) > heard:
                heard = len(stopped.signals)
                log.info(
                    f"Stopping {len(working)} at work; a second signal kills them."
                    if heard == 1
                    else "Killing."
                )
                for _, work in working:
                    work.stop() if heard == 1 else work.kill()
            time.sleep(engine.pause if working else 0)
            for job, work in list(working):
                if (code := work.code()) is not None:
                    working.remove((job, work))
                    if heard > 1 and code == -signal.SIGKILL:  # our doing, not the kernel's
                        code = stopped.signals[0].code
                    yield ended(job, code)
                elif watch is not None and job.number not in asked and watch(job):
                    asked.add(job.number)
                    work.stop()
    finally:  # whatever went wrong here, no job is left behind
        for _, work in working:
            work.stop()


def draw(jobs: Iterator[Job], room: int) -> tuple[list[Job], list[Outcome]]:
    """As many jobs to start as there is room for, and the outcomes of those passed over that have one."""
    new: list[Job] = []
    known: list[Outcome] = []
    while len(new) < room and (job := next(jobs, None)) is not None:
        if job.outcome is None:
            new.append(job)
        else:
            known.append(job.outcome)
    return new, known
