"""What the README shows works: its commands run, its code trains, its tables name what there is."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

# appended to a training command so that it takes a second; the last of two values counts
SHORT = [
    "export=none",
    "data.batch_size=8",
    "data.eval_batch_size=8",
    "trainer.max_epochs=1",
    *(f"trainer.limit_{s}_batches=1" for s in ("train", "val", "test")),
]
# runs command after command in one process, and the jobs of a sweep in forks of it: importing torch takes
# longer than any of them
RUN_ALL = """
import contextlib, io, json, os, runpy, signal, sys, traceback

from hydra.core.global_hydra import GlobalHydra

import cifarlab.runs.callbacks as callbacks
import cifarlab.sweeps.here as here
import cifarlab.training


def run(arguments):
    os.environ.pop("HYDRA_FULL_ERROR", None)
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


class Forked:
    def __init__(self, job, environment, aloud):
        self.pid, self.ended = os.fork(), None
        if self.pid == 0:
            code = 1
            try:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                GlobalHydra.instance().clear()
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    code = run(job.arguments()[1:])
            finally:
                os._exit(code)

    def code(self):
        if self.ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.ended = os.waitstatus_to_exitcode(status) if pid else None
        return self.ended


here.Process = Forked
results = []
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run(arguments)
    results.append((code, said.getvalue()))
    callbacks.draw_curves = lambda *_: None  # the first run's are enough: a third of the time
json.dump(results, sys.stdout)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def table(heading: str) -> list[list[str]]:
    """The cells below the header of the first table after a heading."""
    rows = re.search(rf"^## {heading}\n.*?^\|---[^\n]*\n((?:\|[^\n]*\n)+)", README, re.M | re.S)
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]


def code_words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options(group: str) -> list[str]:
    folder = ROOT / "conf" / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


SHOWN = [line for block in blocks("bash") for line in block.splitlines()]
COMMANDS = [line for line in SHOWN if line.startswith("python ")]
MISTAKES = [block.removeprefix("$ ").splitlines() for block in blocks("text")]


def make(target: str) -> str:
    """The commands behind a target of the Makefile, when nothing is installed yet."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--no-print-directory", "-n", target, "VENV=absent"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return said.replace("\\\n", " ")


def shortened(command: str, folder: str) -> list[str]:
    """The script and arguments of a command, on the digits, with what makes a training short behind them."""
    script, *typed = [word.replace("DIR", folder) for word in shlex.split(command)[1:]]
    typed = [word.replace("range(3)", "range(1)") for word in typed]
    if script == "explore.py":
        return [script, *typed, "data=digits"]
    if script == "evaluate.py":
        return [script, *(word for word in typed if not word.startswith("data.root="))]
    if script != "train.py":
        return [script, *typed]
    if f"resume={folder}" in typed:
        return [script, *typed, "trainer.max_epochs=2"]
    trials = ["hydra.sweeper.trials=2"] if "search=optuna" in typed else []
    data = [] if "data=arrays" in typed else ["data=digits"]
    return [script, *typed, *data, *SHORT, *trials]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the README's three additions."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, copy)
    for block in blocks("python") + blocks("yaml"):
        path = copy / block.splitlines()[0].removeprefix("# ")
        with open(path, "a") as file:
            file.write(block)
    (copy / "photos").mkdir()
    Image.new("RGB", (48, 64), "red").save(copy / "photos" / "red.png")
    (copy / "data").mkdir()
    images, labels = np.zeros((40, 3, 32, 32), np.uint8), np.arange(40) % 4
    np.savez(
        copy / "data" / "arrays.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    return copy


@pytest.fixture(scope="module")
def outcomes(project: Path) -> dict[str, tuple[int, str]]:
    """Each command's exit code and what it said, after a first run that the others may resume."""
    commands = ["python train.py hydra.run.dir=first", *COMMANDS, *(command for command, _ in MISTAKES)]
    arguments = [shortened(command, "first") for command in commands]
    arguments[0].append("export=pt2")
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        cwd=project,
        env=environment,
        input=json.dumps(arguments),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {command: tuple(result) for command, result in zip(commands, json.loads(done.stdout), strict=True)}


def test_every_command_is_known() -> None:
    others = [line for line in SHOWN if line not in COMMANDS]
    assert sorted(others) == ["make demo", "make test", "pip install -e ."]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(outcomes: dict[str, tuple[int, str]], command: str) -> None:
    code, said = outcomes[command]
    assert code == 0, said


@pytest.mark.parametrize("command, answer", MISTAKES)
def test_mistake_is_answered_as_shown(
    outcomes: dict[str, tuple[int, str]], command: str, answer: str
) -> None:
    assert outcomes[command] == (2, answer + "\n")


def test_additions_took_part(project: Path, outcomes: dict[str, tuple[int, str]]) -> None:
    records = [json.loads(path.read_text()) for path in (project / "logs" / "runs").glob("*/record.json")]
    assert {record["status"] for record in records} == {"done"}
    choices = [record["choices"] for record in records]
    assert any(chosen["model"] == "mlp" and chosen["reg"] == ["dropout"] for chosen in choices)
    assert any(chosen["reg"] == ["noise", "flip"] for chosen in choices)
    assert any(
        record["data"]["name"] == "arrays" and record["data"]["num_classes"] == 4 for record in records
    )


def test_a_run_leaves_what_the_table_says(project: Path, outcomes: dict[str, tuple[int, str]]) -> None:
    folder = project / "first"
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    named = [code_words(name)[0] for name, _ in table("What a run leaves")]
    assert [name for name in named if not any(fnmatch(file, name) for file in files)] == []
    columns = next(holds for name, holds in table("What a run leaves") if "metrics.csv" in name)
    assert code_words(columns)[0] == (folder / "metrics.csv").read_text().splitlines()[0]


def test_make_installs_and_then_does_its_job() -> None:
    for target, job in (
        ("demo", "absent/bin/python train.py data=digits"),
        ("test", "absent/bin/python -m pytest"),
    ):
        said = make(target)
        assert said.index("-m venv absent") < said.index("pip install -e") < said.index(job)


def test_make_demo_runs_a_command_that_exists() -> None:
    words = shlex.split(make("demo").splitlines()[-1])
    for word in words[words.index("train.py") + 1 :]:
        group, _, option = word.partition("=")
        assert "." in group or option in options(group)


@pytest.mark.parametrize(
    "group, shown", [(code_words(row[0])[0], code_words(row[1])) for row in table("Groups and keys")]
)
def test_group_table_lists_the_options(group: str, shown: list[str]) -> None:
    if group == "experiment":
        shown = [
            name.partition("experiment=")[2] for row in table("Experiments") for name in code_words(row[-1])
        ]
    assert sorted(shown) == options(group)


@pytest.mark.parametrize("row", table("Experiments"), ids=lambda row: row[0])
def test_experiment_table_says_what_the_experiment_says(row: list[str]) -> None:
    number, _, epochs, aim, command = row
    name = code_words(command)[0].partition("experiment=")[2]
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    assert f"row {number}" in text
    assert f"max_epochs: {epochs}\n" in text
    assert aim in text.replace("accuracy ", "")


def test_links_lead_somewhere() -> None:
    files = re.findall(r"\]\(([^)#:]+)\)", README)
    assert [name for name in files if not (ROOT / name).exists()] == []
