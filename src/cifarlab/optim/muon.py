"""Muon: momentum whose steps are made orthogonal, for the kernels of hidden layers; Adam for all else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

# a quintic that takes singular values from 0.001 to 1 close to 1 within five rounds (Jordan, 2024)
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor, rounds: int) -> Tensor:
    """Matrices (rows, columns) with all singular values moved towards 1, by Newton and Schulz's iteration, in
    float32: with five rounds to 0.7 to 1.2, with three the small ones not as far."""
    a, b, c = QUINTIC
    tall = matrices.shape[0] > matrices.shape[1]
    x = (matrices.T if tall else matrices).float()
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(Optimizer):
    """Muon (Jordan et al., 2024) on `kernels`, Adam (Kingma and Ba, 2015) on `others`.

    A kernel is taken as a matrix with a row for each output. Its step is the orthogonalized (Nesterov)
    momentum times sqrt(max(1, rows / columns)), so `lr` means the same for every layer and loss.

    Args:
        lr: of the kernels.
        normalize: keep each kernel's norm at the root of its rows, which in front of batch norm changes
            nothing but how far `lr` turns it.
        weight_decay: decoupled, of the kernels: w <- w - lr weight_decay w.
        rounds: of the iteration that orthogonalizes.
        adam_lr, betas, eps: of the others.
    """

    def __init__(
        self,
        kernels: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        normalize: bool,
        weight_decay: float,
        rounds: int,
        adam_lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        muon = {"momentum": momentum, "nesterov": nesterov, "normalize": normalize, "rounds": rounds}
        groups = [
            {"params": list(kernels), "lr": lr, "weight_decay": weight_decay, **muon},
            {"params": list(others), "lr": adam_lr, "betas": betas, "eps": eps},
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            step = self.muon if "rounds" in group else self.adam
            for weight in group["params"]:
                if weight.grad is not None:
                    step(weight, weight.grad, self.state[weight], group)
        return loss

    def muon(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        matrix = (gradient.add(mean, alpha=group["momentum"]) if group["nesterov"] else mean).flatten(1)
        turn = orthogonalized(matrix, group["rounds"]).view_as(weight)
        if group["normalize"]:
            weight.mul_(len(weight) ** 0.5 / weight.norm())
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        rows, columns = matrix.shape
        weight.add_(turn.to(weight.dtype), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)

    def adam(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        state["step"] += 1
        first, second = group["betas"]
        mean = state["exp_avg"].lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        weight.addcdiv_(mean, root, value=-group["lr"] / (1 - first ** state["step"]))
