"""Pixel scalings, their statistics from the training images alone. Each is the first layer of the network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Scaling = Literal["unit", "center", "standardize", "whiten", "raw"]


class ChannelScaling(nn.Module):
    """(x / 255 - mean) / std by channel: float32 (N, C, H, W) to the same.

    Args:
        mean, std: (C,), of pixels from 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * mean.float().view(-1, 1, 1))
        self.register_buffer("std", 255 * std.float().view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std


class Whitening(nn.Module):
    """ZCA: W = U (L + eps)^-1/2 U^T, of all that decorrelate the pixels the nearest to the identity.

    A. J. Bell and T. J. Sejnowski, The "independent components" of natural scenes are edge filters (1997).

    Args:
        mean, matrix: (D,) and W, (D, D), of the D = C * H * W pixels from 0 to 1.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("matrix", matrix.float())

    def forward(self, pixels: Tensor) -> Tensor:
        flat = pixels.flatten(1) / 255 - self.mean
        if torch.compiler.is_exporting():  # an exported program runs in float32 and has no such switches
            return (flat @ self.matrix).view_as(pixels)
        # in bfloat16 or TF32 the rounding would be as large as the small eigenvalues that this brings out
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        with torch.autocast(pixels.device.type, enabled=False):
            white = flat @ self.matrix
        torch.set_float32_matmul_precision(precision)
        return white.view_as(pixels)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by channel of uint8 (N, C, H, W), as shares of 255: float64 (C,) each."""
    values = torch.arange(256, dtype=torch.float64) / 255
    # 256 counts a channel say all there is to know, in one pass and without a float copy of the images
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ values
    return mean, (shares @ values.square() - mean.square()).clamp_min(0).sqrt()


def zca_statistics(images: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean (D,) and ZCA matrix (D, D), float64, of uint8 (N, C, H, W), D = C * H * W, as shares of 255.

    `eps` is added to the eigenvalues of the covariance; the default is Keras's.
    """
    size = images[0].numel()
    total, product = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for part in images.split(5000):
        flat = part.flatten(1).float() / 255
        total += flat.double().sum(0)
        product += (flat.T @ flat).double()
    mean = total / len(images)
    values, vectors = torch.linalg.eigh(product / len(images) - mean.outer(mean))
    # rounding may leave an eigenvalue of a constant pixel just below zero
    return mean, vectors * (values.clamp_min(0) + eps).rsqrt() @ vectors.T


def make_scaling(name: Scaling, images: Tensor) -> nn.Module:
    """The layer for that scaling, its statistics those of `images`, uint8 (N, C, H, W)."""
    if name == "raw":
        return nn.Identity()
    if name == "whiten":
        return Whitening(*zca_statistics(images))
    mean, std = channel_statistics(images) if name != "unit" else (torch.zeros(3), torch.ones(3))
    return ChannelScaling(mean, std if name == "standardize" else torch.ones_like(std))


def blank_scaling(name: Scaling) -> nn.Module:
    """The same layer before its statistics are loaded, for 32 x 32 RGB images."""
    if name == "raw":
        return nn.Identity()
    if name == "whiten":
        return Whitening(torch.zeros(3072), torch.zeros(3072, 3072))
    return ChannelScaling(torch.zeros(3), torch.ones(3))
