"""Fixtures that tests of several commands share."""

import logging
import runpy
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Answer, Command
from hydra.core.global_hydra import GlobalHydra

from cifarlab.signals import NUMBERS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos", action="store_true", help="try what tests/chaos tries as often as promised")


def pytest_configure() -> None:
    """Let commands hear the signals that they are sent, which are ignored in what a shell starts in the
    background or under nohup."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests/chaos counted."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        counts.update({name: count for name, count in report.user_properties if name.startswith("chaos: ")})
    if counts:
        terminalreporter.section("survived")
        for name, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count:>7,}  {name.removeprefix('chaos: ')}")


@pytest.fixture(autouse=True)
def answers() -> Iterator[None]:
    """Gives signals back the answers they had: commands set their own, and one more SIGPIPE would end all."""
    before = {number: signal.getsignal(number) for number in (signal.SIGPIPE, *NUMBERS)}
    yield
    for number, answer in before.items():
        signal.signal(number, answer)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a script with arguments in this process, as if typed."""
    handlers, level = logging.root.handlers[:], logging.root.level

    def command(script: object, *arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        finally:
            GlobalHydra.instance().clear()
        return Answer(code, *capsys.readouterr())

    yield command
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a copy of the configuration."""
    shutil.copytree(Path(__file__).parents[1] / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    return tmp_path
