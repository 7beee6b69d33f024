"""Ctrl-C, SIGTERM and a closed terminal at any moment of a command's life.

Each ends the command within ten seconds with the exit code that says so; a run that has begun is
`interrupted`, and goes on to the same bits. One that had not begun leaves no folder.
"""

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
from folders import ends
from processes import CHECKOUT, finish, start

from cifarlab.runs import record as records
from cifarlab.signals import TOGETHER
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
    assert text.count("Stopped by ") == 1 or second, text
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
    assert (record["best_val"]["epoch"] or 0) <= record["epochs"] <= saved
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
        # more often a short time than a long one
        time.sleep(chance.random() ** 4 + (0 if number == signal.SIGINT else TOGETHER))
        send(process, signal.SIGTERM if number == signal.SIGHUP else number)
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


def test_signals_that_come_together(
    whole: Whole, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """SIGTERM and SIGHUP are one wish at logout, and so are two SIGTERMs, of a group and of its sweep."""
    pairs = [(signal.SIGTERM, signal.SIGHUP), (signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM,) * 2]
    count, chance = tries(1, 30), random.Random(4)
    for k in range(count):
        folder, output = whole.place / f"pair{k}", whole.place / f"pair{k}.txt"
        process = start(whole.place, *RUN, f"hydra.run.dir={folder}", output=output)
        while process.is_alive() and not (folder / "record.json").exists():
            time.sleep(0.01)
        time.sleep(chance.random() * whole.seconds / 4)
        for number in pairs[k % 3]:
            send(process, number)
            time.sleep(chance.random() / 10)
        process.join(PATIENCE)
        if process.exitcode == 0:
            assert ends(folder) == whole.ends
        else:
            assert process.exitcode == 143
            assert check_stopped(folder, output.read_text())
        shutil.rmtree(folder, ignore_errors=True)
    survived("signals, two together", count)


DOORS = {
    "train.py": RUN,
    "evaluate.py": ["run=whole", "out=evaluated"],
    "predict.py": ["run=whole", "images=images"],
    "explore.py": ["data=digits", "out=explored"],
    "report.py": ["whole"],
}


def test_a_signal_while_all_is_imported(
    whole: Whole, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """As processes of their own, each of which imports torch or matplotlib, from their first line on."""
    count, chance = tries(1, 20), random.Random(3)
    for k in range(count):
        processes = [
            subprocess.Popen(
                [sys.executable, CHECKOUT / door, *typed],
                cwd=whole.place,
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for door, typed in DOORS.items()
        ]
        number = list(CODES)[k % 3]
        for process in processes:
            wait_for_its_first_line(process.pid)
            time.sleep(chance.uniform(0, 0.3) if k else 0)
            process.send_signal(number)
        for process in processes:
            said = "".join(process.communicate(timeout=PATIENCE))
            assert process.returncode == CODES[number], said
            assert "Traceback" not in said
            assert said.count("Stopped by ") == 1
        assert not (whole.place / "logs").exists()
    survived("signals, while all is imported", count * len(DOORS))


def wait_for_its_first_line(process: int) -> None:
    """Until it handles SIGTERM, which Python itself does not."""
    caught = 0
    while not caught >> signal.SIGTERM - 1 & 1:
        time.sleep(0.001)
        status = Path(f"/proc/{process}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)


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
    chaos = request.config.getoption("--chaos")
    if not chaos and (launcher != "basic" or alone):
        pytest.skip("tried by make chaos")
    number = signal.SIGTERM if alone else signal.SIGINT
    typed = ["-m", *QUICK, "seed=0,1", f"hydra/launcher={launcher}"]
    typed += ["hydra.launcher.n_jobs=2"] if launcher != "basic" else []
    count, chance = 3 if chaos else 1, random.Random(launcher)
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
