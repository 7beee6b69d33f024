"""Which runs are one configuration, what counts among them, and how a row is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synthetic import write_run

from cifarlab.report.reading import read
from cifarlab.report.rows import Row, group, name
from cifarlab.runs.record import config_hash


class Runs:
    """Writes runs into numbered folders and groups them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def add(self, test: float | None = 0.8, **options: Any) -> Path:
        self.count += 1
        return write_run(self.folder / str(self.count), test, **options)

    def rows(self) -> tuple[list[Row], str]:
        rows = group(read(folder) for folder in sorted(self.folder.iterdir()))
        return rows, name(rows)


def test_the_same_in_other_words_is_one_configuration(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add(seed=0)
    runs.add(seed=1, typed=["model=vgg3", "trainer.max_epochs=10", "trainer.max_epochs=20"])
    elsewhere = {"data.root": "/other", "logger": {}, "trainer.enable_progress_bar": False, "resume": None}
    runs.add(seed=2, changes=elsewhere)
    rows, _ = runs.rows()
    assert [row.seeds for row in rows] == [[0, 1, 2]]


def test_a_key_that_older_runs_lack_is_no_difference_unless_it_is_used(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add(seed=0)
    runs.add(seed=1, changes={"trainer.capture": "none"})
    runs.add(seed=2, changes={"trainer.capture": "compile"})
    rows, _ = runs.rows()
    assert [row.seeds for row in rows] == [[0, 1], [2]]
    captures: list[dict[str, str]] = [{}, {"capture": "none"}, {"capture": "compile"}]
    hashes = [config_hash({"trainer": {"devices": 1, **more}}) for more in captures]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_order_of_regularizers_is_no_difference(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add(seed=0, reg=("flip", "dropout"))
    runs.add(seed=1, reg=("dropout", "flip"))
    assert len(runs.rows()[0]) == 1


def test_a_name_says_what_differs_and_the_rest_is_said_once(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add()
    runs.add(reg=("dropout", "flip"))
    runs.add(changes={"optimizer.lr": 0.1}, typed=["optimizer.lr=0.1"])
    rows, common = runs.rows()
    assert [row.name for row in rows] == [
        "reg=none optimizer.lr=0.01",
        "reg=dropout+flip optimizer.lr=0.01",
        "reg=none optimizer.lr=0.1",
    ]
    assert common == (
        "model=vgg3 data=cifar10 optimizer=sgd scheduler=constant data.batch_size=64 data.validation=split "
        "trainer.max_epochs=20"
    )


def test_an_option_stands_for_its_keys_unless_they_were_typed(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add()
    runs.add(changes={"model.blocks": 1}, record={"choices.model": "vgg1"})
    rows, _ = runs.rows()
    assert [row.name for row in rows] == ["model=vgg3", "model=vgg1"]
    typed = {"model.blocks": 2, "model.width": 64}
    runs.add(changes=typed, record={"choices.model": "vgg2"}, typed=["model.width=64"])
    rows, _ = runs.rows()
    assert [row.name for row in rows] == [
        "model=vgg3 model.width=32",
        "model=vgg1 model.width=32",
        "model=vgg2 model.width=64",
    ]


def test_a_key_that_differs_within_an_option_is_said(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    for rate in (0.2, 0.3):
        runs.add(reg=("dropout",), changes={"reg.dropout.rate": rate})
    runs.add()
    rows, _ = runs.rows()
    assert [row.name for row in rows] == [
        "reg=dropout reg.dropout.rate=0.2",
        "reg=dropout reg.dropout.rate=0.3",
        "reg=none",
    ]


def test_experiments_name_rows_where_each_has_one(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add(record={"choices.experiment": "posts/a3", "overrides": ["experiment=posts/a3"]})
    record = {"choices.experiment": "posts/a6", "overrides": ["experiment=posts/a6"]}
    runs.add(reg=("flip",), changes={"trainer.max_epochs": 40}, record=record)
    rows, _ = runs.rows()
    assert [row.name for row in rows] == ["experiment=posts/a3", "experiment=posts/a6"]
    runs.add(reg=("shift",), record={"overrides": []})
    rows, _ = runs.rows()
    assert [row.name for row in rows] == [
        "reg=none trainer.max_epochs=20",
        "reg=flip trainer.max_epochs=40",
        "reg=shift trainer.max_epochs=20",
    ]


def test_a_repeat_counts_once_and_the_latest_counts(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add(0.9, record={"finished": "2026-01-02T00:00:00+00:00"})
    runs.add(0.1, record={"finished": "2026-01-01T00:00:00+00:00"})
    runs.add(0.8, seed=1)
    (row,), _ = runs.rows()
    assert row.scores("test") == {(0, None): 0.9, (1, None): 0.8}
    assert row.test is not None
    assert row.test.n == 2
    assert row.notes() == [
        "1 further run of the same configuration and seed is left out: a repeat is no independent sample"
    ]


def test_folds_are_one_row_of_the_seeds_that_have_all(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    scores = (0.70, 0.72, 0.74, 0.76, 0.78)
    for fold, score in enumerate(scores[:4]):
        runs.add(score, changes={"data.validation": "fold", "data.fold": fold})
    (row,), _ = runs.rows()
    assert row.test is None
    assert row.notes() == ["left out until all folds are done: seed 0 lacks fold 4"]
    for fold, score in enumerate(scores):
        runs.add(score, seed=1, changes={"data.validation": "fold", "data.fold": fold})
    (row,), _ = runs.rows()
    assert (row.count, row.folds) == ("5 folds", 5)
    assert row.test is not None
    assert (row.test.n, round(row.test.mean, 9)) == (5, 0.74)
    assert row.notes() == ["left out until all folds are done: seed 0 lacks fold 4"]


def test_seeds_of_one_fold_are_the_samples(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    for seed, score in enumerate((0.70, 0.72, 0.74)):
        runs.add(score, seed=seed, changes={"data.validation": "fold", "data.fold": 2})
    (row,), _ = runs.rows()
    assert row.test is not None
    assert (row.count, row.test.n, row.test.overlap) == ("3 seeds, 1 fold", 3, 0.0)
    assert round(row.test.mean, 9) == 0.72
    assert row.notes() == ["all runs are of one fold: this is no cross-validation"]


def test_without_folds_the_fold_is_no_difference(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add(seed=0)
    runs.add(seed=1, changes={"data.fold": 3})
    assert len(runs.rows()[0]) == 1


def test_different_machines_in_a_row_are_said(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add(seed=0)
    runs.add(seed=1, record={"environment.device": "a GPU", "environment.torch": "2.14.0"})
    (row,), _ = runs.rows()
    assert row.notes() == ["its runs differ in device (a GPU, cpu); torch (2.14.0, 2.15.0)"]
