"""Ctrl-C, SIGTERM and a closed terminal: the first ends a command in good order, a second at once.

Light to import: a command listens in its first line, before the seconds that all else takes.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

TOGETHER = 1.0  # seconds within which signals of several senders are one wish


class Stop(SystemExit):
    """What the first signal raises; its exit code is 130 after Ctrl-C, else 143.

    Not KeyboardInterrupt, of which Lightning would make something else, nor an Exception, which may be
    taken for the failure of whatever was at work.
    """

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(130 if number == signal.SIGINT else 143)
        self.number, self.came = number, time.monotonic()
        names = {signal.SIGINT: "Ctrl-C", signal.SIGHUP: "the end of its terminal"}
        self.reason = f"Stopped by {names.get(signal.Signals(number), 'SIGTERM')}"
        self.told = False  # whether the user has read the reason

    def is_pressed(self, number: int) -> bool:
        """Whether that signal, behind the first, wishes the end at once.

        Ctrl-C typed twice does. At logout systemd sends SIGTERM and SIGHUP together, and a job gets SIGTERM
        both with all of its group and from its sweep.
        """
        if number == self.number == signal.SIGINT:
            return True
        return number != signal.SIGHUP and time.monotonic() - self.came > TOGETHER


NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
first: Stop | None = None  # the signal that came first
heard: Stop | None = None  # the same, unless it came too late
holding = False  # whether it is kept for later
late = False  # whether it comes too late


def listen() -> None:
    """Keep signals from now on, until `heed`; what is ignored, as under nohup, stays so."""
    global first, heard, holding, late
    first, heard, holding, late = None, None, True, False
    take_back()
    # behind Python's own last steps, which undo our handlers: the exit code is settled
    atexit.register(ignore)


def heed() -> None:
    """Let signals stop this command from now on.

    Raises:
        Stop: one has come since it listens.
    """
    global holding
    holding = False
    check()


def take_back() -> None:
    """Take the signals back from Lightning, which would only look at them between two batches."""
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, hear)


def ignore() -> None:
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def hear(number: int, frame: object) -> None:
    global first, heard
    if first is not None:
        if first.is_pressed(number):
            os._exit(first.code)
        return
    first = Stop(number)
    if not late:
        heard = first
        check()


def check() -> None:
    """Raise the signal that came while it was held, or got lost in code that catches everything.

    Raises:
        Stop: there was one.
    """
    if heard is not None and not holding:
        raise heard


def too_late() -> None:
    """From now on a first signal no longer changes how the command ends."""
    global late
    late = True


@contextmanager
def held() -> Iterator[None]:
    """Finish this first: what belongs together on the disk.

    Raises:
        Stop: a signal has come meanwhile.
    """
    global holding
    before, holding = holding, True
    try:
        yield
    finally:
        holding = before
    check()
