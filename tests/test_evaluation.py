"""A run scored again: to the record's digits, against independent implementations, and what it leaves."""

import csv
import json
import logging
import math
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import QUICK
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from cifarlab import evaluation
from cifarlab.data.files import DataSet
from cifarlab.data.module import ImageData
from cifarlab.data.sets import Digits
from cifarlab.errors import UserError
from cifarlab.evaluation import by_class, draw_mistakes, evaluate, part, summary
from cifarlab.pictures.grid import save
from cifarlab.regularizers import Regularization
from cifarlab.runs.checkpoints import save_weights
from cifarlab.runs.reopen import open_run
from cifarlab.training import train

ROOT = Path(__file__).parents[1]
FILES = ["confusion.csv", "confusion.png", "mistakes.png", "per_class.csv", "reliability.png", "scores.json"]


def trained(folder: Path, *overrides: str) -> Path:
    typed = [*QUICK, "data.eval_batch_size=100", *overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", typed), resolve=True)
    train(config, folder, typed, {"model": "vgg1", "reg": ["none"], "data": "digits"})
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that nobody changes."""
    return trained(tmp_path_factory.mktemp("finished"), "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that validated on the test images, and did not score them at its end."""
    folder = tmp_path_factory.mktemp("watched")
    return trained(folder, "trainer.max_epochs=1", "data.validation=test", "test=false")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the first run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take longer than all the rest; one test draws them."""
    monkeypatch.setattr(evaluation, "save", lambda figure, path: None)


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def change_record(folder: Path, change: Callable[[Any], Any]) -> None:
    record = record_of(folder)
    change(record)
    (folder / "record.json").write_text(json.dumps(record))


def table(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_the_figures_are_the_records_to_the_last_digit(finished: Path, tmp_path: Path) -> None:
    record = record_of(finished)
    test = evaluate(str(finished), out=str(tmp_path))
    assert {key: test[key] for key in ("accuracy", "loss", "images", "weights")} == {
        key: record["test"][key] for key in ("accuracy", "loss", "images", "weights")
    }
    assert test["notes"] == ["The same to the last digit as in the record: accuracy, loss."]
    last = evaluate(str(finished), split="val", out=str(tmp_path))
    assert {key: last[key] for key in ("accuracy", "loss")} == record["val"]
    best = evaluate(str(finished), split="val", weights="best", out=str(tmp_path))
    assert {key: best[key] for key in ("accuracy", "loss")} == {
        key: record["best_val"][key] for key in ("accuracy", "loss")
    }
    assert last["images"] == best["images"] == 144


def test_all_figures_agree_with_independent_implementations(finished: Path, tmp_path: Path) -> None:
    result = evaluate(str(finished), flips=True, shifts=2, out=str(tmp_path))
    opened = open_run(finished)
    data = opened.data().set
    assert data is not None
    images, labels = data.test_images, data.test_labels
    p = torch.softmax(opened.logits(images).double(), 1)
    both = (p + torch.softmax(opened.logits(images.flip(3)).double(), 1)) / 2
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    corners = [padded[:, :, at : at + 32, at : at + 32] for at in (0, 4)]
    views = [view for corner in corners for view in (corner, corner.flip(3))]
    moved = sum(torch.softmax(opened.logits(view).double(), 1) for view in views) / 4
    columns = {"with_flips": both, "with_shifts": (both + moved) / 2}
    for found, expected in ((result, p), *((result[name], mean) for name, mean in columns.items())):
        assert found["accuracy"] == np.mean(expected.argmax(1).numpy() == labels.numpy())
        assert found["loss"] == pytest.approx(-np.log(expected.numpy()[range(359), labels]).mean(), rel=1e-6)
        top5 = top_k_accuracy_score(labels, expected.numpy(), k=5, labels=range(10))
        assert found["top5_accuracy"] == pytest.approx(top5)
        error = multiclass_calibration_error(expected, labels, num_classes=10, n_bins=15, norm="l1")
        assert found["expected_calibration_error"] == pytest.approx(error.item(), abs=1e-6)
    assert both.ne(p).any()

    matrix = confusion_matrix(labels, p.argmax(1))
    rows = table(tmp_path / "confusion.csv")
    assert rows[0] == ["true class", *data.classes]
    assert [row[0] for row in rows[1:]] == data.classes
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == matrix.tolist()
    header, *rows = table(tmp_path / "per_class.csv")
    assert header == ["class", "images", "predicted", "accuracy"]
    columns = list(zip(*rows, strict=True))
    assert [int(cell) for cell in columns[1]] == matrix.sum(1).tolist()
    assert [int(cell) for cell in columns[2]] == matrix.sum(0).tolist()
    assert [float(cell) for cell in columns[3]] == (matrix.diagonal() / matrix.sum(1)).tolist()


def test_files(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "save", save)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    result = evaluate(str(run))
    folder = run / "evaluation" / "test"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert json.loads((folder / "scores.json").read_text()) == result
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert before.items() <= {path: path.stat().st_mtime_ns for path in run.rglob("*")}.items()


def test_mistakes_name_images_of_the_data_set(finished: Path, tmp_path: Path) -> None:
    result = evaluate(str(finished), split="train", out=str(tmp_path))
    opened = open_run(finished)
    data = opened.data()
    assert data.set is not None
    assert result["images"] == 1294
    assert result["recorded"] is None  # a run records its training images as augmented
    mistakes = result["mistakes"]
    assert len(mistakes) == 25
    sure = [mistake["probability"] for mistake in mistakes]
    assert sure == sorted(sure, reverse=True)
    numbers = torch.tensor([mistake["image"] for mistake in mistakes])
    assert set(numbers.tolist()) <= set(data.train_index.tolist())
    assert [int(m["true"]) for m in mistakes] == data.set.train_labels[numbers].tolist()
    p = torch.softmax(opened.logits(data.set.train_images[numbers]).double(), 1).max(1)
    assert [int(m["predicted"]) for m in mistakes] == p.indices.tolist()
    assert sure == pytest.approx(p.values.tolist())


def test_an_earlier_picture_of_mistakes_goes_when_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mistakes.png"
    path.touch()
    draw_mistakes(path, torch.zeros(0, 3, 32, 32, dtype=torch.uint8), [], "a run")
    assert not path.exists()


def test_a_run_that_validated_on_the_test_images_is_marked(watched: Path, tmp_path: Path) -> None:
    val, test = (evaluate(str(watched), split=split, out=str(tmp_path)) for split in ("val", "test"))
    assert "These are the test images, on which that run validated (data.validation=test)." in val["notes"]
    assert "That run validated on the test images (data.validation=test)." in test["notes"]
    for result in (val, test):
        assert result["images"] == 359
        assert {key: result[key] for key in ("accuracy", "loss")} == record_of(watched)["val"]
        assert "The same to the last digit as in the record: accuracy, loss." in result["notes"]


def test_what_differs_is_said_with_the_difference(run: Path, tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["test"]["loss"] += 0.25
        record["environment"] |= {"device": "a \x1b[31mTPU", "threads": 999}

    change_record(run, change)
    result = evaluate(str(run), out=str(tmp_path), data={"eval_batch_size": 50, "root": None})
    (note,) = result["notes"]
    # a control character, which the terminal would obey, is blank
    assert note.startswith("Other than in the record: loss by -0.25 (device a  [31mTPU then, cpu (")
    threads = torch.get_num_threads()
    assert note.endswith(f"; threads 999 then, {threads} now; data.eval_batch_size=50 now).")
    assert result["recorded"]["loss"] == record_of(run)["test"]["loss"]


def test_figures_of_other_images_or_weights_are_not_compared(run: Path, tmp_path: Path) -> None:
    change_record(run, lambda record: record["test"].update(images=100))
    result = evaluate(str(run), out=str(tmp_path))
    assert result["recorded"] is None
    assert result["notes"] == ["The record's test figures are of 100 images alone."]
    change_record(run, lambda record: record["test"].update(images=359, weights="best"))
    assert evaluate(str(run), weights="last", out=str(tmp_path))["recorded"] is None


def test_an_unfinished_run_is_scored_and_said_to_be_one(run: Path, tmp_path: Path) -> None:
    nothing = {"accuracy": None, "loss": None, "images": None, "weights": None}
    change_record(run, lambda record: record.update(status="interrupted", test=nothing))
    result = evaluate(str(run), out=str(tmp_path))
    assert result["notes"] == ["That run was interrupted: 2 epochs behind it."]
    assert (result["weights"], result["file"]) == ("last", "last.ckpt")


def test_no_validation_images() -> None:
    data = Digits(validation="none", seed=0, regularization=Regularization())
    data.setup()
    assert len(part(data, "train").labels) == 1438
    with pytest.raises(UserError, match=r"split=val: that run has data\.validation=none"):
        part(data, "val")


def test_folders_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.touch()  # works for root as well, who may write into a read-only folder
    with pytest.raises(UserError, match=r"file/test cannot be written .*: name a folder by out=\."):
        evaluate(str(run), out=str(taken / "test"))
    (run / "evaluation").mkdir()
    (run / "evaluation" / "test").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"evaluation/test is a link or no folder"):
        evaluate(str(run))
    (run / "evaluation" / "test").unlink()
    assert evaluate(str(run), out=str(tmp_path / "new" / "folder"))["split"] == "test"


def test_a_disk_that_is_full(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "write_text", full)
    with pytest.raises(UserError, match=r"\(No space left on device\): name a folder by out=\."):
        evaluate(str(run))


def test_weights_that_are_not_numbers(run: Path) -> None:
    opened = open_run(run)
    with torch.no_grad():
        next(opened.model.net.parameters()).fill_(math.nan)
    save_weights(opened.model, run / "weights.safetensors")
    assert any(value.isnan().any() for value in load_file(run / "weights.safetensors").values())
    with pytest.raises(UserError, match="logits that are NaN or infinite"):
        evaluate(str(run))


class Garden(ImageData):
    """Three classes, two of them flowers."""

    name = "garden"

    def load(self) -> DataSet:
        labels = torch.tensor([0, 1, 2, 0, 1, 2])
        images = torch.zeros(6, 3, 32, 32, dtype=torch.uint8)
        coarse = torch.tensor([1, 0, 1])[labels]
        names = ["rose", "cat", "tulip"], coarse, coarse, ["animals", "flowers"]
        return DataSet(images, labels, images, labels, *names)


def test_superclasses() -> None:
    data = Garden(validation="none", seed=0, regularization=Regularization())
    data.setup()
    rows = by_class(torch.tensor([[4, 0, 1], [0, 2, 0], [3, 2, 0]]), data)
    assert rows["classes"] == [
        {"class": "rose", "images": 5, "predicted": 7, "accuracy": 0.8, "superclass": "flowers"},
        {"class": "cat", "images": 2, "predicted": 4, "accuracy": 1, "superclass": "animals"},
        {"class": "tulip", "images": 5, "predicted": 1, "accuracy": 0, "superclass": "flowers"},
    ]
    assert rows["superclasses"] == [
        {"class": "animals", "images": 2, "predicted": 4, "accuracy": 1},
        {"class": "flowers", "images": 10, "predicted": 8, "accuracy": 0.8},
    ]


def test_summary() -> None:
    accuracies = {"a": 0.5, "b": None, "c": 0.25, "d": 0.75, "e": 0.5}
    figures = {"accuracy": 0.5, "superclass_accuracy": None, "top5_accuracy": 1, "loss": 1.25}
    figures["expected_calibration_error"] = 0.01
    rows = [{"class": name, "accuracy": value} for name, value in accuracies.items()]
    result = {**figures, "with_flips": {**figures, "accuracy": 0.625}, "notes": ["A note."]}
    result["with_shifts"] = {**figures, "accuracy": 0.75}
    assert summary(result | {"classes": rows, "superclasses": None}) == "\n".join(
        [
            "",
            "                          plain   with flips   with flips and shifts",
            "accuracy                 50.00%       62.50%                  75.00%",
            "top-5 accuracy          100.00%      100.00%                 100.00%",
            "loss (nats)              1.2500       1.2500                  1.2500",
            "calibration error        0.0100       0.0100                  0.0100",
            "",
            "best classes          d 75.0%, a 50.0%",
            "worst classes         c 25.0%, a 50.0%",
            "",
            "A note.",
        ]
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """`python evaluate.py ...` in this process: its exit code."""

    def call(*typed: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "evaluate.py"), *typed])
        GlobalHydra.instance().clear()
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    handlers, level = logging.root.handlers[:], logging.root.level
    yield call
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_the_command(
    command: Callable[..., int], finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(f"run={finished}", "flips=true", f"out={tmp_path}", "data.eval_batch_size=100") == 0
    said = capfd.readouterr()
    assert said.err == ""
    accuracy = json.loads((tmp_path / "scores.json").read_text())["accuracy"]
    assert f"accuracy                 {accuracy:.2%}" in said.out
    assert said.out.splitlines()[-1] == f"Figures and pictures: {tmp_path}"


@pytest.mark.parametrize(
    "typed, says",
    [
        ([], "run is missing: give it by run=..."),
        (["run=nowhere"], "run=nowhere: there is no such folder"),
        (["run=."], "is no run folder: it has no record.json"),
        (["run=.", "split=tests"], "split=tests: expected one of test, val, train; did you mean test?"),
        (["run=.", "flip=true"], "flip: the configuration has no key 'flip'"),
        (["run=.", "-m"], "evaluate.py does one thing at a time: leave out -m."),
    ],
)
def test_mistakes_are_one_sentence(
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    typed: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*typed) == 2
    said = capfd.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []
