"""Flips, shifts, turns and zooms against scipy, which is what Keras resamples with, and their draws."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from torch import Tensor

from cifarlab.errors import UserError
from cifarlab.regularizers import Affine, Flip, Regularization, Rotate, Shift, Zoom
from cifarlab.regularizers.affine import compose, warp

IMAGES = 255 * torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLOSE = 6e-4  # of 255: float32 places a pixel to about a millionth, and noise has steps of up to 255
MANY = torch.zeros(10_000, 1, 32, 32)


def keras(image: Tensor, *, angle=0.0, down=0.0, across=0.0, zoom=(1.0, 1.0), mirror=False) -> np.ndarray:
    """ImageDataGenerator's algorithm in float64: one matrix on (row, column), turned about the centre."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    shift = np.array([[1, 0, down], [0, 1, across], [0, 0, 1]])
    matrix = turn @ shift @ np.diag([*zoom, 1])
    to_centre = np.array([[1, 0, 15.5], [0, 1, 15.5], [0, 0, 1]])
    matrix = to_centre @ matrix @ np.linalg.inv(to_centre)
    channels = image.numpy().astype(np.float64)
    warped = np.stack(
        [affine_transform(c, matrix[:2, :2], matrix[:2, 2], order=1, mode="nearest") for c in channels]
    )
    return warped[:, :, ::-1] if mirror else warped


def one_by_one(matrices: Tensor, read) -> np.ndarray:
    return np.stack([keras(image, **read(matrix)) for image, matrix in zip(IMAGES, matrices, strict=True)])


@pytest.mark.parametrize(
    "transform, read",
    [
        (Shift(), lambda m: {"down": m[1, 2].item(), "across": m[0, 2].item()}),
        (Shift(height=0.3, width=0.0), lambda m: {"down": m[1, 2].item()}),
        # (row, column) instead of (x, y) reverses the sense of a turn.
        (Rotate(40), lambda m: {"angle": -math.atan2(m[1, 0], m[0, 0])}),
        (Zoom(0.6, 1.5), lambda m: {"zoom": (m[1, 1].item(), m[0, 0].item())}),
    ],
)
def test_one_transform_equals_keras(transform: Affine, read) -> None:
    torch.manual_seed(1)
    matrices = transform.matrices(IMAGES)
    np.testing.assert_allclose(warp(IMAGES, matrices).numpy(), one_by_one(matrices, read), rtol=0, atol=CLOSE)


def test_the_tutorials_augmentation_equals_keras() -> None:
    torch.manual_seed(2)
    shift, flip = Shift().matrices(IMAGES), Flip().matrices(IMAGES)
    expected = [
        keras(image, down=s[1, 2].item(), across=s[0, 2].item(), mirror=f[0, 0].item() < 0)
        for image, s, f in zip(IMAGES, shift, flip, strict=True)
    ]
    torch.manual_seed(2)
    augmented = Regularization([Flip(), Shift()]).augment(IMAGES)
    np.testing.assert_allclose(augmented.numpy(), np.stack(expected), rtol=0, atol=CLOSE)
    assert {f[0, 0].item() for f in flip} == {-1.0, 1.0}


def test_all_four_are_one_interpolation_in_keras_order() -> None:
    torch.manual_seed(3)
    turn, shift, zoom, flip = parts = [t.matrices(IMAGES) for t in (Rotate(), Shift(), Zoom(), Flip())]
    expected = [
        keras(
            image,
            angle=-math.atan2(r[1, 0], r[0, 0]),
            down=s[1, 2].item(),
            across=s[0, 2].item(),
            zoom=(z[1, 1].item(), z[0, 0].item()),
            mirror=f[0, 0].item() < 0,
        )
        for image, r, s, z, f in zip(IMAGES, turn, shift, zoom, flip, strict=True)
    ]
    np.testing.assert_allclose(warp(IMAGES, compose(parts)).numpy(), np.stack(expected), rtol=0, atol=CLOSE)
    for order in permutations([Rotate(), Shift(), Zoom(), Flip()]):
        torch.manual_seed(3)
        assert torch.equal(Regularization(order).augment(IMAGES), warp(IMAGES, compose(parts)))


def test_a_whole_pixel_moves_as_a_whole_and_repeats_the_edge() -> None:
    matrices = torch.eye(3).repeat(16, 1, 1)
    matrices[:, 0, 2] = 2
    warped = warp(IMAGES, matrices)
    assert torch.equal(warped[..., :30], IMAGES[..., 2:])
    assert torch.equal(warped[..., 30:], IMAGES[..., 31:].expand(-1, -1, -1, 2))


def test_images_that_are_not_square() -> None:
    images = IMAGES[:1, :, :16]
    quarter_turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    middle = warp(images, quarter_turn)[..., 8:24]
    torch.testing.assert_close(middle, torch.rot90(images[..., 8:24], 1, (2, 3)), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("axis", [0, 1])
def test_shifts_are_uniform_over_a_tenth_of_the_image(axis: int) -> None:
    torch.manual_seed(4)
    pixels = Shift().matrices(MANY)[:, axis, 2]
    deviation = 6.4 / math.sqrt(12)
    assert abs(pixels.mean().item()) < 4 * deviation / 100
    assert pixels.std().item() == pytest.approx(deviation, rel=0.02)
    assert 3.19 < pixels.max().item() < 3.2 + 1e-6
    assert -3.2 - 1e-6 < pixels.min().item() < -3.19
    assert len(pixels.unique()) > 9_900


def test_turns_and_zooms_span_their_ranges() -> None:
    torch.manual_seed(5)
    turn = Rotate(15).matrices(MANY)
    degrees = torch.rad2deg(torch.atan2(turn[:, 1, 0], turn[:, 0, 0]))
    assert -15.001 < degrees.min() < -14.95
    assert 14.95 < degrees.max() < 15.001
    assert abs(degrees.mean().item()) < 4 * 30 / math.sqrt(12) / 100
    zoom = Zoom(0.9, 1.1).matrices(MANY)
    across, down = zoom[:, 0, 0], zoom[:, 1, 1]
    for factors in (across, down):
        assert 0.8999 < factors.min() < 0.901
        assert 1.099 < factors.max() < 1.1001
    assert abs(torch.corrcoef(torch.stack((across, down)))[0, 1].item()) < 0.04


@pytest.mark.parametrize(
    "flip, axes", [(Flip(), [-1]), (Flip(False, True), [-2]), (Flip(True, True), [-1, -2])]
)
def test_a_flip_alone_mirrors_bit_by_bit(flip: Flip, axes: list[int]) -> None:
    torch.manual_seed(6)
    matrices = flip.matrices(IMAGES)
    torch.manual_seed(6)
    flipped = flip(IMAGES)
    expected = IMAGES.clone()
    for axis in axes:
        for image in (matrices[:, -1 - axis, -1 - axis] < 0).nonzero()[:, 0].tolist():
            expected[image] = expected[image].flip(axis)
    assert torch.equal(flipped, expected)
    assert not torch.equal(flipped, IMAGES)
    torch.testing.assert_close(warp(IMAGES, matrices), flipped, rtol=0, atol=CLOSE)


def test_half_of_the_images_are_mirrored() -> None:
    torch.manual_seed(7)
    matrices = Flip(True, True).matrices(MANY)
    across, down = matrices[:, 0, 0] < 0, matrices[:, 1, 1] < 0
    for mirrored, share in ((across, 0.5), (down, 0.5), (across & down, 0.25)):
        assert abs(mirrored.float().mean().item() - share) < 4 * math.sqrt(share * (1 - share)) / 100


def test_zoom_refuses_a_range_upside_down() -> None:
    with pytest.raises(UserError, match=r"low=1\.2 is above high=1\.1"):
        Zoom(low=1.2)
