"""Commands as processes of their own, which can be killed, without the seconds that imports take.

The standard library's fork server imports torch and Lightning once; each command is then a fork of it that
has trained nothing yet.
"""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["cifarlab.training", "cifarlab.evaluation"])


def start(folder: Path, *arguments: str, script: str = "train.py", output: Path | None = None) -> BaseProcess:
    """Start a command as if typed in `folder`, which holds `conf`; its text goes to the file `output`."""
    process = server.Process(
        target=command, args=(folder, script, arguments, output or folder / "output.txt")
    )
    process.start()
    return process


def command(folder: Path, script: str, arguments: tuple[str, ...], output: Path) -> None:
    """What the fork does."""
    os.chdir(folder)
    text = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(text, 1)
    os.dup2(text, 2)
    sys.argv = [str(CHECKOUT / script), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def finish(folder: Path, *arguments: str, script: str = "train.py", seconds: float = 120) -> int:
    """Run a command to its end; returns its exit code, or minus the signal that ended it."""
    process = start(folder, *arguments, script=script)
    process.join(seconds)
    assert process.exitcode is not None, f"{arguments} is at work after {seconds} s"
    return process.exitcode
