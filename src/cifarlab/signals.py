"""Ctrl-C, SIGTERM and a closed terminal: the first ends a command in good order, a second at once."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stop(SystemExit):
    """What the first signal raises; its exit code is 130 after Ctrl-C, else 143.

    Not KeyboardInterrupt, of which Lightning would make something else, nor an Exception, which may be
    taken for the failure of whatever was at work.
    """

    def __init__(self, number: int) -> None:
        super().__init__(130 if number == signal.SIGINT else 143)
        names = {signal.SIGINT: "Ctrl-C", signal.SIGHUP: "the end of its terminal"}
        self.reason = f"stopped by {names.get(signal.Signals(number), 'SIGTERM')}"


NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
first: Stop | None = None  # the signal that came first
heard: Stop | None = None  # the same, unless it came too late
holding = False  # whether it is kept for later
settled = False  # whether it comes too late


def listen() -> None:
    """Let signals stop this command from now on; what is ignored, as under nohup, stays so."""
    global first, heard, holding, settled
    first, heard, holding, settled = None, None, False, False
    take_back()
    # behind Python's own last steps, which undo our handlers: the exit code is settled
    atexit.register(ignore)


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
        os._exit(int(str(first.code)))
    first = Stop(number)
    if not settled:
        heard = first
        check()


def check() -> None:
    """Raise the signal that came while it was held, or got lost in code that catches everything.

    Raises:
        Stop: there was one.
    """
    if heard is not None and not holding:
        raise heard


def settle() -> None:
    """From now on a first signal comes too late to change how the command ends."""
    global settled
    settled = True


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
