"""Crops reach every place, cutout covers what the paper says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cifarlab.errors import UserError
from cifarlab.regularizers import Crop, Cutout

# Each pixel of each image holds its own number, so a crop says where it was cut.
NUMBERED = torch.arange(1.0, 1 + 2 * 32 * 32).reshape(1, 2, 32, 32)


@pytest.mark.parametrize("fill, mode", [("zero", "constant"), ("edge", "edge"), ("reflect", "reflect")])
def test_crops_are_windows_of_the_padded_image_and_all_81_turn_up(fill, mode: str) -> None:
    torch.manual_seed(0)
    crops = Crop(padding=4, fill=fill)(NUMBERED.expand(1_500, -1, -1, -1)).numpy()
    padded = np.pad(NUMBERED[0].numpy(), ((0, 0), (4, 4), (4, 4)), mode=mode)
    windows = {padded[:, y : y + 32, x : x + 32].tobytes(): (y, x) for y in range(9) for x in range(9)}
    drawn = [windows[np.ascontiguousarray(crop).tobytes()] for crop in crops]
    assert len(windows) == len(set(drawn)) == 81


def test_crop_offsets_are_even_and_down_is_drawn_apart_from_across() -> None:
    torch.manual_seed(1)
    rows = torch.arange(9.0).reshape(1, 1, 9, 1).expand(1, 1, 9, 9)
    images = torch.cat((rows, rows.mT), 1).expand(8_100, -1, -1, -1)
    centres = Crop(padding=4, fill="edge")(images)[:, :, 4, 4].long()
    counts = torch.bincount(9 * centres[:, 0] + centres[:, 1], minlength=81)
    assert len(counts) == 81
    assert (counts - 100).abs().max() < 50  # 100 expected, standard deviation 10


def test_reflect_cannot_mirror_more_than_there_is() -> None:
    with pytest.raises(UserError, match="at most 31"):
        Crop(padding=32, fill="reflect")


@pytest.mark.parametrize("size", [1, 5, 8, 16])
def test_cutout_paints_one_square_clipped_at_the_border(size: int) -> None:
    torch.manual_seed(2)
    images = torch.zeros(5_000, 2, 32, 32)
    cut = Cutout(size=size, fill=9)(images)
    assert torch.equal(images, torch.zeros_like(images))
    assert torch.equal(cut[:, 0], cut[:, 1])
    holes = cut[:, 0] == 9
    assert torch.equal(cut[:, 0] != 0, holes)
    tall, wide = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), tall * wide)
    assert (tall.max().item(), wide.max().item()) == (size, size)
    # With the centre on any pixel, the side that is left runs over these 32 lengths with equal chance.
    lengths = [min(c - size // 2 + size, 32) - max(c - size // 2, 0) for c in range(32)]
    error = np.std(lengths) / np.sqrt(5_000)
    assert abs(tall.float().mean().item() - np.mean(lengths)) <= 4 * error
    assert abs(wide.float().mean().item() - np.mean(lengths)) <= 4 * error
    assert set(tall.tolist()) == set(lengths)
    reached = holes.any(0)
    assert reached.any(0).all()
    assert reached.any(1).all()
