"""CIFAR-10 and CIFAR-100 themselves: what is loaded, how it is split, and each recipe's first steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torchvision import datasets

from cifarlab.config import check
from cifarlab.data.scaling import channel_statistics
from cifarlab.data.sets import CIFAR10, CIFAR100
from cifarlab.regularizers import Regularization
from cifarlab.training import train

CONF = Path(__file__).parents[2] / "conf"
POSTS = sorted(path.stem for path in (CONF / "experiment/posts").glob("*.yaml"))
# batches of an epoch: 50,000 images in 64s with or without the partial batch, 40,000 in 50s or 64s, ...
STEPS = {
    "a1": 782,
    "a2": 782,
    "a3": 782,
    "a4": 782,
    "a5": 782,
    "a6": 781,
    "a7": 782,
    "a8": 781,
    "a9": 781,
    "a10": 782,
    "b1": 800,
    "b2": 800,
    "c1": 625,
    "c2": 625,
    "c3": 625,
    "d1": 1563,
    "d2": 49,
    "e1": 1563,
    "e2": 1563,
}


def loaded(kind: type, root: Path, **keys: object):
    data = kind(root=str(root), seed=0, regularization=Regularization(), **keys)
    data.setup()
    return data


@pytest.mark.parametrize("kind, reference", [(CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)])
def test_pixels_and_labels_are_torchvisions(data_root: Path, kind: type, reference: type) -> None:
    ours = loaded(kind, data_root).set
    for train_part, images, labels in (
        (True, ours.train_images, ours.train_labels),
        (False, ours.test_images, ours.test_labels),
    ):
        theirs = reference(str(data_root), train=train_part)
        assert np.array_equal(images.numpy().transpose(0, 2, 3, 1), theirs.data)
        assert labels.tolist() == theirs.targets
        assert ours.classes == theirs.classes


def test_channel_statistics_are_the_known_ones(data_root: Path) -> None:
    mean, std = channel_statistics(loaded(CIFAR10, data_root).set.train_images)
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    assert std.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)


@pytest.mark.parametrize("kind, per_class", [(CIFAR10, 500), (CIFAR100, 50)])
def test_the_default_split_is_5000_images_with_equally_many_of_each_class(
    data_root: Path, kind: type, per_class: int
) -> None:
    data = loaded(kind, data_root)
    assert data.counts == {"train": 45_000, "val": 5_000, "test": 10_000}
    assert set(torch.bincount(data.set.train_labels[data.val_index]).tolist()) == {per_class}


def test_superclasses(data_root: Path) -> None:
    fine = loaded(CIFAR100, data_root)
    names = [fine.set.superclasses[s] for s in fine.superclass_of]
    assert dict(zip(fine.set.classes, names, strict=True))["apple"] == "fruit_and_vegetables"
    assert dict(zip(fine.set.classes, names, strict=True))["whale"] == "aquatic_mammals"
    assert torch.bincount(fine.superclass_of).tolist() == [5] * 20
    assert torch.equal(fine.superclass_of[fine.set.test_labels], fine.set.test_coarse)
    coarse = loaded(CIFAR100, data_root, labels="coarse")
    assert len(coarse.set.classes) == 20
    assert torch.equal(coarse.set.train_labels, fine.set.train_coarse)
    assert coarse.superclass_of is None


def run(data_root: Path, folder: Path, *overrides: str) -> dict:
    typed = [f"data.root={data_root}", "trainer=cpu", "logger=none", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", typed), resolve=True)
    check(config)
    return train(config, folder, typed, {})


@pytest.mark.parametrize("name", POSTS)
def test_every_recipe_trains_and_has_its_number_of_steps(data_root: Path, tmp_path: Path, name: str) -> None:
    limits = ["train_batches=2", "val_batches=1", "test_batches=1"]
    options = [f"trainer.limit_{limit}" for limit in limits]
    record = run(data_root, tmp_path, f"experiment=posts/{name}", *options, "trainer.max_epochs=1")
    assert (record["status"], record["steps"]) == ("done", 2)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data = compose("train", [f"experiment=posts/{name}"]).data
    images, drops = record["data"]["train_images"], data.drop_last
    expected = STEPS[name.partition("_")[0]]
    assert (images // data.batch_size if drops else -(-images // data.batch_size)) == expected


def test_a_short_run_learns(data_root: Path, tmp_path: Path) -> None:
    quick = ["model=conv1", "trainer.max_epochs=1", "trainer.limit_train_batches=100", "optimizer=adam"]
    record = run(data_root, tmp_path, *quick)
    assert record["test"]["images"] == 10_000
    assert record["test"]["accuracy"] > 0.3  # chance is 0.10
