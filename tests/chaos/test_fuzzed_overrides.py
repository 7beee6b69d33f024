"""What anybody may type after a command's name: a valid configuration or one sentence, never a traceback."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from synthetic import write_run

from cifarlab import config as configs
from cifarlab.cli import Door, settle
from cifarlab.mistakes import explain, said
from cifarlab.report import command as report

KEYS = """
model reg data optimizer scheduler trainer logger experiment search ablation force resume start_from
run images out gallery fit top weights split flips seed test test_weights export model.width
model.blocks model.dense model.dropout model.padding model._target_ reg.dropout reg.dropout.rate
reg.x._target_ data.root data.mirrors data.fold data.folds data.validation data.batch_size
data.scaling optimizer.lr optimizer.betas scheduler.warmup trainer.max_epochs trainer.precision
trainer.devices trainer.max_time trainer.callbacks trainer.profiler logger.log_graph hydra
hydra/launcher hydra/sweeper hydra.launcher.n_jobs hydra.verbose nonsense model.nonsense baseline
metric sort
"""
VALUES = r"""
vgg3 vgg1 resnet18 none dropout [dropout,flip] [] {} {a:1} {_target_:os.system} [[2],[2,2]] cifar100
digits sgd adam cosine plateau null true false 0 1 -1 0.5 1e400 nan inf -inf
99999999999999999999999999 0x10 1_0 '' "" ' " [ ] { } ( ) , = == : a,b range(3) range(0,1e9)
interval(0,1) choice(a,b) glob(*) sort(3,1) shuffle(a,b) tag(log,interval(1e-4,1)) int(3.5) float(x)
str(1) bool(3) json_str(1) extend_list(1) ${seed} ${oc.env:HOME} ${oc.env:NOT_THERE} ${nothing} ${
${} ${oc.decode:"1:"} ${run_folder:1} ??? \ \\ \, / . .. ../.. /dev/null /proc/self/mem ~ * ? % # @
! & | ; ` < > <b> $(id) test=1 a.csv a.png - -- ALL test val name time
"""
LETTERS = st.text(
    st.one_of(st.characters(), st.sampled_from("=.,[]{}()'\"\\$:/@~+ \t\n\0\x1b\u202e\ud800")), max_size=12
)
FLAGS = """
-m --multirun --cfg --help -h --info --version --package --config-name --config-dir --resolve --x -c job
"""


@st.composite
def override(draw: st.DrawFn) -> str:
    """A key and a value that are or look like some that there are, sometimes with letters changed."""
    value = draw(
        st.one_of(st.sampled_from(VALUES.split()), LETTERS, st.integers().map(str), st.floats().map(str))
    )
    if draw(st.booleans()):
        value += draw(st.sampled_from(["", ",", "]", "'", " ", "=1"])) + draw(st.sampled_from(VALUES.split()))
    sign = draw(st.sampled_from(["", "", "", "", "+", "++", "~"]))
    key, joint = draw(st.sampled_from(KEYS.split())), draw(st.sampled_from(["=", "=", "=", "", "@a=", ".b="]))
    text = sign + key + joint + value
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(LETTERS) + text[place + draw(st.integers(0, 3)) :]
    text = draw(st.sampled_from([text, text, text, text, text * 30, draw(LETTERS)]))
    return text.replace("\0", "")  # which no command line can hold


COMMANDS = {
    "train": None,
    "evaluate": "cifarlab.evaluation.evaluate",
    "predict": "cifarlab.prediction.predict",
    "explore": "cifarlab.exploration.explore",
}
typed = st.lists(st.one_of(override(), override(), override(), st.sampled_from(FLAGS.split())), max_size=3)


def sentence(name: str, arguments: list[str]) -> str | None:
    """What the command says to be wrong with what was typed, up to where it would import torch."""
    door = Door(f"{name}.py", sweeps=name == "train")
    try:
        door.read(arguments)
        if door.flags.help or door.flags.cfg or door.flags.info or door.flags.shell_completion:
            return None
        with initialize_config_dir(str(door.conf), version_base="1.3"):
            config = compose(door.flags.config_name or name, door.flags.overrides, return_hydra_config=True)
            if function := COMMANDS[name]:
                plain: Any = {key: part for key, part in config.items_ex(resolve=False) if key != "hydra"}
                plain = OmegaConf.to_container(OmegaConf.create(plain), resolve=True, throw_on_missing=True)
                configs.check_command(plain, function)
            else:
                settle(config, config.hydra)
    except (MissingMandatoryValue, SystemExit):  # a key that is still to be given; --version
        return None
    except Exception as error:
        said_so = said(error) or explain(error, door.conf, door.flags.overrides)
        if said_so is None:
            raise
        return said_so
    finally:
        GlobalHydra.instance().clear()
    return None


@pytest.fixture
def place(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch cannot be imported, and nothing is changed."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    return workplace


def content(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_line_is_an_answer(
    name: str, place: Path, survived: Callable[[str, int], None], tries: Callable[[int, int], int]
) -> None:
    count, before = 0, content(place)

    @settings(max_examples=tries(80, 7_000) if name == "train" else tries(40, 1_000))
    @given(typed)
    def check(arguments: list[str]) -> None:
        nonlocal count
        said_so = sentence(name, arguments)
        assert said_so is None or said_so.strip()
        count += 1

    check()
    assert content(place) == before
    survived("cases fuzzed: overrides", count)


def test_the_command_itself_ends_with_2_and_leaves_nothing(
    command: Command, place: Path, survived: Callable[[str, int], None], tries: Callable[[int, int], int]
) -> None:
    """The same through Hydra and the exit code; what is right would train, and is left out."""
    script = place / "train.py"
    script.write_text((Path(__file__).parents[2] / "train.py").read_text())
    count, before = 0, content(place)

    @settings(max_examples=tries(12, 300))
    @given(st.lists(override(), max_size=2))
    def check(arguments: list[str]) -> None:
        nonlocal count
        if sentence("train", arguments) is None:
            return
        answer = command(script, *arguments)
        assert answer.code == 2, answer
        assert "Traceback" not in answer.err
        assert "\x1b" not in answer.err
        assert not answer.out
        count += 1

    check()
    assert content(place) == before
    survived("cases fuzzed: overrides", count)


def test_every_line_of_report_py_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: Callable[[str, int], None],
    tries: Callable[[int, int], int], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    count = 0
    for seed in range(2):
        write_run(tmp_path / f"runs/{seed}", 0.8, seed=seed)
        write_run(tmp_path / f"runs/d{seed}", 0.82, seed=seed, reg=("dropout",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write_report", lambda *arguments: [])
    monkeypatch.setattr(report.signal, "signal", lambda *arguments: None)

    @settings(max_examples=tries(60, 2_000))
    @given(st.lists(override(), max_size=3))
    def check(arguments: list[str]) -> None:
        nonlocal count
        code = report.main(["runs", *arguments])
        answer = capsys.readouterr()
        assert code in (0, 2)
        assert (code == 2) == bool(answer.err)
        assert "\x1b" not in answer.err + answer.out
        count += 1

    check()
    assert content(tmp_path) == ["runs"]
    survived("cases fuzzed: overrides", count)
