"""The optimizers that `optimizer=` names: torch's, by torch's keys, with Keras's defaults."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from cifarlab.errors import UserError
from cifarlab.optim.muon import Muon
from cifarlab.signatures import conforms
from cifarlab.types import Betas, Count, NonNegative, Positive, Rate


def sgd(
    lr: Positive = 0.01,
    momentum: Rate = 0.0,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
    *,
    params: ParamsT,
) -> Optimizer:
    """Stochastic gradient descent: v <- momentum v + g, w <- w - lr v (Nesterov: w - lr (g + momentum v)).

    `weight_decay` w is added to the gradient g. Raises UserError for `nesterov` without momentum.
    """
    if nesterov and momentum == 0:
        raise UserError("optimizer.nesterov=true needs optimizer.momentum above 0, for example 0.9.")
    return _guarded(
        torch.optim.SGD(
            params, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
        )
    )


def adam(
    lr: Positive = 0.001,
    betas: Betas = [0.9, 0.999],  # noqa: B006 (read only)
    eps: NonNegative = 1e-7,
    weight_decay: NonNegative = 0.0,
    *,
    params: ParamsT,
) -> Optimizer:
    """Adam (Kingma and Ba, 2015, Algorithm 1); `weight_decay` w is added to the gradient.

    Keras adds `eps` before the bias correction of the second moment (the paper's "epsilon hat"), torch after
    it: at step t Keras's acts as eps / sqrt(1 - beta2^t), which is 32 eps at first and 1.3 eps at step 1,000.
    """
    return _guarded(
        torch.optim.Adam(params, lr, _pair(betas), eps=eps, weight_decay=weight_decay, fused=True)
    )


def adamw(
    lr: Positive = 0.001,
    betas: Betas = [0.9, 0.999],  # noqa: B006 (read only)
    eps: NonNegative = 1e-7,
    weight_decay: NonNegative = 0.01,
    *,
    params: ParamsT,
) -> Optimizer:
    """Adam with decoupled decay, w <- w - lr weight_decay w (Loshchilov and Hutter, 2019)."""
    return _guarded(
        torch.optim.AdamW(params, lr, _pair(betas), eps=eps, weight_decay=weight_decay, fused=True)
    )


def rmsprop(
    lr: Positive = 0.001,
    alpha: Rate = 0.9,
    eps: NonNegative = 1e-7,
    momentum: Rate = 0.0,
    weight_decay: NonNegative = 0.0,
    *,
    params: ParamsT,
) -> Optimizer:
    """RMSprop (Hinton's lecture 6e, 2012): s <- alpha s + (1 - alpha) g^2, w <- w - lr g / (sqrt(s) + eps).

    `alpha` is Keras's `rho`. As in Keras 2, `eps` stands outside the root; Keras 3 has it inside.
    """
    return _guarded(
        torch.optim.RMSprop(  # torch has no fused one; its multi-tensor one takes half the time on a CPU
            params, lr, alpha=alpha, eps=eps, momentum=momentum, weight_decay=weight_decay, foreach=True
        )
    )


def muon(
    lr: Positive = 0.02,
    momentum: Rate = 0.95,
    nesterov: bool = True,
    normalize: bool = False,
    weight_decay: NonNegative = 0.0,
    rounds: Count = 5,
    adam_lr: Positive = 0.001,
    betas: Betas = [0.9, 0.999],  # noqa: B006 (read only)
    eps: NonNegative = 1e-7,
    *,
    params: ParamsT,
) -> Optimizer:
    """Muon for kernels, Adam for vectors and for the last matrix, which makes the logits: see `Muon`.

    Raises UserError where no other kernel trains.
    """
    weights: list[Any] = list(params)
    *kernels, last = [weight for weight in weights if weight.ndim >= 2] or [None]
    if not kernels:
        raise UserError(
            "optimizer=muon finds no hidden layer to train (the last layer is Adam's); type optimizer=adam."
        )
    others = [weight for weight in weights if weight.ndim < 2 or weight is last]
    return _guarded(
        Muon(
            kernels,
            others,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            normalize=normalize,
            weight_decay=weight_decay,
            rounds=rounds,
            adam_lr=adam_lr,
            betas=_pair(betas),
            eps=eps,
        )
    )


def _pair(betas: list[float]) -> tuple[float, float]:
    if len(betas) != 2:  # from Python: torch would take the first two of more
        raise UserError(f"optimizer.betas needs two numbers, such as [0.9,0.999]; it has {len(betas)}.")
    return betas[0], betas[1]


def _guarded(optimizer: Optimizer) -> Optimizer:
    """The optimizer, made safe for gradient clipping, for resuming in another memory format, and for what a
    checkpoint, which may be anybody's, has it load."""
    # A fused step could unscale float16 gradients itself, and Lightning then refuses to clip under any mixed
    # precision. Without the offer the scaler unscales them first.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    own = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    optimizer.register_load_state_dict_post_hook(partial(_vet, own=own))
    return optimizer


def _vet(optimizer: Optimizer, own: list[dict[str, Any]]) -> None:
    """Take only moments and rates from what was loaded, the moments laid out as their parameters are.

    The fused CPU kernels walk parameter and moments in memory order, whatever their strides and sizes: with a
    channels_last parameter and contiguous moments they would pair the wrong elements, in silence, and with
    smaller ones write behind them.

    Raises:
        ValueError: the moments are other than this optimizer's own.
    """
    states = optimizer.state
    for group, configured in zip(optimizer.param_groups, own, strict=True):
        rate = group.get("lr")
        if not conforms(rate, NonNegative):
            raise ValueError(f"a rate of {rate}")
        group |= {**configured, "lr": rate}
        names = _moments(optimizer, group)
        for parameter in group["params"]:
            state = states.get(parameter, {})
            if state and state.keys() != names:
                raise ValueError("other moments than this optimizer's")
            for name, value in state.items():
                if name == "step":
                    _check_step(value)
                elif not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
                    raise ValueError("moments of another shape than their parameter")
                else:
                    state[name] = torch.empty_like(parameter).copy_(value)


def _moments(optimizer: Optimizer, group: dict[str, Any]) -> set[str]:
    """What the optimizer remembers of each parameter of that group."""
    momentum = {"momentum_buffer"} if group.get("momentum") or "rounds" in group else set()
    if isinstance(optimizer, torch.optim.SGD) or "rounds" in group:
        return momentum
    if isinstance(optimizer, torch.optim.RMSprop):
        return {"step", "square_avg"} | momentum
    return {"step", "exp_avg", "exp_avg_sq"}


def _check_step(step: Any) -> None:
    """Raises ValueError for what is no count of steps, a whole number or a float32 of no dimensions."""
    if isinstance(step, torch.Tensor) and step.shape == () and step.dtype == torch.float32:
        step = step.item()
    if not (isinstance(step, int | float) and 0 <= step < 2**53):
        raise ValueError("no count of steps")
