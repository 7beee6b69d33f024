"""What the network, the loss, the data module and the trainer are told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cifarlab.errors import UserError
from cifarlab.regularizers import (
    L2,
    BatchNorm,
    Crop,
    CutMix,
    Cutout,
    Dropout,
    DropoutIncreasing,
    EarlyStopping,
    Flip,
    LabelSmoothing,
    Mixup,
    Normalization,
    Regularization,
    Rotate,
    Shift,
    Transform,
    Zoom,
)

IMAGES = 255 * torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGETS = torch.eye(8)
TRANSFORMS = [Rotate(), Shift(), Zoom(), Flip(), Crop(), Cutout()]


def test_dropout_rates() -> None:
    assert Regularization([Dropout()]).dropout_rates(4) == [0.2, 0.2, 0.2, 0.2]
    assert Regularization([DropoutIncreasing()]).dropout_rates(4) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert DropoutIncreasing().rates(2) == [0.2, 0.5]
    assert DropoutIncreasing().rates(1) == [0.2]
    assert DropoutIncreasing().rates(0) == []
    assert DropoutIncreasing(first=0.4, last=0.0).rates(3) == pytest.approx([0.4, 0.2, 0.0])
    assert Regularization([Dropout(rate=0.0)]).dropout_rates(2) == [0.0, 0.0]
    assert Regularization([L2()]).dropout_rates(4) is None


@pytest.mark.parametrize("spatial, kind", [(True, nn.BatchNorm2d), (False, nn.BatchNorm1d)])
def test_batch_norm_has_keras_constants(spatial: bool, kind: type[nn.Module]) -> None:
    norm = Regularization([BatchNorm()]).normalization
    assert norm is not None
    assert norm.before_activation is False
    layer = norm.layer(7, spatial)
    assert type(layer) is kind
    assert (layer.num_features, layer.eps, layer.momentum) == (7, 0.001, 0.01)
    batch = torch.full((4, 7, 2, 2), 5.0) if spatial else torch.full((4, 7), 5.0)
    layer(batch)
    assert layer.running_mean.tolist() == pytest.approx([0.05] * 7)  # 0.99 * 0 + 0.01 * 5


def test_nothing_chosen_changes_nothing() -> None:
    nothing = Regularization()
    assert nothing.augment(IMAGES) is IMAGES
    assert nothing.mix(IMAGES, TARGETS) == (IMAGES, TARGETS)
    assert (nothing.normalization, nothing.smoothing, nothing.stopping) == (None, 0.0, [])
    assert (nothing.transforms_images, nothing.mixes_images) == (False, False)


def test_each_part_of_the_run_finds_its_own() -> None:
    rule = EarlyStopping(patience=3, monitor="val/accuracy")
    chosen = Regularization([Flip(), LabelSmoothing(0.05), rule, CutMix()])
    assert (chosen.smoothing, chosen.stopping) == (0.05, [rule])
    assert (chosen.transforms_images, chosen.mixes_images) == (True, True)


@pytest.mark.parametrize(
    "first, second",
    [
        (Dropout(), DropoutIncreasing()),
        (BatchNorm(), BatchNorm(True)),
        (LabelSmoothing(), LabelSmoothing(0.2)),
    ],
)
def test_two_for_one_place_are_refused_by_name(first, second) -> None:
    with pytest.raises(UserError) as caught:
        Regularization([first, L2(), second])
    message = str(caught.value)
    assert str(first) in message
    assert str(second) in message
    assert message.count("\n") == 0


def test_what_is_no_regularizer_is_refused() -> None:
    with pytest.raises(UserError, match="reg holds 3, which is no regularizer"):
        Regularization([3])  # type: ignore[list-item]


def test_a_new_normalization_needs_no_change_elsewhere() -> None:
    class GroupNorm(Normalization):
        before_activation = True

        def layer(self, features: int, spatial: bool) -> nn.Module:
            return nn.GroupNorm(1, features)

    assert isinstance(Regularization([GroupNorm()]).normalization, GroupNorm)


def test_a_new_transform_comes_last() -> None:
    class Blank(Transform):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(images)

    assert Regularization([Blank(), Cutout(fill=9)]).augment(IMAGES).max() == 0


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_images_are_drawn_apart_seeds_repeat_and_the_input_stays(transform: Transform) -> None:
    same = IMAGES[:1].repeat(64, 1, 1, 1)
    before = same.clone()
    torch.manual_seed(1)
    first = transform(same)
    again = transform(same)
    torch.manual_seed(1)
    repeated = transform(same)
    assert torch.equal(same, before)
    assert (first.dtype, first.shape) == (torch.float32, same.shape)
    distinct = len(torch.unique(first.flatten(1), dim=0))
    assert distinct == 2 if isinstance(transform, Flip) else distinct > 30
    assert torch.equal(first, repeated)
    assert not torch.equal(first, again)
    assert first.min() >= 0
    assert first.max() <= 255.001


def test_the_order_in_which_options_are_listed_does_not_matter() -> None:
    torch.manual_seed(2)
    expected = Regularization(TRANSFORMS).augment(IMAGES)
    torch.manual_seed(2)
    assert torch.equal(Regularization(reversed(TRANSFORMS)).augment(IMAGES), expected)
    torch.manual_seed(2)
    step_by_step = Cutout()(Crop()(Regularization(TRANSFORMS[:4]).augment(IMAGES)))
    assert torch.equal(step_by_step, expected)


@pytest.mark.parametrize("mix", [Mixup(), CutMix()])
def test_mixes_repeat_with_the_seed(mix) -> None:
    torch.manual_seed(3)
    first = Regularization([mix]).mix(IMAGES, TARGETS)
    torch.manual_seed(3)
    again = Regularization([mix]).mix(IMAGES, TARGETS)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
