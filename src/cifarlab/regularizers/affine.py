"""Flips, shifts, rotations and zooms: any number of them, one interpolation.

Each draws one matrix per image, (N, 3, 3), that takes a pixel of the result to the place in the input where
it comes from, both as (x, y, 1) in pixels from the image's centre, x to the right and y downwards. The
product of such matrices is again one, so an image is resampled once, as in Keras's ImageDataGenerator:
bilinear, edges repeated.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from cifarlab.errors import UserError
from cifarlab.regularizers.base import Transform
from cifarlab.types import Fraction, NonNegative, Positive

X, Y = 0, 1


def compose(matrices: Iterable[Tensor]) -> Tensor:
    """The product of matrices (N, 3, 3); the image goes through them from left to right.

    Written out, because `@` may round to TF32 or bfloat16, which moves pixels visibly.
    """
    return reduce(lambda left, right: (left[:, :, :, None] * right[:, None]).sum(2), matrices)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Resamples images (N, C, H, W) at the places that matrices (N, 3, 3) name, all in float32.

    `affine_grid` would do the first half, but by a matrix product: see `compose`.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    # grid_sample counts from -1 to 1 between the outer edges of the outermost pixels.
    rows = torch.stack((matrices[:, X] * (2 / width), matrices[:, Y] * (2 / height)), dim=1)
    by_x, by_y, constant = rows[:, None, None].unbind(-1)
    grid = by_x * x[:, None] + (by_y * y[:, None, None] + constant)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _identities(images: Tensor) -> Tensor:
    return torch.eye(3, device=images.device).repeat(len(images), 1, 1)


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(len(images), device=images.device)


class Affine(Transform):
    """A transform that is one matrix per image."""

    @abstractmethod
    def matrices(self, images: Tensor) -> Tensor:
        """Freshly drawn matrices, float32 (N, 3, 3), for images (N, C, H, W)."""

    def __call__(self, images: Tensor) -> Tensor:
        return warp(images, self.matrices(images))


@dataclass(frozen=True)
class Composed(Affine):
    """Several affine transforms as one."""

    parts: tuple[Affine, ...]

    def matrices(self, images: Tensor) -> Tensor:
        return compose(part.matrices(images) for part in self.parts)


@dataclass(frozen=True)
class Rotate(Affine):
    """A turn about the centre by an angle from U(-degrees, degrees)."""

    degrees: NonNegative = 15

    order = 1

    def matrices(self, images: Tensor) -> Tensor:
        angle = _uniform(images, -math.radians(self.degrees), math.radians(self.degrees))
        matrices = _identities(images)
        matrices[:, X, X] = matrices[:, Y, Y] = angle.cos()
        matrices[:, Y, X] = angle.sin()
        matrices[:, X, Y] = -angle.sin()
        return matrices


@dataclass(frozen=True)
class Shift(Affine):
    """Shifts down and across, each from U(-f, f) of the image's height and width, not in whole pixels."""

    height: Fraction = 0.1
    width: Fraction = 0.1

    order = 2

    def matrices(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        matrices = _identities(images)
        matrices[:, Y, 2] = _uniform(images, -self.height * height, self.height * height)
        matrices[:, X, 2] = _uniform(images, -self.width * width, self.width * width)
        return matrices


@dataclass(frozen=True)
class Zoom(Affine):
    """Height and width each scaled by a factor of its own from U(low, high); as in Keras's `zoom_range`,
    below 1 enlarges. UserError if low is above high."""

    low: Positive = 0.9
    high: Positive = 1.1

    order = 3

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UserError(
                f"reg.zoom: low={self.low} is above high={self.high}; write the smaller factor as low."
            )

    def matrices(self, images: Tensor) -> Tensor:
        matrices = _identities(images)
        matrices[:, Y, Y] = _uniform(images, self.low, self.high)
        matrices[:, X, X] = _uniform(images, self.low, self.high)
        return matrices


@dataclass(frozen=True)
class Flip(Affine):
    """Mirror images, each direction with probability 1/2; exact unless another transform interpolates."""

    horizontal: bool = True
    vertical: bool = False

    order = 4

    def _draws(self, images: Tensor) -> list[tuple[int, Tensor]]:
        """For each direction switched on: the axis, and which images (bool, (N,)) to mirror along it."""
        axes = [axis for axis, on in ((X, self.horizontal), (Y, self.vertical)) if on]
        return [(axis, torch.rand(len(images), device=images.device) < 0.5) for axis in axes]

    def matrices(self, images: Tensor) -> Tensor:
        matrices = _identities(images)
        for axis, mirrored in self._draws(images):
            matrices[:, axis, axis] -= 2 * mirrored
        return matrices

    def __call__(self, images: Tensor) -> Tensor:
        for axis, mirrored in self._draws(images):
            images = torch.where(mirrored[:, None, None, None], images.flip(-1 - axis), images)
        return images
