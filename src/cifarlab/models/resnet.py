"""Residual networks for 32 x 32 images (He et al., 2016): `resnet18`, `resnet20` and `resnet56`.

A network is two lists: the stages' widths and their numbers of blocks. Every stage but the first halves the
image. ResNet-20 and 56 are those of the paper's section 4.2; ResNet-18 is its ImageNet network with a
3 x 3 stem and no max pool.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from cifarlab.errors import UserError
from cifarlab.models.classifier import Classifier
from cifarlab.models.layers import Dropout, make_activation
from cifarlab.models.winograd import Conv2d
from cifarlab.types import Activation, Count

Shortcut = Literal["identity", "projection"]


class ResNet(Classifier):
    """A stem, stages of residual blocks, the mean over all pixels, one linear layer.

    Batch norm belongs to the architecture, at torch's constants and before the activation; `reg=batch_norm`
    adds nothing. Dropout has a place after each stage, the last being just before the linear layer.

    Args:
        widths: each stage's channels; the stem has the first.
        blocks: each stage's number of blocks.
        shortcut: what passes a block that changes the shape: every second pixel and channels of zeros
            ("identity", the paper's option A), or a 1 x 1 convolution with batch norm ("projection", B).
        activation: after the stem, inside each block, and after its sum.

    Raises:
        UserError: when the lists differ in length, identity shortcuts would have to lose channels, or
            projection shortcuts have fewer than 8.
    """

    def __init__(
        self,
        widths: list[Count],
        blocks: list[Count],
        shortcut: Shortcut = "projection",
        activation: Activation = "relu",
        **run: Any,
    ) -> None:
        super().__init__(**run)
        if not widths or len(widths) != len(blocks):
            raise UserError(
                f"model.widths has {len(widths)} numbers and model.blocks {len(blocks)}; expected one of each"
                " for every stage."
            )
        if shortcut == "identity" and any(after < before for before, after in pairwise(widths)):
            raise UserError(
                f"model.widths={list(widths)} falls, which identity shortcuts cannot follow: let the widths"
                " rise or set model.shortcut=projection."
            )
        if shortcut == "projection" and any(width < 8 for width in widths[:-1]):
            raise UserError(  # torch 2.15 writes out of bounds in their backward pass on a CPU
                f"model.widths={list(widths)}: expected 8 or more in front of a projection shortcut; set "
                "model.shortcut=identity for narrower ones."
            )
        rates = self.regularization.dropout_rates(len(widths)) or [0.0] * len(widths)
        channels = widths[0]
        stem = [conv(3, channels, 3), nn.BatchNorm2d(channels), make_activation(activation)]
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(*stem))
        for number, (width, depth, rate) in enumerate(zip(widths, blocks, rates, strict=True), start=1):
            stage: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if number > 1 and index == 0 else 1
                stage.append(Block(channels, width, stride, shortcut, activation))
                channels = width
            layers[f"stage{number}"] = nn.Sequential(*stage)
            if number == len(widths):
                layers["mean"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            if rate:
                layers[f"dropout{number}"] = Dropout(rate)
        layers["linear"] = nn.Linear(channels, self.num_classes)
        self.net = nn.Sequential(layers)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: (N, channels, H, W) to (N, width, H / stride, W / stride)."""

    def __init__(
        self, channels: int, width: int, stride: int, shortcut: Shortcut, activation: Activation
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv(channels, width, 3, stride),
            nn.BatchNorm2d(width),
            make_activation(activation),
            conv(width, width, 3),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if (channels, stride) != (width, 1):
            if shortcut == "identity":
                self.shortcut = PaddedIdentity(width - channels, stride)
            else:
                self.shortcut = nn.Sequential(conv(channels, width, 1, stride), nn.BatchNorm2d(width))
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.branch(x) + self.shortcut(x))


class PaddedIdentity(nn.Module):
    """Every `stride`-th pixel of each row and column, then `extra` channels of zeros behind the others."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def conv(channels: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution before batch norm: no bias, He-normal by its outputs (He et al., 2015, section 2.2)."""
    layer = Conv2d(channels, width, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
