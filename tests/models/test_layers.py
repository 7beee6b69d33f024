"""Dropout with a cheaper mask: the rate, the scale, independence, and torch's own where it does nothing."""

import pytest
import torch
from torch import nn

from cifarlab.models.layers import Dropout

ONES = torch.ones(64, 32, 16, 16)


def dropped(rate: float, x: torch.Tensor = ONES) -> torch.Tensor:
    torch.manual_seed(0)
    return Dropout(rate)(x)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_the_rate_and_the_scale(rate: float) -> None:
    y = dropped(rate)
    kept = round((1 - rate) * 2**16) / 2**16
    assert y.unique().tolist() == [0, pytest.approx(1 / kept)]
    deviation = (rate * (1 - rate) / y.numel()) ** 0.5
    assert abs((y == 0).float().mean() - rate) < 4 * deviation
    for at in range(4):  # each quarter of a 64-bit integer
        assert abs((y.flatten()[at::4] == 0).float().mean() - rate) < 8 * deviation


def test_elements_fall_out_independently() -> None:
    zero = (dropped(0.5).flatten() == 0).float() - 0.5
    for lag in (1, 2, 3, 4, 8, 256):
        assert abs((zero[lag:] * zero[:-lag]).mean()) < 4 * 0.25 / len(zero) ** 0.5


def test_gradients_pass_where_values_do() -> None:
    x = torch.rand(64, 128, requires_grad=True)
    y = dropped(0.3, x)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.allclose(x.grad * x, y)


@pytest.mark.parametrize("rate, kept", [(0.0, 1.0), (1e-7, 1.0)])
def test_a_rate_of_next_to_nothing_keeps_all(rate: float, kept: float) -> None:
    assert torch.equal(dropped(rate), ONES * kept)


@pytest.mark.parametrize(
    "x",
    [
        ONES.to(memory_format=torch.channels_last),
        ONES[:, :, ::2, 1:],
        torch.ones(3, 1).expand(3, 1000),
        torch.ones(7),
        torch.ones(5, 3, dtype=torch.bfloat16),
        torch.ones(0, 4),
    ],
    ids=["channels_last", "gaps", "expanded", "odd", "bfloat16", "empty"],
)
def test_any_layout_and_type(x: torch.Tensor) -> None:
    y = dropped(0.5, x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert set(y.unique().tolist()) <= {0.0, 2.0}
    if x.dim() == 4:
        assert y.stride() == torch.empty_like(x).stride()
    if x.numel() > 1000:
        assert abs((y == 0).float().mean() - 0.5) < 0.05


def test_a_seed_repeats_it_and_evaluation_leaves_all() -> None:
    assert torch.equal(dropped(0.5), dropped(0.5))
    assert not torch.equal(dropped(0.5), Dropout(0.5)(ONES))
    assert torch.equal(Dropout(0.5).eval()(ONES), ONES)
    assert isinstance(Dropout(0.5), nn.Dropout)


def test_it_can_be_compiled_in_one_piece() -> None:
    torch.manual_seed(0)
    compiled = torch.compile(Dropout(0.25).forward, fullgraph=True, backend="aot_eager")
    kept = compiled(torch.ones(100_000)).ne(0).float().mean().item()
    assert kept == pytest.approx(0.75, abs=0.01)
