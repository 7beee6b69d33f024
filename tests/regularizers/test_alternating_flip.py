"""Flips that alternate: each image both ways in two epochs, half of the images in each."""

import torch

from cifarlab.regularizers import AlternatingFlip, Crop, Regularization

IMAGES = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
INDEX = torch.arange(64)


def mirrored(index: torch.Tensor, epoch: int) -> torch.Tensor:
    """Which of the images come out as their mirror images; the others come out as they are."""
    images = IMAGES.repeat(-(-len(index) // 64), 1, 1, 1)[: len(index)]
    seen = AlternatingFlip()(images, index, epoch, 3)
    same = (seen == images).flatten(1).all(1)
    assert torch.equal(seen[~same], images[~same].flip(3))
    return ~same


def test_two_epochs_show_each_image_both_ways() -> None:
    first, second, third = (mirrored(INDEX, epoch) for epoch in (0, 1, 2))
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)


def test_an_epoch_mirrors_half_of_the_images_without_a_pattern() -> None:
    flips = mirrored(torch.arange(10_000), 0).float()
    assert abs(flips.mean() - 0.5) < 0.01
    for lag in range(1, 65):  # as often as not an image is mirrored as another some numbers away
        assert abs((flips[lag:] == flips[:-lag]).float().mean() - 0.5) < 0.03


def test_a_run_tells_it_which_images_and_which_epoch() -> None:
    regularization = Regularization([AlternatingFlip()])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    seen = regularization.augment(IMAGES[order], order, 1, 3)
    assert torch.equal(seen, AlternatingFlip()(IMAGES, INDEX, 1, 3)[order])
    torch.manual_seed(0)
    both = Regularization([Crop(), AlternatingFlip()]).augment(IMAGES, INDEX, 1, 3)
    torch.manual_seed(0)
    assert torch.equal(both, Crop()(AlternatingFlip()(IMAGES, INDEX, 1, 3)))
