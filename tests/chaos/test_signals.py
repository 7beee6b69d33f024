"""Ctrl-C, SIGTERM and a closed terminal at any moment of a command's life.

Each ends the command within ten seconds with the exit code that says so; a run that has begun is
`interrupted`, and goes on to the same bits. One that had not begun leaves no folder.
"""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from commands import QUICK
from processes import CHECKOUT, finish, start

from cifarlab.runs import record as records
from cifarlab.sweeps.folders import is_claimed

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}
RUN = [*QUICK, "logger=tensorboard"]
PATIENCE = 10  # seconds


class Whole:
    """A run that nothing stopped."""

    def __init__(self, place: Path) -> None:
        shutil.copytree(CHECKOUT / "conf", place / "conf")
        self.place = place
        finish(place, *RUN, "hydra.run.dir=warm")  # what the first one imports late
        began = time.monotonic()
        assert finish(place, *RUN, "hydra.run.dir=whole") == 0
        self.seconds = time.monotonic() - began
        self.ends = ends(place / "whole")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("signals"))


def ends(folder: Path) -> tuple[bytes, list, dict]:
    """The last weights, the history and the figures, less the seconds that they took."""
    with open(folder / "metrics.csv") as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    record = records.read(folder)
    kept = {key: record[key] for key in ("status", "error", "epochs", "steps", "val", "best_val", "test")}
    return (folder / "weights.safetensors").read_bytes(), rows, kept


def send(process: BaseProcess, number: int) -> None:
    assert process.pid is not None
    with suppress(ProcessLookupError):  # it has ended
        os.kill(process.pid, number)


def exit_code(code: int) -> int:
    """As a shell has it."""
    return code if code >= 0 else 128 - code


def check_stopped(folder: Path, text: str, second: bool = False) -> bool:
    """What a run leaves that was stopped; whether there is anything to go on with."""
    assert "Traceback" not in text
    if not (folder / "record.json").exists():
        assert second or not folder.exists()
        assert not list(folder.rglob("*.ckpt"))
        return False
    record = records.read(folder)
    last = folder / "checkpoints/last.ckpt"
    saved = torch.load(last, weights_only=True)["epoch"] + 1 if last.exists() else 0
    if not second:
        assert record["status"] == "interrupted"
        assert record["epochs"] == saved
        assert not [path for path in folder.rglob(".*")]
    assert record["epochs"] <= saved
    return True


def moments(count: int, seconds: float, seed: int) -> list[tuple[float, signal.Signals]]:
    """When to send which signal: spread over all of a run, in an order of chance."""
    chance = random.Random(seed)
    numbers = list(CODES)
    return [((k + chance.random()) / count * seconds, numbers[k % 3]) for k in range(count)]


def test_a_signal_at_any_moment(
    whole: Whole, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    count = tries(2, 90)
    for k, (moment, number) in enumerate(moments(count, 1.1 * whole.seconds, seed=0)):
        folder, output = whole.place / f"once{k}", whole.place / f"once{k}.txt"
        process = start(whole.place, *RUN, f"hydra.run.dir={folder}", output=output)
        time.sleep(moment)
        send(process, number)
        process.join(PATIENCE)
        text = output.read_text() if output.exists() else ""
        assert process.exitcode is not None, f"at work {PATIENCE} s after {number!r}"
        code = exit_code(process.exitcode)
        if code == 0:
            assert ends(folder) == whole.ends
        else:
            assert code == CODES[number], text
            if check_stopped(folder, text):
                assert finish(whole.place, f"resume={folder}") == 0
                assert ends(folder) == whole.ends
        shutil.rmtree(folder, ignore_errors=True)
    survived("signals, one at a time", count)


def test_a_second_signal_at_once(
    whole: Whole, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    count, chance = tries(1, 60), random.Random(1)
    for k, (moment, number) in enumerate(moments(count, whole.seconds, seed=2)):
        folder, output = whole.place / f"twice{k}", whole.place / f"twice{k}.txt"
        process = start(whole.place, *RUN, f"hydra.run.dir={folder}", output=output)
        time.sleep(moment)
        send(process, number)
        time.sleep(chance.random() ** 4)  # more often a short time than a long one
        send(process, number)
        process.join(2)
        text = output.read_text() if output.exists() else ""
        assert process.exitcode is not None, f"at work 2 s after a second {number!r}"
        code = exit_code(process.exitcode)
        assert code in (0, CODES[number]), text
        if code and check_stopped(folder, text, second=True):
            assert finish(whole.place, f"resume={folder}") == 0
        if (folder / "record.json").exists():
            assert ends(folder) == whole.ends
        assert not [path for path in folder.rglob(".*")]
        shutil.rmtree(folder, ignore_errors=True)
    survived("signals, two behind each other", count)


def test_a_signal_while_all_is_imported(
    whole: Whole, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """As a process of its own, which imports torch and Lightning."""
    count = tries(1, 40)
    for moment, number in moments(count, 4, seed=3):
        folder = whole.place / "imported"
        line = [sys.executable, CHECKOUT / "train.py", *RUN, f"hydra.run.dir={folder}"]
        process = subprocess.Popen(line, cwd=whole.place, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        time.sleep(moment)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
        assert exit_code(process.returncode) == CODES[number], said
        if process.returncode > 0:  # below, Python itself had not come to our first line
            check_stopped(folder, said.decode())
        shutil.rmtree(folder, ignore_errors=True)
    survived("signals, one at a time", count)


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_signal_to_a_sweep(
    whole: Whole,
    launcher: str,
    alone: bool,
    request: pytest.FixtureRequest,
    survived: Callable[[str, int], None],
) -> None:
    """Ctrl-C as a terminal sends it, to the whole group, and SIGTERM as `kill` does, to the sweep alone."""
    if launcher == "submitit_local":
        pytest.importorskip("submitit")
    if not request.config.getoption("--chaos"):  # tests/sweeps stops one that takes less time
        pytest.skip("tried by make chaos")
    number = signal.SIGTERM if alone else signal.SIGINT
    typed = ["-m", *QUICK, "seed=0,1", f"hydra/launcher={launcher}"]
    typed += ["hydra.launcher.n_jobs=2"] if launcher != "basic" else []
    count, chance = 3, random.Random(launcher)
    for k in range(count):
        place = whole.place / "sweep"
        shutil.copytree(CHECKOUT / "conf", place / "conf")
        line = [sys.executable, CHECKOUT / "train.py", *typed]
        with (place / "said.txt").open("w") as output:
            sweep = subprocess.Popen(line, cwd=place, stderr=output, stdout=output, start_new_session=True)
        time.sleep(1 + 12 * (k + chance.random()) / count)
        tell = partial(os.kill if alone else os.killpg, sweep.pid, number)
        tell()
        if k % 2:
            time.sleep(chance.random())
            with suppress(ProcessLookupError):
                tell()
        code, said = exit_code(sweep.wait(PATIENCE)), (place / "said.txt").read_text()
        assert code in (0, CODES[number]), said
        for record in place.glob("logs/*/*/*/record.json"):
            assert not is_claimed(record.parent)
            assert records.read(record.parent)["status"] in ("interrupted", "done"), said
        again = subprocess.run(line, cwd=place, capture_output=True, text=True)
        assert again.returncode == 0, again.stdout + again.stderr
        (first,) = place.glob("logs/sweeps/*/0_*")
        assert ends(first) == whole.ends
        shutil.rmtree(place)
    survived("signals, to sweeps", count)


def test_without_its_terminal(whole: Whole) -> None:
    """A run whose reader is gone goes on, its log complete; under nohup so does one without a terminal."""
    folder = whole.place / "piped"
    line = [sys.executable, CHECKOUT / "train.py", *RUN, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(
        ["nohup", *line],
        cwd=whole.place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 0
    assert ends(folder) == whole.ends
    assert "Run folder: piped" in (folder / "train.log").read_text()
