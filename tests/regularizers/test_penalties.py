"""Penalties by hand."""

from __future__ import annotations

import pytest
import torch

from cifarlab.regularizers import L1, L2, ElasticNet, Regularization


def kernels() -> list[torch.Tensor]:
    """Squares sum to 1 + 4 + 9 + 0.25 = 14.25, absolute values to 6.5."""
    values = (torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[[[-0.5]]]]))
    return [value.requires_grad_() for value in values]


@pytest.mark.parametrize(
    "penalty, value, gradient",
    [
        (L2(), 0.001 * 14.25, lambda w: 0.002 * w),
        (L2(0.1), 1.425, lambda w: 0.2 * w),
        (L1(0.01), 0.065, lambda w: 0.01 * w.sign()),
        (ElasticNet(l1=0.01, l2=0.1), 0.065 + 1.425, lambda w: 0.01 * w.sign() + 0.2 * w),
    ],
)
def test_value_and_gradient(penalty, value: float, gradient) -> None:
    weights = kernels()
    total = penalty(weights)
    assert (total.shape, total.dtype) == ((), torch.float32)
    assert total.item() == pytest.approx(value, rel=1e-6)
    for weight, slope in zip(weights, torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(slope, gradient(weight.detach()))


def test_large_layers_are_summed_without_losing_digits() -> None:
    weights = [torch.full((1024, 1024), 0.01, requires_grad=True)]
    assert L2()(weights).item() == pytest.approx(0.001 * 1024**2 * 1e-4, rel=1e-6)


def test_several_penalties_add_up_and_none_is_none() -> None:
    both = Regularization([L1(0.01), L2(0.1)]).penalty(kernels())
    assert both is not None
    assert both.item() == pytest.approx(1.49)
    assert Regularization([]).penalty(kernels()) is None
    assert Regularization([L2()]).penalty([]) is None
