"""Plain stacks of convolutions, the networks of the five posts: blocks that end in a pool, then dense layers.

A block is a list of its 3 x 3 convolutions' widths. After each pool and each dense layer there is a place
for dropout; after each convolution and each dense layer one for normalization.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from cifarlab.errors import UserError
from cifarlab.models.classifier import Classifier
from cifarlab.models.layers import Dropout, glorot_uniform, he_uniform, make_activation
from cifarlab.models.winograd import Conv2d
from cifarlab.types import Activation, Count, Halvings, Rate

Padding = Literal["same", "valid"]
Init = Literal["he", "glorot"]
INITS = {"he": he_uniform, "glorot": glorot_uniform}


class ConvNet(Classifier):
    """Any plain stack, its layers given in the YAML: `convnet`, `lab3`, `conv4` and `conv1`.

    Args:
        blocks: the convolutions' widths, block by block; each block ends in a 2 x 2 max pool.
        padding: of the first, second ... convolution in every block.
        dense: widths of the hidden dense layers.
        dropout: rates after each pool and each hidden dense layer, unless `reg=` gives others.
        drop_before_pool: whether a block's dropout comes before its pool.
        init: He- or Glorot-uniform for all but the last layer, which is Glorot-uniform.
        activation: after each convolution and each hidden dense layer.

    Raises:
        UserError: when the blocks leave no pixel, or `dropout` has not one rate for each place.
    """

    def __init__(
        self,
        blocks: list[list[Count]],
        padding: list[Padding],
        dense: list[Count],
        dropout: list[Rate] | None = None,
        drop_before_pool: bool = False,
        init: Init = "glorot",
        activation: Activation = "relu",
        **run: Any,
    ) -> None:
        super().__init__(**run)
        places = len(blocks) + len(dense)
        rates = self.regularization.dropout_rates(places) or dropout or [0.0] * places
        if len(rates) != places:
            raise UserError(
                f"model.dropout has {len(rates)} rates; expected {places}: one after each of the "
                f"{len(blocks)} pools and {len(dense)} dense layers."
            )
        norm = self.regularization.normalization
        layers: list[nn.Module] = []

        def add(layer: nn.Conv2d | nn.Linear, features: int) -> None:
            INITS[init](layer)
            unit = [layer, make_activation(activation)]
            if norm is not None:
                unit.insert(1 if norm.before_activation else 2, norm.layer(features, layer.weight.ndim == 4))
            layers.extend(unit)

        channels, size = 3, 32
        for widths, rate in zip(blocks, rates, strict=False):
            for width, pad in zip(widths, padding, strict=False):
                add(Conv2d(channels, width, 3, padding=pad), width)
                channels, size = width, size - 2 * (pad == "valid")
            drop = [Dropout(rate)] if rate else []
            if drop_before_pool:
                layers.extend([*drop, nn.MaxPool2d(2)])
            else:
                # the maximum and ReLU commute: the same numbers, a quarter of the work
                commutes = isinstance(layers[-1], nn.ReLU)
                layers.insert(len(layers) - commutes, nn.MaxPool2d(2))
                layers.extend(drop)
            size //= 2
            if size < 1:
                raise UserError(
                    f"model.blocks={blocks} leaves no pixel of a 32 x 32 image; take fewer blocks."
                )
        layers.append(nn.Flatten())
        features = channels * size * size
        for width, rate in zip(dense, rates[len(blocks) :], strict=True):
            add(nn.Linear(features, width), width)
            layers.extend([Dropout(rate)] if rate else [])
            features = width
        layers.append(nn.Linear(features, self.num_classes))
        glorot_uniform(layers[-1])  # type: ignore[arg-type]
        for layer in layers:
            if isinstance(layer, nn.ReLU):  # nothing else reads what it is given
                layer.inplace = True
        self.net = nn.Sequential(*layers)


class VGG(ConvNet):
    """VGG-k of the tutorial: k blocks of two convolutions, each block twice as wide as the one before."""

    def __init__(
        self,
        blocks: Halvings = 3,
        width: Count = 32,
        dense: Count = 128,
        activation: Activation = "relu",
        **run: Any,
    ) -> None:
        widths = [[width * 2**i] * 2 for i in range(blocks)]
        super().__init__(widths, ["same", "same"], [dense], init="he", activation=activation, **run)
