"""Records of all kinds of damage: read whole or left out, never followed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from synthetic import lay, write_run

from cifarlab.report.reading import Unreadable, find, read, read_curve


def test_a_run_is_read(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", 0.81, 0.8, seed=3, reg=("dropout",), seconds=12.5))
    assert (run.status, run.seed, run.fold, run.test, run.val) == ("done", 3, None, 0.81, 0.8)
    assert (run.seconds, run.epochs, run.parameters) == (12.5, 20, 550_570)
    assert run.choices["reg"] == "dropout"
    settings = dict(run.settings)
    assert settings["reg.dropout.rate"] == 0.2
    assert settings["optimizer.lr"] == 0.01
    left_out = ("seed", "resume", "data.fold", "data.root", "logger._target_")
    assert not settings.keys() & set(left_out)


def test_validation_is_that_of_the_scored_weights(tmp_path: Path) -> None:
    changes = {"test_weights": "best"}
    folder = write_run(tmp_path / "run", 0.81, 0.8, changes=changes, record={"best_val.accuracy": 0.85})
    assert read(folder).val == 0.85


DAMAGE = {
    "": "is torn, or no JSON",
    '{"schema": 1, "stat': "is torn, or no JSON",
    "[" * 100_000: "is torn, or no JSON",
    '{"name": "someone else\'s"}': "is no record of schema 1",
    "[1, 2]": "is no record of schema 1",
    '{"schema": 1}': "has no status",
    "\x00\x01": "is torn, or no JSON",
}


@pytest.mark.parametrize("text", DAMAGE, ids=lambda text: text[:12])
def test_a_damaged_record_is_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(Unreadable, match=DAMAGE[text]):
        read(tmp_path)


@pytest.mark.parametrize(
    "key, value",
    [
        ("seed", "0"),
        ("seed", None),
        ("seed", True),
        ("status", "finished"),
        ("test.accuracy", "0.8"),
        ("test.accuracy", 80.5),
        ("test.accuracy", float("nan")),
        ("val.accuracy", [0.8]),
        ("train_seconds", -1),
        ("epochs", 1.5),
        ("overrides", "reg=none"),
        ("overrides", [1]),
        ("choices.reg", "none"),
        ("choices", None),
        ("environment.device", {}),
        ("model", 7),
    ],
)
def test_a_value_that_cannot_be_is_named(tmp_path: Path, key: str, value: object) -> None:
    folder = write_run(tmp_path / "run", 0.8)
    record = json.loads((folder / "record.json").read_text())
    lay(record, key, value)
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(Unreadable, match=key):
        read(folder)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 0.8)
    record = json.loads((folder / "record.json").read_text())
    del record["test"]["accuracy"]
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(Unreadable, match=r"has no test\.accuracy"):
        read(folder)


def test_what_would_block_or_fill_memory_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "record.json")
    with pytest.raises(Unreadable, match="no plain file"):
        read(tmp_path)
    (tmp_path / "record.json").unlink()
    with open(tmp_path / "record.json", "wb") as file:
        file.truncate(2**33)  # takes no room on the disk
    with pytest.raises(Unreadable, match="more than 4,000,000 bytes"):
        read(tmp_path)


BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize("text", ["", "a: [", "just text", BOMB, "\x00", "[" * 100_000, "1: 2\n"])
def test_without_a_configuration_what_was_typed_counts(tmp_path: Path, text: str) -> None:
    typed = ["optimizer.lr=0.5", "hydra.run.dir=here"]
    folder = write_run(tmp_path / "run", 0.8, reg=("flip",), typed=typed)
    (folder / "config.yaml").write_text(text)
    run = read(folder)
    if text == "1: 2\n":  # a mapping, if a strange one
        assert run.configured
        return
    assert not run.configured
    settings = dict(run.settings)
    assert (settings["optimizer.lr"], settings["reg"], settings["model"]) == ("0.5", "flip", "vgg3")
    assert not settings.keys() & {"seed", "hydra.run.dir"}


def test_text_is_made_harmless(tmp_path: Path) -> None:
    record = {"error": "\x1b[31mred\n\u202eturned\ud800", "choices.model": "a\x07b", "status": "failed"}
    run = read(write_run(tmp_path / "run", None, record=record))
    assert run.error == "[31mred turned"
    assert run.choices["model"] == "a b"


def test_every_folder_is_found_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a" / "run", 0.8)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (run / "self").symlink_to(run, target_is_directory=True)
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    warnings: list[str] = []
    assert list(find([tmp_path, tmp_path / "a", tmp_path / "b", run], warnings.append)) == [run]
    assert warnings == []


def test_curve(tmp_path: Path) -> None:
    head = "epoch,step,lr,train/loss,train/accuracy,val/loss,val/accuracy,seconds\n"
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(f"{head}1,9,0.1,2,0.3,2,0.25,5\n2,18,0.1,2,0.4,,,5\n3,27,0.1,2,0.5,1,0.5,5\n")
    assert read_curve(tmp_path) == [(1, 0.25), (3, 0.5)]
    for damage in (
        "",
        head + "1,9,0.1,2,0.3,2,0.",
        head + "1,9,0.1\n",
        head + "1,9,0.1,2,0.3,2,x,5\n",
        "a\n1\n",
    ):
        metrics.write_text(damage)
        with pytest.raises(Unreadable):
            read_curve(tmp_path)
    metrics.unlink()
    with pytest.raises(Unreadable, match="No such file"):
        read_curve(tmp_path)
