"""A run scored again from its folder: `python evaluate.py run=DIR`."""

from __future__ import annotations

import csv
import io
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cifarlab import hardware, scores
from cifarlab.atomic import write_text
from cifarlab.data.module import ImageData
from cifarlab.errors import UserError
from cifarlab.mistakes import shown
from cifarlab.models.classifier import Tally
from cifarlab.pictures.grid import save
from cifarlab.pictures.scores import confusion_figure, mistakes_figure, reliability_figure
from cifarlab.runs.reopen import OpenRun, open_run
from cifarlab.types import Shift
from cifarlab.untrusted import clean

log = logging.getLogger(__name__)

PARTS = {"test": "test", "val": "validation", "train": "training"}
CHOSEN = {"last": "weights of the last epoch", "best": "weights of the best epoch by validation accuracy"}
ENDED = {"running": "is unfinished", "interrupted": "was interrupted", "failed": "failed"}
# what the figures are called in the table, and how they are printed
FIGURES = {
    "accuracy": ("accuracy", "{:.2%}"),
    "superclass_accuracy": ("superclass accuracy", "{:.2%}"),
    "top5_accuracy": ("top-5 accuracy", "{:.2%}"),
    "loss": ("loss (nats)", "{:.4f}"),
    "expected_calibration_error": ("calibration error", "{:.4f}"),
}


class Part(NamedTuple):
    """A split's images uint8 (N, 3, 32, 32), labels (N,), and places in the training or test set (N,)."""

    images: Tensor
    labels: Tensor
    places: Tensor


def evaluate(
    run: str,
    split: Literal["test", "val", "train"] = "test",
    weights: Literal["scored", "last", "best"] = "scored",
    flips: bool = False,
    shifts: Shift = 0,
    out: str | None = None,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    data: Any = None,
) -> dict[str, Any]:
    """Score a run's weights, say the figures, write them and the pictures; returns what scores.json holds.

    Args:
        run: the run's folder.
        split: which images, none of them augmented.
        weights: those that the run scored (else the last epoch's), or the `last` or `best` epoch's.
        flips: also score the mean of the probabilities of each image and its mirror image.
        shifts: also score the mean over each image, which counts one half, and itself moved by so many pixels
            up and left, and down and right, edges mirrored; with `flips` each both ways (after Jordan, 2024,
            who averages logits).
        out: the folder for the files; None for DIR/evaluation/<split>.
        accelerator: as the Trainer's.
        data: keys of `data` that are other than the run's, such as `root`; what is None stays.

    Raises:
        UserError: the folder holds no run, its data are not there, or the files cannot be written.
    """
    opened = open_run(Path(run), weights, data, accelerator)
    loaded = opened.data()
    assert loaded.set is not None
    images, labels, places = part(loaded, split)
    folder = opened.folder / "evaluation" / split if out is None else Path(out)
    with writing(folder):  # tried before the work
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    hardware.keep_memory()  # behind the data, as in training
    source = " (the test images)" if split == "val" and loaded.validation == "test" else ""
    what = f"{len(labels):,} {PARTS[split]} images{source}, {CHOSEN[opened.weights]}"
    log.info(f"{clean(shown(opened.folder))}: {what}")

    logits = opened.logits(images)
    if not logits.isfinite().all():
        raise UserError(f"{opened.file}: these weights make logits that are NaN or infinite.")
    log_p, superclass_of = log_probabilities(logits), loaded.superclass_of
    figures = scores.figures(log_p, labels, superclass_of) | as_in_training(opened, logits, labels)
    averaged = {}
    mean = log_p
    if flips:
        mean = scores.mean_of([log_p, log_probabilities(opened.logits(images.flip(3)))], [1, 1])
        averaged["with_flips"] = scores.figures(mean, labels, superclass_of)
    if shifts:
        views = [moved(images, by) for by in (shifts, -shifts)]
        ways = [[view, view.flip(3)] if flips else [view] for view in views]
        others = [log_probabilities(opened.logits(view)) for both in ways for view in both]
        mean = scores.mean_of([mean, *others], [1, *[1 / len(others)] * len(others)])
        averaged["with_shifts"] = scores.figures(mean, labels, superclass_of)
    matrix, calibration = scores.confusion(log_p, labels), scores.calibration(log_p, labels)
    wrong = scores.confident_mistakes(log_p, labels, count=25)

    result = {
        "run": str(opened.folder),
        "split": split,
        "images": len(labels),
        "weights": opened.weights,
        "file": opened.file.name,
        "environment": environment(opened),
        **figures,
        "with_flips": averaged.get("with_flips"),
        "with_shifts": averaged.get("with_shifts"),
        "shifts": shifts,
        "recorded": recorded(opened, split, len(labels)),
        **by_class(matrix, loaded),
        "calibration": asdict(calibration),
        "mistakes": mistakes(wrong, log_p, labels, places, loaded.set.classes),
    }
    result["notes"] = notes(opened, result, data or {})
    log.info(summary(result))
    title = f"{short_name(opened.folder)}\n{what}"
    with writing(folder):
        write_tables(folder, result, matrix)
        groups = [row["superclass"] for row in result["classes"]] if result["superclasses"] else None
        save(confusion_figure(matrix, loaded.set.classes, title, groups), folder / "confusion.png")
        save(reliability_figure(calibration, title), folder / "reliability.png")
        draw_mistakes(folder / "mistakes.png", images[wrong], result["mistakes"], title)
    log.info(f"Figures and pictures: {clean(shown(folder))}")
    return result


def part(data: ImageData, split: str) -> Part:
    """The images of a split.

    Raises:
        UserError: the run has none.
    """
    assert data.set is not None
    if split == "test" or (split == "val" and data.validation == "test"):
        return Part(data.set.test_images, data.set.test_labels, torch.arange(len(data.set.test_labels)))
    places = data.val_index if split == "val" else data.train_index
    if not len(places):
        raise UserError("split=val: that run has data.validation=none; type split=test or split=train.")
    return Part(data.set.train_images[places], data.set.train_labels[places], places)


def log_probabilities(logits: Tensor) -> Tensor:
    """In float64, which tells apart the many images that an overfitted network is sure of."""
    return logits.double().log_softmax(1)


def moved(images: Tensor, by: int) -> Tensor:
    """Images (N, C, H, W) moved by that many pixels down and to the right, the edges mirrored."""
    places = []
    for size in images.shape[2:]:
        place = (torch.arange(size) - by).abs()
        places.append(torch.where(place < size, place, 2 * (size - 1) - place))
    return images[:, :, places[0]][:, :, :, places[1]]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in a sentence that the files cannot be written there.

    Raises:
        UserError: for an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): name a folder by out=.") from error


def as_in_training(opened: OpenRun, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy and loss as the Trainer has them, to the last digit: summed by batch, on the device."""
    tally, device, size = Tally(), opened.model.device, opened.batch_size
    with opened.inference():
        for some, targets in zip(logits.split(size), labels.split(size), strict=True):
            losses, _, correct = opened.model.losses(some.to(device), targets.to(device))
            tally.add(losses, correct)
    loss, hits, images = tally.sums(device).tolist()
    return {"accuracy": hits / images, "loss": loss / images}


def environment(opened: OpenRun) -> dict[str, Any]:
    """What the last digits depend on, under the record's names."""
    return {
        "device": hardware.describe(opened.model.device),
        "precision": opened.precision,
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
    }


def recorded(opened: OpenRun, split: str, images: int) -> dict[str, float] | None:
    """The figures in the record that are of these images and weights, if there are any."""
    test, found = opened.record["test"], {}
    if split == "test" and (test["weights"], test["images"]) == (opened.weights, images):
        found = test
    elif (
        split == "val" or (split == "test" and opened.images.validation == "test")
    ) and opened.validates_all:
        found = opened.record["val" if opened.weights == "last" else "best_val"]
    known = {name: found.get(name) for name in ("accuracy", "superclass_accuracy", "loss")}
    return {name: value for name, value in known.items() if value is not None} or None


def by_class(matrix: Tensor, data: ImageData) -> dict[str, Any]:
    """A row for each class, and for each superclass if there are some."""
    assert data.set is not None
    classes = class_rows(matrix, data.set.classes)
    if data.superclass_of is None or data.set.superclasses is None:
        return {"classes": classes, "superclasses": None}
    for row, number in zip(classes, data.superclass_of.tolist(), strict=True):
        row["superclass"] = data.set.superclasses[number]
    superclasses = class_rows(scores.merged(matrix, data.superclass_of), data.set.superclasses)
    return {"classes": classes, "superclasses": superclasses}


def class_rows(matrix: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """How many images a class has, how many were predicted to be of it, and the share that was hit."""
    columns = (names, matrix.sum(1).tolist(), matrix.sum(0).tolist(), scores.class_accuracies(matrix))
    keys = ("class", "images", "predicted", "accuracy")
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def mistakes(
    wrong: Tensor, log_p: Tensor, labels: Tensor, places: Tensor, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each of these positions: which image it is in the data set, and what it was taken for."""
    top, predicted = log_p[wrong].max(1)
    rows = zip(
        places[wrong].tolist(), labels[wrong].tolist(), predicted.tolist(), top.exp().tolist(), strict=True
    )
    return [
        {"image": image, "true": classes[true], "predicted": classes[taken], "probability": p}
        for image, true, taken, p in rows
    ]


def notes(opened: OpenRun, result: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures must know."""
    record, split, said = opened.record, result["split"], []
    if record["status"] != "done":
        epochs = record["epochs"]
        said.append(f"That run {ENDED[record['status']]}: {epochs} epoch{'s' * (epochs != 1)} behind it.")
    if opened.images.validation == "test":
        if split == "val":
            said.append("These are the test images, on which that run validated (data.validation=test).")
        elif split == "test":
            said.append("That run validated on the test images (data.validation=test).")
    if split == "test" and record["test"]["images"] not in (None, result["images"]):
        said.append(f"The record's test figures are of {record['test']['images']:,} images alone.")
    if (then := record["environment"]["precision"]) != opened.precision:
        said.append(f"That run's precision, {then}, is not in hardware here: scored in {opened.precision}.")
    if result["recorded"] is not None:
        said.append(comparison(result, record["environment"], data.get("eval_batch_size")))
    return said


def comparison(result: Mapping[str, Any], then: Mapping[str, Any], batch_size: int | None) -> str:
    """Whether the figures are the record's, and if not, by how much and what else is other than then."""
    differences = {name: result[name] - value for name, value in result["recorded"].items()}
    names = {name: FIGURES[name][0].removesuffix(" (nats)") for name in differences}
    if not any(differences.values()):
        return f"The same to the last digit as in the record: {', '.join(names.values())}."
    by = ", ".join(f"{names[name]} by {value:+.2g}" for name, value in differences.items() if value)
    changed = [
        f"{name} {clean(str(then[name]))} then, {now} now"
        for name, now in result["environment"].items()
        if then[name] != now
    ]
    if batch_size is not None:
        changed.append(f"data.eval_batch_size={batch_size} now")
    why = "; ".join(changed) or "for a reason that it does not hold, such as several processes"
    return f"Other than in the record: {by} ({why})."


def summary(result: Mapping[str, Any]) -> str:
    """The figures for the terminal: a table, the best and the worst classes, the notes."""
    shifts = "with flips and shifts" if result["with_flips"] else "with shifts"
    named = {"plain": result, "with flips": result["with_flips"], shifts: result["with_shifts"]}
    columns = {name: column for name, column in named.items() if column}
    widths = [max(len(name) + 3, 9) for name in columns]
    heads = "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))
    lines = ["", *([f"{'':<22}{heads}"] if len(columns) > 1 else [])]
    for key, (name, form) in FIGURES.items():
        if result[key] is not None:
            values = (form.format(column[key]) for column in columns.values())
            cells = "".join(f"{value:>{width}}" for value, width in zip(values, widths, strict=True))
            lines.append(f"{name:<22}{cells}")
    lines.append("")
    for kind in ("classes", "superclasses"):
        rows = [row for row in result[kind] or () if row["accuracy"] is not None]
        for word, sign in (("best", -1), ("worst", 1)) if rows else ():
            ranked = sorted(rows, key=lambda row: sign * row["accuracy"])
            ranking = [f"{clean(row['class'])} {row['accuracy']:.1%}" for row in ranked]
            lines.append(f"{f'{word} {kind}':<22}{', '.join(ranking[: min(3, len(rows) // 2)])}")
    return "\n".join([*lines, "", *result["notes"]])


def short_name(folder: Path) -> str:
    """The folder's name for a title, its middle left out if it is long."""
    name = clean(folder.resolve().name)
    return name if len(name) <= 60 else f"{name[:30]}…{name[-29:]}"


def write_tables(folder: Path, result: Mapping[str, Any], matrix: Tensor) -> None:
    """scores.json, per_class.csv, with superclasses per_superclass.csv, and confusion.csv."""
    write_text(folder / "scores.json", json.dumps(result, indent=2) + "\n")
    for name, rows in (("class", result["classes"]), ("superclass", result["superclasses"])):
        if rows:
            write_csv(folder / f"per_{name}.csv", [list(rows[0]), *(list(row.values()) for row in rows)])
    names = [row["class"] for row in result["classes"]]
    counts = ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    write_csv(folder / "confusion.csv", [["true class", *names], *counts])


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def draw_mistakes(path: Path, images: Tensor, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """The images, uint8 (N, 3, 32, 32), with what they were taken for above what they are."""
    path.unlink(missing_ok=True)  # that of an earlier evaluation, if nothing is wrong any more
    if rows:
        shown_as = [(row["predicted"], row["probability"], row["true"]) for row in rows]
        save(mistakes_figure(images, shown_as, title), path)
