"""What is in a data set: shapes, counts and statistics in the terminal, images as pictures."""

from __future__ import annotations

import logging
import textwrap
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate, one_hot, pad

from cifarlab.data.files import DataSet
from cifarlab.data.module import ImageData
from cifarlab.data.scaling import channel_statistics
from cifarlab.errors import UserError
from cifarlab.pictures.grid import grid, save
from cifarlab.regularizers import Regularization
from cifarlab.types import Seed

log = logging.getLogger(__name__)


def explore(data: Any, reg: Any, seed: Seed = 0, out: str | None = None) -> None:
    """Say what a data set holds and draw its training images, with augmentation also what that does to one.

    Args:
        data, reg: as in a training; of `reg` only what changes images is shown.
        seed: of what is drawn at random.
        out: a folder for the pictures, in which those of an earlier look are replaced; by default
            `logs/explore/<data set>`.

    Raises:
        UserError: the data cannot be loaded, or the pictures cannot be written.
    """
    regularization = Regularization([instantiate(part) for part in reg.values()])
    module: ImageData = instantiate(data, seed=seed, regularization=regularization)
    module.setup()
    folder = Path(out or f"logs/explore/{module.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.info(f"{description(module)}\n")
        pl.seed_everything(seed, verbose=False)
        drawn = pictures(module)
        if regularization.transforms_images or regularization.mixes_images:
            title = f"{module.name}: an image (top left) and what reg=[{','.join(reg)}] makes of it"
            drawn["augmented"] = augmented(module, regularization, title)
        elif reg:
            log.info(f"reg=[{','.join(reg)}] changes no images, so there are no augmented ones to show.\n")
        log.info("Pictures:")
        for name, figure in drawn.items():
            save(figure, folder / f"{name}.png")
            log.info(f"  {folder / name}.png")
    except OSError as error:
        raise UserError(f"out={folder} cannot be written: {error.strerror or error}.") from error


def description(data: ImageData) -> str:
    """Tables of the shapes, the pixels' statistics and the images of each class."""
    assert data.set is not None
    images = data.set
    train = images.train_images[data.train_index], images.train_labels[data.train_index]
    val = images.train_images[data.val_index], images.train_labels[data.val_index]
    test = images.test_images, images.test_labels
    parts = {"train": train, "val": test if data.validation == "test" else val, "test": test}
    title = f"{data.name}: {len(images.classes)} classes"
    if images.superclasses:
        title += f" in {len(images.superclasses)} superclasses"

    shapes = [["part", "images", "labels"]]
    shapes += [[name, shape(pixels), shape(labels)] for name, (pixels, labels) in parts.items()]

    statistics = [["training pixels, 0 to 1", "mean", "standard deviation"]]
    for colour, mean, std in zip(("red", "green", "blue"), *channel_statistics(train[0]), strict=True):
        statistics.append([colour, f"{mean:.4f}", f"{std:.4f}"])

    by_part = [torch.bincount(labels, minlength=len(images.classes)) for _, labels in parts.values()]
    counts = torch.stack(by_part, dim=1)
    classes = [["class", *parts]]
    for superclass, members in grouped(data).items():
        if superclass:
            classes.append([superclass, *(f"{count:,}" for count in counts[members].sum(0))])
        indent = "  " if superclass else ""
        for label in members:
            classes.append([indent + images.classes[label], *(f"{count:,}" for count in counts[label])])
    return "\n\n".join([title, table(shapes), table(statistics), table(classes)])


def shape(tensor: Tensor) -> str:
    """For example `45,000 x 3 x 32 x 32, uint8`."""
    return f"{' x '.join(f'{size:,}' for size in tensor.shape)}, {str(tensor.dtype).removeprefix('torch.')}"


def table(rows: list[list[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]) for first, *others in rows
    )


def grouped(data: ImageData) -> dict[str, list[int]]:
    """The classes of each superclass; where there are none, all classes under an empty name."""
    assert data.set is not None
    superclass_of, names = data.superclass_of, data.set.superclasses
    if superclass_of is None or names is None:
        return {"": list(range(len(data.set.classes)))}
    return {name: torch.nonzero(superclass_of == n).flatten().tolist() for n, name in enumerate(names)}


def pictures(data: ImageData) -> dict[str, Figure]:
    """Training images, by the names of the files: the first ones, random ones, and some of every class."""
    assert data.set is not None
    order, name = torch.arange(len(data.set.train_images)), data.name
    shuffled = data.train_index[torch.randperm(len(data.train_index))]
    return {
        "first": labelled(data.set, order[:9], 3, f"{name}: the first nine training images"),
        "grid": labelled(data.set, order[:48], 8, f"{name}: the first 48 training images"),
        "random": labelled(data.set, shuffled[:24], 6, f"{name}: 24 random training images"),
        "classes": by_class(data, shuffled),
    }


def labelled(images: DataSet, index: Tensor, columns: int, title: str) -> Figure:
    """Training images with the names of their classes."""
    captions = [spaced(images.classes[label]) for label in images.train_labels[index].tolist()]
    return grid(images.train_images[index], columns, captions, title)


def by_class(data: ImageData, order: Tensor) -> Figure:
    """The first ten images of every class in that order: a row for a class, or for those of a superclass."""
    assert data.set is not None
    pixels, labels, classes = data.set.train_images, data.set.train_labels[order], data.set.classes
    title = f"{data.name}: ten random training images of every class"

    def strip(label: int) -> Tensor:
        """(3, H, 10 (W + 1)): the images side by side, a white line behind each."""
        chosen = pixels[order[labels == label][:10]]
        return pad(chosen, (0, 1, 0, 0, 0, 0, 0, 10 - len(chosen)), value=255).permute(1, 2, 0, 3).flatten(2)

    strips = torch.stack([strip(label) for label in range(len(classes))])
    groups = grouped(data)
    if "" in groups:
        return grid(strips, 1, None, title, rows=[spaced(name) for name in classes], scale=3)
    columns = max(map(len, groups.values()))
    places = [label for members in groups.values() for label in members + [-1] * (columns - len(members))]
    blank = torch.full_like(strips[:1], 255)
    return grid(
        torch.cat([strips, blank])[places],
        columns,
        [[*classes, ""][label].replace("_", " ") for label in places],
        title,
        rows=[spaced(name) for name in groups],
        scale=2,
    )


def augmented(data: ImageData, regularization: Regularization, title: str) -> Figure:
    """A random training image and 15 augmented versions of it, mixed ones with their classes' shares."""
    assert data.set is not None
    images = data.set
    batch = data.train_index[
        torch.randperm(len(data.train_index))[:64]
    ]  # the image and what may be mixed into it
    pixels = images.train_images[batch].float()
    probabilities = one_hot(images.train_labels[batch], len(images.classes)).float()
    drawn = [(pixels, probabilities)]
    versions = (regularization.augment(pixels, epoch=epoch, epochs=15) for epoch in range(15))
    drawn += [regularization.mix(version, probabilities) for version in versions]
    whole = images.train_images.shape[2:]
    shown = torch.cat([interpolate(pixels[:1], whole) for pixels, _ in drawn])
    shown = shown.round().clamp(0, 255).to(torch.uint8)
    captions = [shares(probabilities[0], images.classes) for _, probabilities in drawn]
    return grid(shown, 4, captions if regularization.mixes_images else None, title)


def shares(probabilities: Tensor, classes: list[str]) -> str:
    """The classes that have a share of a mixed image, a line for each, the largest first."""
    values, labels = probabilities.topk(2)
    lines = [
        f"{value:.0%} {classes[label].replace('_', ' ')}"
        for value, label in zip(values.tolist(), labels.tolist(), strict=True)
        if value >= 0.005
    ]
    return "\n".join(lines)


def spaced(name: str) -> str:
    """A class's name as a caption: lines of some 20 characters."""
    return "\n".join(
        textwrap.wrap(name.replace("_", " "), 20, break_long_words=False, break_on_hyphens=False)
    )
