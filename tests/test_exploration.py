"""What `explore.py` says of a data set, and which images it draws."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from cifarlab import exploration
from cifarlab.data.files import DataSet
from cifarlab.data.module import ImageData
from cifarlab.data.sets import Digits
from cifarlab.exploration import augmented, by_class, description, explore, pictures
from cifarlab.regularizers import CutMix, Flip, Mix, Mixup, Regularization

ROOT = Path(__file__).parents[1]
CLASSES = ["pine_tree", "cat", "oak_tree", "apple"]
SUPERCLASS = torch.tensor([0, 1, 0, 2])


class Plain(ImageData):
    """Four classes in three superclasses; every pixel of an image of class k is 60 k, of ten images each but
    three of the last."""

    name = "plain"

    def __init__(self, superclasses: bool = True, validation: Any = "none") -> None:
        super().__init__(validation=validation, seed=0, regularization=Regularization())
        self.superclasses = superclasses
        self.setup()

    def load(self) -> DataSet:
        labels = torch.tensor([0, 1, 2] * 10 + [3] * 3)
        images = (60 * labels).byte()[:, None, None, None].expand(-1, 3, 32, 32).contiguous()
        coarse = (SUPERCLASS[labels], SUPERCLASS[labels], ["trees", "animals", "fruit"])
        return DataSet(images, labels, images, labels, CLASSES, *(coarse if self.superclasses else ()))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of the last call of `grid`; its result is a copy of them."""
    arguments: dict[str, Any] = {}

    def grid(
        images: Tensor, columns: int, captions: Any = None, title: Any = None, **others: Any
    ) -> dict[str, Any]:
        arguments.update(images=images, columns=columns, captions=captions, title=title, **others)
        return dict(arguments)

    monkeypatch.setattr(exploration, "grid", grid)
    return arguments


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits(validation="fold", folds=4, fold=1, seed=0, regularization=Regularization())
    data.setup()
    return data


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs explore.py in this process, in an empty folder; gives the exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.root.handlers[:], logging.root.level

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "explore.py"), *arguments])
        code = 0
        try:
            runpy.run_path(str(ROOT / "explore.py"), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    yield run
    GlobalHydra.instance().clear()
    logging.root.handlers[:], logging.root.level = handlers, level


def test_description_of_the_digits(digits: Digits) -> None:
    assert digits.set is not None
    lines = description(digits).splitlines()
    assert lines[0] == "digits: 10 classes"
    rows = {line.split("  ")[0]: line.split()[1:] for line in lines[1:]}
    counts = {part: int(rows[part][0].replace(",", "")) for part in ("train", "val", "test")}
    assert sum(counts.values()) == 1797
    assert abs(counts["val"] - 1438 / 4) < 10
    assert " ".join(rows["val"]) == f"{counts['val']} x 3 x 32 x 32, uint8 {counts['val']}, int64"
    for label, images in enumerate(np.bincount(load_digits().target)):
        assert sum(map(int, rows[str(label)])) == images
    pixels = digits.set.train_images[digits.train_index].double() / 255
    for channel, colour in enumerate(("red", "green", "blue")):
        mean, deviation = pixels[:, channel].mean(), pixels[:, channel].std(correction=0)
        assert rows[colour] == [f"{mean:.4f}", f"{deviation:.4f}"]


def test_classes_are_counted_by_superclass() -> None:
    classes = description(Plain()).split("\n\n")[-1].splitlines()
    assert [line.split() for line in classes] == [
        ["class", "train", "val", "test"],
        ["trees", "20", "0", "20"],
        ["pine_tree", "10", "0", "10"],
        ["oak_tree", "10", "0", "10"],
        ["animals", "10", "0", "10"],
        ["cat", "10", "0", "10"],
        ["fruit", "3", "0", "3"],
        ["apple", "3", "0", "3"],
    ]
    assert [line.startswith("  ") for line in classes] == [False, False, True, True, False, True, False, True]


def test_validation_on_the_test_images_counts_them_twice() -> None:
    assert "\nval    33 x 3 x 32 x 32, uint8" in description(Plain(validation="test"))


def test_ten_of_every_class_in_the_row_of_its_superclass(shown: dict[str, Any]) -> None:
    by_class(Plain(), torch.randperm(33))
    assert shown["columns"] == 2
    assert shown["rows"] == ["trees", "animals", "fruit"]
    assert shown["captions"] == ["pine tree", "oak tree", "cat", "", "apple", ""]
    filled = [(0, 10), (120, 10), (60, 10), (255, 0), (180, 3), (255, 0)]  # a class's grey, and its images
    for strip, (grey, images) in zip(shown["images"], filled, strict=True):
        row = torch.tensor(images * ([grey] * 32 + [255]) + (10 - images) * [255] * 33)
        assert (strip == row).all()


def test_without_superclasses_a_class_has_a_row(shown: dict[str, Any]) -> None:
    by_class(Plain(superclasses=False), torch.randperm(33))
    assert shown["columns"] == 1
    assert shown["rows"] == ["pine tree", "cat", "oak tree", "apple"]
    assert shown["images"][:, 0, 0, 0].tolist() == [0, 60, 120, 180]


@pytest.mark.usefixtures("shown")
def test_first_images_and_random_ones(digits: Digits) -> None:
    assert digits.set is not None
    torch.manual_seed(1)
    drawn: dict[str, Any] = pictures(digits)
    for name, count, columns in (("first", 9, 3), ("grid", 48, 8)):
        assert torch.equal(drawn[name]["images"], digits.set.train_images[:count])
        assert drawn[name]["captions"] == [str(int(label)) for label in digits.set.train_labels[:count]]
        assert drawn[name]["columns"] == columns
    chosen = [
        int((digits.set.train_images == image).flatten(1).all(1).nonzero())
        for image in drawn["random"]["images"]
    ]
    assert len(set(chosen)) == 24
    assert drawn["random"]["captions"] == [str(int(digits.set.train_labels[n])) for n in chosen]
    assert max(chosen) > 1000


def test_flips_of_one_image(shown: dict[str, Any], digits: Digits) -> None:
    torch.manual_seed(0)
    augmented(digits, Regularization([Flip()]), "flipped")
    image, *versions = shown["images"]
    mirrored = sum(torch.equal(version, image.flip(-1)) for version in versions)
    same = sum(torch.equal(version, image) for version in versions)
    assert mirrored + same == 15
    assert 0 < mirrored < 15
    assert shown["captions"] is None


@pytest.mark.parametrize("mix", [Mixup(), CutMix()])
def test_captions_give_the_shares_of_a_mixed_image(shown: dict[str, Any], mix: Mix) -> None:
    torch.manual_seed(0)
    augmented(Plain(), Regularization([mix]), "mixed")
    greys = {name.replace("_", " "): 60 * label for label, name in enumerate(CLASSES)}
    assert shown["captions"][0] == f"100% {CLASSES[int(shown['images'][0, 0, 0, 0]) // 60].replace('_', ' ')}"
    for image, caption in zip(shown["images"], shown["captions"], strict=True):
        parts = [line.split("% ") for line in caption.split("\n")]
        expected = sum(int(share) / 100 * greys[name] for share, name in parts)
        assert image.double().mean() == pytest.approx(expected, abs=1.5)  # shares are rounded to 1 %
    assert sum("\n" in caption for caption in shown["captions"]) > 5


def test_the_command_says_what_it_wrote(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, said, _ = command("data=digits", "reg=[dropout,shift,cutmix]", "seed=3")
    assert code == 0, said
    files = [tmp_path / line.strip() for line in said.partition("Pictures:\n")[2].splitlines()]
    assert [file.stem for file in files] == ["first", "grid", "random", "classes", "augmented"]
    assert sorted(tmp_path.rglob("*.*")) == sorted(files)
    for file in files:
        assert Image.open(file).format == "PNG"


def test_what_changes_no_image_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(exploration, "pictures", lambda data: {})
    caplog.set_level(logging.INFO)
    dropout = {"_target_": "cifarlab.regularizers.dropout.Dropout"}
    explore({"_target_": "cifarlab.data.sets.Digits"}, {"dropout": dropout}, out=str(tmp_path))
    assert "reg=[dropout] changes no images, so there are no augmented ones to show." in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "typed, sentence",
    [
        ("out=file/pictures", "out=file/pictures cannot be written: Not a directory."),
        ("sed=1", "sed: the configuration has no key 'sed'; did you mean 'seed'?"),
        ("data.labels=coarse", "data.labels: data has no key 'labels'; expected one of"),
    ],
)
def test_mistakes(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, typed: str, sentence: str
) -> None:
    (tmp_path / "file").touch()
    code, _, said = command("data=digits", typed)
    assert code == 2
    assert said.startswith(sentence)
    assert said.count("\n") == 1
