"""Splits, batches and scalings, by number."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from cifarlab.data.files import DataSet
from cifarlab.data.module import Batches, ImageData, epoch_seed
from cifarlab.data.scaling import channel_statistics, make_scaling
from cifarlab.data.sets import Digits
from cifarlab.data.splits import hold_out
from cifarlab.errors import UserError
from cifarlab.regularizers import BatchNorm, CutMix, Flip, Regularization

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 500))


def counts(labels: np.ndarray) -> list[int]:
    return np.bincount(labels, minlength=10).tolist()


def test_the_default_split_holds_out_a_tenth_of_every_class() -> None:
    train, val = hold_out(LABELS, "split", "stratified", 5, 0)
    assert counts(LABELS[val]) == [50] * 10
    assert counts(LABELS[train]) == [450] * 10
    assert not set(train) & set(val)


def test_the_split_is_always_the_same() -> None:
    first, again = (hold_out(LABELS, "split", "stratified", 5, 0)[1] for _ in range(2))
    assert first.tolist() == again.tolist()


@pytest.mark.parametrize("wanted, held", [(0.2, 1000), (1, 1), (4999, 4999)])
def test_fractions_and_counts(wanted: float, held: int) -> None:
    train, val = hold_out(LABELS, wanted, "stratified", 5, 0)
    assert (len(train), len(val)) == (5000 - held, held)


def test_the_last_images_of_the_file() -> None:
    train, val = hold_out(LABELS, 0.2, "last", 5, 0)
    assert train.tolist() == list(range(4000))
    assert val.tolist() == list(range(4000, 5000))


def test_folds_are_stratified_disjoint_and_complete() -> None:
    folds = [hold_out(LABELS, "fold", "stratified", 5, fold)[1] for fold in range(5)]
    assert all(counts(LABELS[fold]) == [100] * 10 for fold in folds)
    assert sorted(np.concatenate(folds)) == list(range(5000))


def test_a_split_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.validation=5000 holds out 5000 of 5000"):
        hold_out(LABELS, 5000, "stratified", 5, 0)
    with pytest.raises(UserError, match=r"data\.fold=1 of data\.folds=2000 holds out 0 of 5000"):
        hold_out(LABELS, "fold", "stratified", 2000, 1)
    with pytest.raises(UserError, match=r"data\.fold=0 of data\.folds=1 holds out 5000 of 5000"):
        hold_out(LABELS, "fold", "stratified", 1, 0)


def test_an_epoch_shows_every_image_once_and_keeps_the_partial_batch() -> None:
    batches = list(Batches(1000, 64, seed=0))
    assert [len(b) for b in batches] == [64] * 15 + [40]
    assert torch.cat(batches).sort().values.tolist() == list(range(1000))


def test_dropping_the_partial_batch() -> None:
    sampler = Batches(50_000, 64, seed=0, drop_last=True)
    assert len(sampler) == sum(1 for _ in sampler) == 781
    assert len(Batches(50_000, 64)) == 782


def test_the_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = Batches(100, 10, seed=seed)
        sampler.set_epoch(epoch)
        return torch.cat(list(sampler)).tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(*key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4
    assert torch.cat(list(Batches(100, 10))).tolist() == list(range(100))


@pytest.mark.parametrize("images", [1000, 1001, 65])
def test_processes_share_each_batch(images: int) -> None:
    ranks = [list(Batches(images, 32, seed=0, rank=rank, world=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    together = torch.cat([torch.cat(part) for part in ranks])
    assert together.sort().values.tolist() == list(range(images))


def test_epoch_seeds_differ_by_seed_epoch_and_process() -> None:
    keys = [(s, e, r) for s in range(3) for e in range(3) for r in (None, 0, 1)]
    assert len({epoch_seed(*key) for key in keys}) == len(keys)


IMAGES = torch.from_numpy(np.random.default_rng(1).integers(0, 200, (400, 3, 4, 4), dtype=np.uint8))


def test_channel_statistics_against_numpy() -> None:
    mean, std = channel_statistics(IMAGES)
    pixels = IMAGES.numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-12)


def scaled(name: str) -> np.ndarray:
    return make_scaling(name, IMAGES)(IMAGES.float()).numpy()


def test_scalings_by_number() -> None:
    np.testing.assert_array_equal(scaled("raw"), IMAGES.numpy())
    np.testing.assert_allclose(scaled("unit"), IMAGES.numpy() / 255, rtol=1e-6)
    np.testing.assert_allclose(scaled("center").mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(scaled("center").std(), (IMAGES.numpy() / 255).std(), rtol=1e-3)
    np.testing.assert_allclose(scaled("standardize").mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(scaled("standardize").std((0, 2, 3)), 1, rtol=1e-5)


def test_whitening_makes_the_covariance_the_identity() -> None:
    flat = scaled("whiten").reshape(len(IMAGES), -1)
    np.testing.assert_allclose(np.cov(flat.T, bias=True), np.eye(48), atol=2e-3)


def test_scaling_knows_the_training_images_alone() -> None:
    data = Digits(scaling="standardize", seed=0, regularization=Regularization())
    data.setup()
    mean = data.make_scaling().mean.flatten()
    train = data.set.train_images[data.train_index].double().mean((0, 2, 3))
    torch.testing.assert_close(mean.double(), train, rtol=1e-6, atol=0)
    assert not torch.equal(train, data.set.train_images.double().mean((0, 2, 3)))


def test_digits_are_split_in_a_fixed_stratified_fifth() -> None:
    data = Digits(seed=0, regularization=Regularization())
    data.setup()
    assert data.counts == {"train": 1294, "val": 144, "test": 359}
    assert data.set.test_images.shape == (359, 3, 32, 32)
    assert int(data.set.train_images.max()) == 255
    per_class = torch.bincount(data.set.test_labels)
    assert int(per_class.max()) - int(per_class.min()) <= 2


@pytest.mark.parametrize("validation, val", [("test", 359), ("none", 0), ("fold", 287), (100, 100)])
def test_validation_modes(validation: str | int, val: int) -> None:
    data = Digits(validation=validation, seed=0, regularization=Regularization())
    data.setup()
    assert data.counts["val"] == val
    assert data.counts["train"] == 1438 - (0 if validation in ("test", "none") else val)


class Stage:
    """What a data module asks of its trainer."""

    def __init__(self, training: bool) -> None:
        self.training, self.current_epoch, self.max_epochs = training, 0, 1


@pytest.mark.parametrize("training", [True, False])
def test_only_training_batches_are_changed(training: bool) -> None:
    data = Digits(seed=0, regularization=Regularization([Flip(), CutMix()]))
    data.setup()
    data.trainer = Stage(training)
    index = torch.arange(32)
    torch.manual_seed(0)
    images, labels = data.set.train_images[:32], data.set.train_labels[:32]
    changed, targets, numbers = data.on_after_batch_transfer((images, labels, index), 0)
    assert numbers is index
    if training:
        assert changed.dtype == targets.dtype == torch.float32
        assert targets.shape == (32, 10)
        assert not torch.equal(changed, images.float())
    else:
        assert changed is images
        assert targets is labels


class Made(ImageData):
    """A data set made by a test."""

    name = "made"

    def __init__(self, train: list[int], test: list[int], classes: int, **options: Any) -> None:
        super().__init__(**options, seed=0, regularization=Regularization([BatchNorm()]))
        labels = {"train_labels": torch.tensor(train), "test_labels": torch.tensor(test)}
        images = {
            name.replace("labels", "images"): torch.zeros(len(part), 3, 32, 32, dtype=torch.uint8)
            for name, part in labels.items()
        }
        self.made = DataSet(**images, **labels, classes=[f"class {k}" for k in range(classes)])

    def load(self) -> DataSet:
        return self.made


@pytest.mark.parametrize(
    "train, test, sentence",
    [
        ([0, 1, 2], [0], "expected train labels from 0 to 1, one a class; they go from 0 to 2"),
        ([0, 1], [-1, 0], "expected test labels from 0 to 1, one a class; they go from -1 to 0"),
        ([], [0], "there are no train images"),
    ],
)
def test_labels_without_a_class_are_refused(train: list[int], test: list[int], sentence: str) -> None:
    with pytest.raises(UserError, match=f"data=made: {sentence}"):
        Made(train, test, 2, validation="none").setup()


def test_classes_that_nothing_trains_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """The last images of a file that is sorted by class are all that some classes have."""
    Made([0, 0, 1, 1, 2, 2], [0], 9, validation=2, split="last").setup()
    assert caplog.messages == [
        "data=made: no image trains of the classes class 2, class 3, class 4, class 5, class 6 and 2 more."
    ]
    caplog.clear()
    Made([0, 1, 2, 0, 1, 2], [0], 3, validation=3, split="last").setup()
    assert caplog.messages == []


@pytest.mark.parametrize(
    "images, batch, drop_last, refused",
    [
        (9, 4, False, True),
        (9, 4, True, False),
        (10, 4, False, False),
        (3, 4, True, True),
        (1, 4, False, True),
    ],
)
def test_a_last_batch_of_one_image_under_batch_norm(
    images: int, batch: int, drop_last: bool, refused: bool
) -> None:
    data = Made([0] * images, [0], 1, validation="none", batch_size=batch, drop_last=drop_last)
    data.setup()
    with pytest.raises(UserError, match=f"data.batch_size={batch}") if refused else nullcontext():
        data.train_dataloader()
