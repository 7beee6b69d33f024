"""The kinds of regularizer, each touching one part of a run.

A technique is a frozen dataclass of one of these kinds plus a YAML in `conf/reg` that names it. The network
asks for dropout rates and normalization when it is built, the loss asks for penalties and smoothing, the
data module asks for transforms, selections and mixes, the trainer for averages and stopping rules: nobody
asks which option was chosen. `Regularization` carries what was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


class Regularizer:
    """Any technique that `reg=` may hold."""


class DropoutRates(Regularizer, ABC):
    """Where a network offers places for dropout, the rate at each."""

    @abstractmethod
    def rates(self, places: int) -> list[float]:
        """One rate in [0, 1) for each of the `places`, from the input's side to the output's."""


class Normalization(Regularizer, ABC):
    """Layers that normalize what a convolution or a dense layer puts out."""

    before_activation: bool

    @abstractmethod
    def layer(self, features: int, spatial: bool) -> nn.Module:
        """A layer for (N, features, H, W) if `spatial`, else for (N, features)."""


class Penalty(Regularizer, ABC):
    """A term added to the loss of every batch."""

    @abstractmethod
    def __call__(self, kernels: Sequence[Tensor]) -> Tensor:
        """The penalty, a float32 scalar, of the kernels (at least one) of all hidden convolutions and dense
        layers."""


class Transform(Regularizer, ABC):
    """A change of the training images, drawn anew for each image of each batch."""

    # Transforms run by rising `order`, however `reg` lists them: rotate, shift, zoom, flip (Keras's order),
    # crop, cutout. One that sets no order of its own comes last.
    order: ClassVar[int] = 100

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Float32 pixels 0 to 255, (N, C, H, W), to the same; randomness from torch's default generator
        of the images' device. The input stays as it was."""


class EpochTransform(Regularizer, ABC):
    """A change of the training images that follows from which they are and from how far the run is."""

    order: ClassVar[int] = 100  # among the transforms
    sizes: Sequence[int] = ()  # in pixels, that it may change images to

    @abstractmethod
    def __call__(self, images: Tensor, index: Tensor, epoch: int, epochs: int) -> Tensor:
        """Float32 pixels 0 to 255, (N, C, H, W), and their numbers in the data set, int64 (N,), to pixels, in
        epoch 0, 1 ... of the run's `epochs`."""


class Selection(Regularizer, ABC):
    """Which of the training images an epoch trains on, by how well the network knew them."""

    @abstractmethod
    def count(self, images: int) -> int:
        """How many of so many training images: the same in every epoch."""

    @abstractmethod
    def choose(self, losses: Tensor, generator: torch.Generator) -> Tensor:
        """Positions of `count` images, int64, in the order of training; `losses`, float32 (images,), are of
        the last time that each was trained on, infinite where it never was."""


class Mix(Regularizer, ABC):
    """A blend of training images and of their labels."""

    @abstractmethod
    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, C, H, W) and class probabilities (N, classes), both float32, to the same; randomness
        as for a transform. The inputs stay as they were."""


@dataclass(frozen=True)
class Smoothing(Regularizer):
    """Training targets moved by `amount`, in [0, 1), towards the uniform distribution."""

    amount: float


class Averaging(Regularizer, ABC):
    """A moving average of the weights, which is validated and scored in their place."""

    @abstractmethod
    def share(self, step: int) -> float:
        """How far the average moves towards the weights after a step, in (0, 1]. Step 0 is not asked for: the
        average begins as the weights behind it."""


@dataclass(frozen=True)
class StoppingRule(Regularizer):
    """Stop once `monitor` has not improved for `patience` epochs in a row."""

    patience: int
    monitor: str
