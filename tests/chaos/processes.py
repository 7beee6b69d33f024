"""Commands as processes of their own, which can be killed, without the seconds that imports take.

The standard library's fork server imports torch and Lightning once; each command is then a fork of it that
has trained nothing yet.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    ["cifarlab.training", "cifarlab.evaluation", "cifarlab.cli", "sklearn.datasets", __name__]
)


def start(
    folder: Path,
    *arguments: str,
    script: str = "train.py",
    output: Path | None = None,
    before: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start a command as if typed in `folder`, which holds `conf`; its text goes to the file `output`.

    `before`, which must be one that can be pickled, is called first in the process.
    """
    process = server.Process(
        target=command, args=(folder, script, arguments, output or folder / "output.txt", before)
    )
    process.start()
    return process


def command(
    folder: Path, script: str, arguments: tuple[str, ...], output: Path, before: Callable[[], None] | None
) -> None:
    """What the fork does."""
    os.chdir(folder)
    text = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(text, 1)
    os.dup2(text, 2)
    if before is not None:
        before()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # multiprocessing has an exit code of its own for Ctrl-C
    sys.argv = [str(CHECKOUT / script), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def ended(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for its end; returns its exit code, or minus the signal that ended it."""
    process.join(seconds)
    assert process.exitcode is not None, f"at work after {seconds} s"
    return process.exitcode


def finish(
    folder: Path,
    *arguments: str,
    script: str = "train.py",
    seconds: float = 120,
    before: Callable[[], None] | None = None,
) -> int:
    """Run a command to its end; returns its exit code, or minus the signal that ended it."""
    return ended(start(folder, *arguments, script=script, before=before), seconds)


def kill_at(run: Path, moment: int | None) -> None:
    """Have this process killed at the so manieth moment at which a file of the run's folder comes or goes.

    Each file is written beside its place and then renamed, and what may be left beside it is removed: two
    moments, at the first of which it is torn, for the kill comes while half of it is written. Between two
    moments only the log and TensorBoard's file, which is no one's to resume from, grow. Each moment is noted
    in a file beside the folder.
    """
    noted = open(run.with_suffix(".moments"), "w")  # noqa: SIM115
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in ("os.rename", "os.remove", "open") or not isinstance(arguments[0], str):
            return
        path = Path(arguments[0])
        if run not in path.parents or (event == "open" and path.name != "train.log"):
            return
        count += 1
        noted.write(f"{event} {path.name}\n")
        noted.flush()
        if count == moment:
            if event == "os.rename":
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
