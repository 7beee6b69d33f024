"""Small parts that several networks share: activations and Keras's initialisations."""

from __future__ import annotations

from torch import Tensor, nn

from cifarlab.types import Activation

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def make_activation(name: Activation) -> nn.Module:
    """A fresh layer of that nonlinearity."""
    return ACTIVATIONS[name]()


def he_uniform(layer: nn.Conv2d | nn.Linear) -> None:
    """Weights from U(-a, a), a = sqrt(6 / fan_in); zero bias (He et al. 2015, as Keras draws it)."""
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def glorot_uniform(layer: nn.Conv2d | nn.Linear) -> None:
    """Weights from U(-a, a), a = sqrt(6 / (fan_in + fan_out)); zero bias (Glorot and Bengio 2010)."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Scale(nn.Module):
    """Its input times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:g}"
