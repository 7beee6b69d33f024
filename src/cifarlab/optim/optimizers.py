"""The optimizers that `optimizer=` names: torch's, by torch's keys, with Keras's defaults."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from cifarlab.errors import UserError
from cifarlab.optim.muon import Muon
from cifarlab.types import Count, NonNegative, Positive, Rate


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
    return _fused(
        torch.optim.SGD(
            params, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
        )
    )


def adam(
    lr: Positive = 0.001,
    betas: list[Rate] = [0.9, 0.999],  # noqa: B006 (read only)
    eps: NonNegative = 1e-7,
    weight_decay: NonNegative = 0.0,
    *,
    params: ParamsT,
) -> Optimizer:
    """Adam (Kingma and Ba, 2015, Algorithm 1); `weight_decay` w is added to the gradient.

    Keras adds `eps` before the bias correction of the second moment (the paper's "epsilon hat"), torch after
    it: at step t Keras's acts as eps / sqrt(1 - beta2^t), which is 32 eps at first and 1.3 eps at step 1,000.
    """
    return _fused(torch.optim.Adam(params, lr, _pair(betas), eps=eps, weight_decay=weight_decay, fused=True))


def adamw(
    lr: Positive = 0.001,
    betas: list[Rate] = [0.9, 0.999],  # noqa: B006 (read only)
    eps: NonNegative = 1e-7,
    weight_decay: NonNegative = 0.01,
    *,
    params: ParamsT,
) -> Optimizer:
    """Adam with decoupled decay, w <- w - lr weight_decay w (Loshchilov and Hutter, 2019)."""
    return _fused(torch.optim.AdamW(params, lr, _pair(betas), eps=eps, weight_decay=weight_decay, fused=True))


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
    return torch.optim.RMSprop(  # torch has no fused one; its multi-tensor one takes half the time on a CPU
        params, lr, alpha=alpha, eps=eps, momentum=momentum, weight_decay=weight_decay, foreach=True
    )


def muon(
    lr: Positive = 0.02,
    momentum: Rate = 0.95,
    nesterov: bool = True,
    normalize: bool = False,
    weight_decay: NonNegative = 0.0,
    rounds: Count = 5,
    adam_lr: Positive = 0.001,
    betas: list[Rate] = [0.9, 0.999],  # noqa: B006 (read only)
    eps: NonNegative = 1e-7,
    *,
    params: ParamsT,
) -> Optimizer:
    """Muon for kernels, Adam for vectors and for the last matrix, which makes the logits: see `Muon`."""
    weights: list[Any] = list(params)
    *kernels, last = [weight for weight in weights if weight.ndim >= 2] or [None]
    others = [weight for weight in weights if weight.ndim < 2 or weight is last]
    return Muon(
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


def _pair(betas: list[float]) -> tuple[float, float]:
    if len(betas) != 2:
        raise UserError(f"optimizer.betas needs two numbers, such as [0.9,0.999]; it has {len(betas)}.")
    return betas[0], betas[1]


def _fused(optimizer: Optimizer) -> Optimizer:
    """The optimizer, made safe for gradient clipping and for resuming in another memory format."""
    # A fused step could unscale float16 gradients itself, and Lightning then refuses to clip under any mixed
    # precision. Without the offer the scaler unscales them first.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    optimizer.register_load_state_dict_post_hook(_match_layout)
    return optimizer


def _match_layout(optimizer: Optimizer) -> None:
    """Lay out loaded moments as their parameters are.

    The fused CPU kernels walk parameter and moments in memory order, whatever their strides: with a
    channels_last parameter and contiguous moments they would pair the wrong elements, in silence.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
