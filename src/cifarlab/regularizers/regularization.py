"""The object that carries a run's regularizers to the parts of the run they touch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from cifarlab.errors import UserError
from cifarlab.regularizers.affine import Affine, Composed
from cifarlab.regularizers.base import (
    Averaging,
    DropoutRates,
    EpochTransform,
    Mix,
    Normalization,
    Penalty,
    Regularizer,
    Selection,
    Smoothing,
    StoppingRule,
    Transform,
)

Kind = TypeVar("Kind", bound=Regularizer)


class Regularization:
    """What `reg=` chose. UserError for what is no regularizer, and for two where only one has room."""

    def __init__(self, regularizers: Iterable[Regularizer] = ()) -> None:
        chosen = list(regularizers)
        for item in chosen:
            if not isinstance(item, Regularizer):
                raise UserError(f"reg holds {item!r}, which is no regularizer; name options of conf/reg.")
        self.normalization = _only([r for r in chosen if isinstance(r, Normalization)], "normalization")
        self.stopping = [r for r in chosen if isinstance(r, StoppingRule)]
        self.averaging = _only([r for r in chosen if isinstance(r, Averaging)], "average of the weights")
        self.selection = _only([r for r in chosen if isinstance(r, Selection)], "selection of images")
        self._dropout = _only([r for r in chosen if isinstance(r, DropoutRates)], "set of dropout rates")
        self._smoothing = _only([r for r in chosen if isinstance(r, Smoothing)], "label smoothing")
        self._penalties = [r for r in chosen if isinstance(r, Penalty)]
        self._transforms = _stages([r for r in chosen if isinstance(r, (Transform, EpochTransform))])
        self._mixes = [r for r in chosen if isinstance(r, Mix)]

    def dropout_rates(self, places: int) -> list[float] | None:
        """The rate at each of a network's places, or None to keep the network's own."""
        return self._dropout.rates(places) if self._dropout else None

    def penalty(self, kernels: Sequence[Tensor]) -> Tensor | None:
        """The sum of all penalties on the kernels, a float32 scalar; None if there is nothing to add."""
        if not self._penalties or not kernels:
            return None
        return torch.stack([penalty(kernels) for penalty in self._penalties]).sum()

    @property
    def smoothing(self) -> float:
        """How far training targets move towards the uniform distribution, 0 for not at all."""
        return self._smoothing.amount if self._smoothing else 0.0

    @property
    def transforms_images(self) -> bool:
        """Whether `augment` does anything."""
        return bool(self._transforms)

    @property
    def sizes(self) -> list[int]:
        """In pixels, what `augment` may change the images' height and width to."""
        resizing = (t.sizes for t in self._transforms if isinstance(t, EpochTransform))
        return [size for sizes in resizing for size in sizes]

    @property
    def mixes_images(self) -> bool:
        """Whether `mix` does anything."""
        return bool(self._mixes)

    def augment(self, images: Tensor, index: Tensor | None = None, epoch: int = 0, epochs: int = 1) -> Tensor:
        """Float32 pixels 0 to 255, (N, C, H, W), through all transforms in their fixed order; those that
        are affine and follow each other interpolate once.

        `index`, int64 (N,), says which of the data set's images they are; without it all count as number 0.
        `epoch` is that of the run's `epochs`.
        """
        for transform in self._transforms:
            if isinstance(transform, EpochTransform):
                numbers = torch.zeros(len(images), dtype=torch.int64) if index is None else index
                images = transform(images, numbers.to(images.device), epoch, epochs)
            else:
                images = transform(images)
        return images

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, C, H, W) and class probabilities (N, classes) blended by the mix; of several, by one
        that is drawn for this batch with equal chance."""
        if not self._mixes:
            return images, targets
        several = len(self._mixes) > 1
        drawn = int(torch.randint(len(self._mixes), (), device=images.device)) if several else 0
        return self._mixes[drawn](images, targets)


def _only(found: list[Kind], what: str) -> Kind | None:
    if len(found) > 1:
        raise UserError(f"reg holds both {found[0]} and {found[1]}, but a run has one {what}: leave one out.")
    return found[0] if found else None


def _stages(transforms: list[Transform | EpochTransform]) -> list[Transform | EpochTransform]:
    """The transforms in their order, neighbours that are affine made one."""
    stages: list[Transform | EpochTransform] = []
    for _, neighbours in groupby(sorted(transforms, key=lambda t: t.order), lambda t: isinstance(t, Affine)):
        group = list(neighbours)
        affine = tuple(t for t in group if isinstance(t, Affine))
        stages += [Composed(affine)] if len(affine) > 1 else group
    return stages
