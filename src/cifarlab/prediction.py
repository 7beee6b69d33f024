"""Image files labelled by a run's network, or by an exported one.

torch is imported once the command is known to be right, so mistakes are answered at once.
"""

from __future__ import annotations

import csv
import json
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len

from cifarlab import images as files
from cifarlab.atomic import atomically
from cifarlab.errors import RunFailed, UserError
from cifarlab.images import Fit, Unreadable
from cifarlab.types import Count
from cifarlab.untrusted import no_formula

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 500  # files read ahead, twice, and images that the network gets at once
PICTURES, COLUMNS = 100, 10  # the most that a gallery shows
RUNS_OWN = ("record.json", "metrics.csv", "curves.png")
LONGEST = 100  # characters of a class's name
SHOWN = 20  # rows in the terminal where a file gets them all, and reasons of failures

Weights = Literal["scored", "last", "best"]
Classify = Callable[["Tensor"], "Tensor"]  # uint8 (N, 3, 32, 32) to probabilities (N, classes)
Pixels = NDArray[np.uint8]


@dataclass
class Prediction:
    """An image file's likeliest classes with their probabilities, or why it has none."""

    path: Path
    top: Sequence[tuple[str, float]] = ()
    problem: str | None = None
    pixels: Pixels | None = None  # (32, 32, 3), as the network saw them


def predict(
    run: str,
    images: str | list[str],
    top: Count = 3,
    out: str | None = None,
    gallery: str | None = None,
    fit: Fit = "stretch",
    weights: Weights = "scored",
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
) -> None:
    """Label image files: a table in the terminal, and on request a file and a picture.

    Args:
        run: a run's folder or an exported model (`model.pt2`).
        images: see `cifarlab.images.find`.
        top: how many classes are given for each image.
        out: a .csv or .json for the classes and probabilities of all files.
        gallery: a .png of the first 100 images with their labels.
        fit: see `cifarlab.images.read`.
        weights: those of the run; an exported model has the scored ones alone.
        accelerator: as the Trainer's.

    Raises:
        UserError: an argument is wrong, or `images` names nothing.
        RunFailed: some files could not be read; the others have been labelled.
    """
    outputs = [
        writable(key, name, suffixes)
        for key, name, suffixes in (("out", out, (".csv", ".json")), ("gallery", gallery, (".png",)))
        if name is not None
    ]
    names = images if isinstance(images, list) else [images]
    paths = spared(files.find(names), outputs)
    classify, classes = network(run, weights, accelerator)
    top = min(top, len(classes))

    started, count, failed = time.perf_counter(), 0, []
    pictures: list[Prediction] = []
    table = Table(top, classes)
    with writer(Path(out), top) if out else nullcontext(lambda prediction: None) as write:
        for batch in label(paths, classify, classes, top, fit):
            for prediction in batch:
                write(prediction)
                if prediction.problem:
                    failed.append(f"{printable(prediction.path)}: {prediction.problem}")
            good = [prediction for prediction in batch if not prediction.problem]
            table.print(good[: max(0, SHOWN - count)] if out else good)
            pictures += good[: PICTURES - len(pictures)]
            count += len(good)
    seconds = time.perf_counter() - started

    if failed and not count:
        others = f", and no other of the {len(failed):,} files can be labelled" * (len(failed) > 1)
        raise UserError(f"{failed[0]}{others}.")
    if out and count > SHOWN:
        print(f"... and {count - SHOWN:,} more")
    print(f"{count:,} image{'s' * (count != 1)} labelled in {seconds:.1f} s.")
    if out:
        print(f"Classes and probabilities in {out}.")
    if gallery and pictures:
        draw_gallery(Path(gallery), pictures, count)
        print(f"Pictures of {'the first ' if len(pictures) < count else ''}{len(pictures)} in {gallery}.")
    if failed:
        total = f"{len(failed):,} of {count + len(failed):,} files could not be labelled:"
        more = [f"... and {len(failed) - SHOWN:,} more"] * (len(failed) > SHOWN)
        raise RunFailed("\n  ".join([total, *failed[:SHOWN], *more]))


def network(run: str, weights: Weights, accelerator: str) -> tuple[Classify, list[str]]:
    """What maps images to probabilities, and the names of its classes.

    Raises:
        UserError: `run` names neither a run that can be opened nor an exported model.
    """
    from cifarlab import hardware

    hardware.keep_memory()
    path = Path(run)
    if os.path.isfile(path):
        if path.suffix != ".pt2":
            raise UserError(f"run={run}: expected a run's folder, or its model.pt2.")
        if weights != "scored" or accelerator == "gpu":
            wish = f"weights={weights}" if weights != "scored" else "accelerator=gpu"
            raise UserError(
                f"{wish} needs a run's folder: {run} holds the scored weights alone, for the CPU."
            )
        from cifarlab.runs.export import load_exported

        classify, meta = load_exported(path)
        return classify, named(meta["classes"])
    if not os.path.exists(path):
        raise UserError(f"run={run}: there is no such folder or file; expected a run's, or its model.pt2.")
    from cifarlab.runs.reopen import open_run

    opened = open_run(path, weights, accelerator=accelerator)
    return lambda images: opened.logits(images).softmax(1), named(opened.model.classes)


def named(classes: Sequence[str]) -> list[str]:
    """The names of classes, which may be a stranger's, as a table can hold them."""
    return [printable(name)[:LONGEST] for name in classes]


def label(
    paths: Iterator[Path], classify: Classify, classes: Sequence[str], top: int, fit: Fit
) -> Iterator[list[Prediction]]:
    """Predictions in batches, in the order of the paths.

    Raises:
        UserError: the network gives probabilities that are NaN.
    """
    for batch in read_ahead(paths, fit):
        seen = [prediction for prediction in batch if prediction.pixels is not None]
        if seen:
            probabilities = classify(stacked(seen))
            if not probabilities.isfinite().all():
                raise UserError("run=: its weights make probabilities that are NaN, so it labels nothing.")
            best = probabilities.topk(top)
            rows = zip(seen, best.indices.tolist(), best.values.tolist(), strict=True)
            for prediction, labels, values in rows:
                prediction.top = [(classes[k], value) for k, value in zip(labels, values, strict=True)]
        yield batch


def read_ahead(paths: Iterator[Path], fit: Fit) -> Iterator[list[Prediction]]:
    """The files' pixels in batches: while one is used, threads read the next.

    Pillow decodes outside of Python's lock, and a batch of small files is read in less time than it takes to
    start a process.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        ahead: deque[Iterator[Prediction]] = deque()
        while batch := list(islice(paths, BATCH)):
            ahead.append(pool.map(partial(read, fit=fit), batch))
            if len(ahead) > 1:
                yield list(ahead.popleft())
        for reading in ahead:
            yield list(reading)


def read(path: Path, fit: Fit) -> Prediction:
    """A file's pixels, or what is wrong with it."""
    try:
        return Prediction(path, pixels=files.read(path, fit))
    except Unreadable as error:
        return Prediction(path, problem=printable(error))


def stacked(predictions: Sequence[Prediction]) -> Tensor:
    """Their pixels as one tensor, uint8 (N, 3, 32, 32)."""
    import torch

    pixels = np.stack([p.pixels for p in predictions if p.pixels is not None])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def writable(key: str, name: str, suffixes: Sequence[str]) -> Path:
    """The file to write, in a folder that is there.

    Raises:
        UserError: another kind of file was asked for, or it cannot be written.
    """
    path = Path(name)
    if path.name in RUNS_OWN and (path.parent / "config.yaml").exists():
        raise UserError(f"{key}={name} is a file of the run's own: name another file.")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{key}={name}: expected the name of a {' or '.join(suffixes)} file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={name}: its folder cannot be made ({error.strerror}).") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{key}={name} cannot be written; name another file.")
    return path


def spared(paths: Iterable[Path], outputs: Sequence[Path]) -> Iterator[Path]:
    """The same paths, none of which is about to be overwritten.

    Raises:
        UserError: one is.
    """
    taken = {os.path.realpath(path) for path in outputs}
    for path in paths:
        if taken and os.path.realpath(path) in taken:
            raise UserError(
                f"{printable(path)} is one of the images and would be overwritten: name another file."
            )
        yield path


@contextmanager
def writer(path: Path, top: int) -> Iterator[Callable[[Prediction], None]]:
    """A CSV or JSON file, by its suffix, that grows by a prediction at a call; there once it is whole."""
    with atomically(path) as file:

        def write(text: str) -> None:
            file.write(text.encode(errors="backslashreplace"))

        yield from (as_json if path.suffix.lower() == ".json" else as_csv)(write, top)


def as_csv(write: Callable[[str], None], top: int) -> Iterator[Callable[[Prediction], None]]:
    """A line for each file: its name, the classes with their probabilities, and the error if there is one."""
    pairs = [f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "probability")]
    lines = csv.writer(SimpleNamespace(write=write), lineterminator="\n")
    lines.writerow(["file", *pairs, "error"])

    def add(prediction: Prediction) -> None:
        cells = [part for name, value in prediction.top for part in (no_formula(name), f"{value:.6f}")]
        blank = [""] * (len(pairs) - len(cells))
        lines.writerow([no_formula(printable(prediction.path)), *cells, *blank, prediction.problem])

    yield add


def as_json(write: Callable[[str], None], top: int) -> Iterator[Callable[[Prediction], None]]:
    """A list of objects, a line for each file, its name exact: `file` and `top`, or `file` and `error`."""
    before = "[\n"  # there is at least one file, or `find` would have said so

    def add(prediction: Prediction) -> None:
        nonlocal before
        classes = [{"class": name, "probability": round(value, 6)} for name, value in prediction.top]
        said = {"error": prediction.problem} if prediction.problem else {"top": classes}
        write(before + json.dumps({"file": str(prediction.path), **said}))
        before = ",\n"

    yield add
    write("\n]\n")


class Table:
    """The table in the terminal, printed as its rows come."""

    def __init__(self, top: int, classes: Sequence[str]) -> None:
        self.ranks = top
        self.class_width = max(map(len, classes))
        self.name_width = 0

    def print(self, predictions: Sequence[Prediction]) -> None:
        """Further rows, the first ones with a heading."""
        names = [printable(prediction.path) for prediction in predictions]
        if not names:
            return
        first = not self.name_width
        self.name_width = max(self.name_width, *map(cell_len, ["file", *names]))
        if first:
            ordinals = [f"{rank:<{self.class_width + 8}}" for rank in range(1, self.ranks + 1)]
            print("  ".join([f"{'file':<{self.name_width}}", *ordinals]).rstrip())
        for name, prediction in zip(names, predictions, strict=True):
            cells = [f"{label:<{self.class_width}} {value:7.1%}" for label, value in prediction.top]
            print(name + " " * (self.name_width - cell_len(name)), *cells, sep="  ")


def printable(text: object) -> str:
    """The text on one line, safe to print: what is not printable as Python escapes it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def draw_gallery(path: Path, predictions: Sequence[Prediction], count: int) -> None:
    """The pictures as the network saw them, with file name, class and probability."""
    from cifarlab.pictures.grid import grid, save

    captions = [f"{printable(p.path.name)}\n{p.top[0][0]} {p.top[0][1]:.0%}" for p in predictions]
    which = f"The first {len(predictions)} of {count:,} images" if count > len(predictions) else "Images"
    title = f"{which} as the network sees them, with the likeliest class and its probability"
    with warnings.catch_warnings(action="ignore"):  # of letters that the font lacks
        save(grid(stacked(predictions), COLUMNS, captions, title), path)
