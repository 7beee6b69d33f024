"""Small parts that several networks share: activations, dropout and Keras's initialisations."""

from __future__ import annotations

import torch
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


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al., 2014) whose mask costs a CPU less to draw.

    torch draws a float for each element, on one thread; here 16 bits of a 64-bit integer decide. The rate is
    rounded to a multiple of 1/65536, by which what is kept is scaled up. On a GPU it is torch's, and where it
    is compiled, which `random_` cannot be.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        kept = max(1, round((1 - self.p) * 2**16))  # of the 65,536 values
        fours = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        order = torch.empty_like(x, dtype=torch.int16).stride()  # of x, where that has no gaps
        bits = fours.view(torch.int16).as_strided(x.shape, order)
        return x * (bits <= kept - 2**15 - 1).to(x.dtype).mul_(2**16 / kept)


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
