"""The optimizers against steps worked out by hand, and the fast kernels against the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.optim import Optimizer

from cifarlab.errors import UserError
from cifarlab.optim.optimizers import adam, adamw, muon, rmsprop, sgd


def run(make: Callable[..., Optimizer], start: float, gradients: list[float], **keys: object) -> list[float]:
    """The weight after each step."""
    weight = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = make(params=[weight], **keys)
    path = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        path.append(weight.item())
    return path


def test_sgd_two_steps() -> None:
    # v: 2, then 0.9 * 2 + 1 = 2.8; w: 1 - 0.1 * 2 = 0.8, then 0.8 - 0.1 * 2.8 = 0.52
    assert run(sgd, 1.0, [2.0, 1.0], lr=0.1, momentum=0.9) == pytest.approx([0.8, 0.52])


def test_nesterov_two_steps() -> None:
    # g + 0.9 v: 2 + 1.8 = 3.8, then 1 + 0.9 * 2.8 = 3.52; w: 1 - 0.38 = 0.62, then 0.62 - 0.352 = 0.268
    path = run(sgd, 1.0, [2.0, 1.0], lr=0.1, momentum=0.9, nesterov=True)
    assert path == pytest.approx([0.62, 0.268])


def test_sgd_weight_decay_joins_the_gradient() -> None:
    # 1 - 0.1 * (2 + 0.5 * 1) = 0.75
    assert run(sgd, 1.0, [2.0], lr=0.1, weight_decay=0.5) == pytest.approx([0.75])


def test_adam_first_step() -> None:
    # corrected moments are g and g^2, so the step is lr g / (|g| + eps)
    assert run(adam, 1.0, [0.5]) == pytest.approx([1 - 0.001 * 0.5 / (0.5 + 1e-7)], abs=1e-15)
    # at |g| = eps it is half of lr; with Keras's epsilon hat it would be lr / (1 + 31.6)
    assert run(adam, 1.0, [1e-7]) == pytest.approx([1 - 0.0005], abs=1e-12)


def test_adamw_decays_the_weight_itself() -> None:
    # 1 * (1 - 0.1 * 0.2) = 0.98, then Adam's first step of lr = 0.1; Adam only changes its gradient's size
    assert run(adamw, 1.0, [0.5], lr=0.1, weight_decay=0.2) == pytest.approx([0.88])
    assert run(adam, 1.0, [0.5], lr=0.1, weight_decay=0.2) == pytest.approx([0.9])


def test_betas() -> None:
    # m = 0.5 * 0.5 * 2 + 0.5 * 4 = 2.5 over 1 - 0.25; v = 0.75 * 0.25 * 4 + 0.25 * 16 = 4.75 over 1 - 0.5625
    path = run(adam, 0.0, [2.0, 4.0], lr=1.0, betas=[0.5, 0.75], eps=0.0)
    assert path == pytest.approx([-1.0, -1.0 - (2.5 / 0.75) / (4.75 / 0.4375) ** 0.5])


def test_rmsprop_two_steps() -> None:
    # large eps, so that its place matters: outside the root
    path = run(rmsprop, 1.0, [3.0, -1.0], lr=0.01, alpha=0.9, eps=0.1)
    weight, square = 1.0, 0.0
    by_hand = []
    for gradient in (3.0, -1.0):
        square = 0.9 * square + 0.1 * gradient**2
        weight -= 0.01 * gradient / (np.sqrt(square) + 0.1)
        by_hand.append(weight)
    assert path == pytest.approx(by_hand, abs=1e-15)
    assert path[0] == pytest.approx(1 - 0.03 / (0.9**0.5 + 0.1))


PLAIN = [
    (sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, torch.optim.SGD),
    (sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, torch.optim.SGD),
    (adam, {"lr": 0.01, "betas": [0.8, 0.99], "eps": 1e-7, "weight_decay": 0.01}, torch.optim.Adam),
    (adamw, {"lr": 0.01, "betas": [0.8, 0.99], "eps": 1e-7, "weight_decay": 0.1}, torch.optim.AdamW),
    (rmsprop, {"lr": 0.01, "alpha": 0.8, "eps": 1e-7, "momentum": 0.5}, torch.optim.RMSprop),
]


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for number in steps:
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        model(x.to(memory_format=torch.channels_last)).square().mean().backward()
        optimizer.step()


def network(memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.Flatten(), nn.Linear(28, 3))
    return model.to(memory_format=memory_format)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("make, keys, torchs", PLAIN)
def test_fast_kernels_equal_the_plain_ones(
    make: Callable[..., Optimizer], keys: dict, torchs: type[Optimizer]
) -> None:
    fast, plain = network(), network()
    start = weights(fast)
    train(fast, make(params=fast.parameters(), **keys), range(10))
    train(plain, torchs(plain.parameters(), foreach=False, **keys), range(10))  # type: ignore[call-arg]
    torch.testing.assert_close(weights(fast), weights(plain), rtol=0, atol=1e-6)
    assert (weights(fast) - start).abs().max() > 0.01


@pytest.mark.parametrize("make, keys, torchs", PLAIN)
def test_resumes_in_another_memory_format(
    make: Callable[..., Optimizer], keys: dict, torchs: type[Optimizer]
) -> None:
    whole = network()
    optimizer = make(params=whole.parameters(), **keys)
    train(whole, optimizer, range(5))
    saved = copy.deepcopy(optimizer.state_dict())
    for memory_format in (torch.channels_last, torch.contiguous_format):
        resumed = network(memory_format)
        resumed.load_state_dict(whole.state_dict())
        again = make(params=resumed.parameters(), **keys)
        again.load_state_dict(copy.deepcopy(saved))
        train(resumed, again, range(5, 8))
        reference = network()
        reference.load_state_dict(whole.state_dict())
        plain = torchs(reference.parameters(), foreach=False, **keys)  # type: ignore[call-arg]
        plain.load_state_dict(copy.deepcopy(saved))
        for group in plain.param_groups:
            group.update(foreach=False, fused=False)
        train(reference, plain, range(5, 8))
        torch.testing.assert_close(weights(resumed), weights(reference), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [sgd, adam, adamw, rmsprop])
def test_mixed_precision_may_clip_gradients(make: Callable[..., Optimizer]) -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([30.0, 40.0])
    optimizer = make(params=[weight])
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, clip_val=1.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]), rtol=0, atol=1e-5)


def test_float16_gradients_are_unscaled() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = sgd(lr=0.1, params=[weight])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(weight.sum() * 2).backward()
    scaler.step(optimizer)
    assert weight.item() == pytest.approx(0.8)


MAKERS = {
    "sgd": partial(sgd, momentum=0.9),
    "adam": adam,
    "adamw": adamw,
    "rmsprop": partial(rmsprop, momentum=0.9),
    "muon": muon,
}


@pytest.mark.parametrize("name", MAKERS)
def test_moments_that_are_not_its_own_are_refused(name: str) -> None:
    """A fused step would write behind moments that are smaller than their parameter."""

    def made() -> tuple[nn.Module, Optimizer]:
        model = network()
        return model, MAKERS[name](params=model.parameters())

    model, optimizer = made()
    train(model, optimizer, range(2))
    whole = optimizer.state_dict()
    tampered: list[tuple[str, Any]] = []
    for key, value in whole["state"][0].items():
        large = isinstance(value, torch.Tensor) and value.ndim
        strange = [torch.ones(1), [1.0], "x"] if large else [-1, float("nan"), torch.ones(9), "x"]
        tampered += [(key, other) for other in strange]
    for key, value in tampered:
        state = copy.deepcopy(whole)
        state["state"][0][key] = value
        with pytest.raises((ValueError, TypeError)):
            made()[1].load_state_dict(state)
    for change in (
        lambda state: state["state"][0].popitem(),
        lambda state: state["state"][0].update(other=torch.ones(1)),
        lambda state: state["param_groups"][0].update(lr="fast"),
        lambda state: state["param_groups"][0].update(lr=float("nan")),
        lambda state: state["param_groups"][0].pop("lr"),
    ):
        state = copy.deepcopy(whole)
        change(state)
        if state["state"][0]:  # of SGD's one moment none is left: as before the first step
            with pytest.raises((ValueError, KeyError)):
                made()[1].load_state_dict(state)


def test_a_checkpoint_changes_no_key_of_the_optimizer() -> None:
    model = network()
    state = adam(params=model.parameters(), lr=0.5).state_dict()
    state["param_groups"][0] |= {"betas": "ab", "eps": None, "fused": False, "foreach": True}
    optimizer = adam(params=model.parameters(), betas=[0.8, 0.9])
    optimizer.load_state_dict(state)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (0.5, (0.8, 0.9), 1e-7, True)
    assert not group["foreach"]
    train(model, optimizer, range(1))


def test_refusals() -> None:
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match=r"optimizer\.nesterov=true needs optimizer\.momentum above 0"):
        sgd(nesterov=True, params=[weight])
    with pytest.raises(UserError, match=r"optimizer\.betas needs two numbers"):
        adam(betas=[0.9], params=[weight])
