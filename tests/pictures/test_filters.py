"""Filters as images, by numbers worked out by hand."""

import torch
from torch import nn

from cifarlab.pictures.filters import as_images, first_filters


def test_zero_is_grey_and_each_filters_largest_weight_black_or_white() -> None:
    weights = torch.zeros(3, 3, 1, 2)
    weights[0, :, 0, 0] = torch.tensor([-0.2, 0.1, 0.0])
    weights[1, 0, 0, 1] = 1e-6  # a small filter shows as much as a large one
    images = as_images(weights)
    assert images.dtype == torch.uint8
    # 127.5 * (1 - 1), 127.5 * (1 + 1 / 2) and 127.5, the halves rounded to even
    assert images[0, :, 0, 0].tolist() == [0, 191, 128]
    assert images[1, :, 0, 1].tolist() == [255, 128, 128]
    assert images[2].unique().tolist() == [128]
    assert as_images(torch.full((1, 3, 1, 1), float("nan"))).unique().tolist() == [128]


def test_the_first_convolution_if_it_sees_colours() -> None:
    network = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(3, 5, 3)), nn.Conv2d(5, 2, 3))
    filters = first_filters(network)
    assert filters is not None
    assert torch.equal(filters, network[1][0].weight)
    assert not filters.requires_grad
    assert first_filters(nn.Flatten()) is None
    assert first_filters(nn.Conv2d(1, 5, 3)) is None
