"""Mixup and CutMix: images and targets change by the same share."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import one_hot

from cifarlab.regularizers import CutMix, Mixup, Regularization

# Image i is i everywhere and has class i: what comes out says what went in.
COUNT = 50
IMAGES = torch.arange(float(COUNT)).reshape(-1, 1, 1, 1).repeat(1, 3, 32, 32)
TARGETS = one_hot(torch.arange(COUNT), COUNT).float()


@pytest.mark.parametrize("mix", [Mixup(), CutMix(), Mixup(0.2), CutMix(0.2)])
def test_targets_stay_probabilities_and_follow_the_pixels(mix) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        images, targets = mix(IMAGES, TARGETS)
        assert (images.dtype, images.shape, targets.shape) == (torch.float32, IMAGES.shape, TARGETS.shape)
        torch.testing.assert_close(targets.sum(1), torch.ones(COUNT))
        assert targets.min() >= 0
        # The mean pixel is the mean of both images' numbers, weighted as the classes are.
        expected = targets @ torch.arange(float(COUNT))
        torch.testing.assert_close(images.mean((1, 2, 3)), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(IMAGES[:, 0, 0, 0], torch.arange(float(COUNT)))


def test_mixup_blends_every_pixel() -> None:
    torch.manual_seed(1)
    images, _ = Mixup()(IMAGES, TARGETS)
    assert torch.equal(images, images[:, :1, :1, :1].expand_as(images))


def test_cutmix_pastes_one_box_whose_area_is_the_partners_share() -> None:
    torch.manual_seed(2)
    areas = []
    for _ in range(200):
        images, targets = CutMix()(IMAGES, TARGETS)
        pasted = images[:, 0] != IMAGES[:, 0]
        mixed = pasted.any(2).any(1)
        if not mixed.any():
            continue
        box = pasted[mixed][0]
        assert (pasted[mixed] == box).all()
        assert box.sum() == box.any(0).sum() * box.any(1).sum()
        torch.testing.assert_close(1 - targets.diagonal()[mixed], box.float().mean().expand(int(mixed.sum())))
        areas.append(box.float().mean().item())
    assert len(areas) > 180
    assert min(areas) < 0.02
    assert max(areas) > 0.8


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_the_share_is_beta_distributed(alpha: float) -> None:
    torch.manual_seed(3)
    images, targets = IMAGES[:2, :, :2, :2], TARGETS[:2]
    shares = torch.stack([Mixup(alpha)(images, targets)[1][0, 1] for _ in range(2_000)])
    shares = shares[shares > 0]  # half of the permutations of two leave them in place
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean().item() == pytest.approx(0.5, abs=4 * (variance / len(shares)) ** 0.5)
    assert shares.var().item() == pytest.approx(variance, rel=0.15)


def test_of_two_mixes_one_is_drawn_per_batch() -> None:
    torch.manual_seed(4)
    both = Regularization([Mixup(), CutMix()])
    constant = 0
    for _ in range(400):
        images, _ = both.mix(IMAGES[:8, :, :8, :8], TARGETS[:8])
        blended = images != images.round()
        constant += bool(blended.any())
    assert abs(constant - 200) < 4 * 10
