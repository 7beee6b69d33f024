"""Hard examples: the images of an epoch follow from the losses of those before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cifarlab.data.module import ImageData
from cifarlab.data.sets import Digits
from cifarlab.models.classifier import Classifier
from cifarlab.regularizers import HardExamples, Regularization
from cifarlab.training import train

CONF = Path(__file__).parents[2] / "conf"


def choose(losses: torch.Tensor, share: float, seed: int = 0) -> list[int]:
    return HardExamples(share).choose(losses, torch.Generator().manual_seed(seed)).tolist()


def test_the_largest_losses_are_chosen_in_a_random_order() -> None:
    losses = torch.randperm(1000, generator=torch.Generator().manual_seed(1)).float()
    chosen = choose(losses, 0.3)
    assert set(chosen) == set(losses.topk(300).indices.tolist())
    assert chosen != choose(losses, 0.3, seed=1)
    assert set(chosen) == set(choose(losses, 0.3, seed=1))
    ranks = losses[chosen].sort(descending=True).indices  # without a trace of the losses' order
    assert abs(torch.corrcoef(torch.stack([ranks.float(), torch.arange(300.0)]))[0, 1]) < 0.2


def test_chance_decides_between_equals() -> None:
    first, second = (set(choose(torch.full((1000,), torch.inf), 0.5, seed)) for seed in (0, 1))
    assert 200 < len(first & second) < 300  # of 250 expected


def test_what_was_never_seen_comes_first() -> None:
    losses = torch.full((10,), 100.0)
    losses[[2, 7]] = torch.inf
    assert set(choose(losses, 0.2)) == {2, 7}


@pytest.mark.parametrize("share, images, count", [(0.6, 45000, 27000), (0.5, 3, 2), (0.001, 10, 1)])
def test_the_share_is_rounded_and_never_nothing(share: float, images: int, count: int) -> None:
    assert HardExamples(share).count(images) == count == len(choose(torch.zeros(images), share))


def test_a_run_trains_on_the_images_with_the_largest_remembered_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["data=digits", "model=vgg1", "model.width=4", "model.dense=16", "reg=hard_examples"]
    typed += ["reg.hard_examples.share=0.4", "trainer.max_epochs=4", "logger=none", "export=pt2"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", typed), resolve=True)
    seen: list[list[int]] = []
    remembered: list[torch.Tensor] = []
    step, start = Classifier.training_step, Classifier.on_train_epoch_start

    def begin(self: Classifier) -> None:
        seen.append([])
        remembered.append(self.trainer.datamodule.remembered.clone())
        start(self)

    def watch(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        seen[-1] += batch[2].tolist()
        return step(self, batch, batch_idx)

    # as an export or an average of the weights makes one of the network
    copies: list[ImageData] = []
    monkeypatch.setattr(ImageData, "__deepcopy__", lambda self, _: copies.append(self), raising=False)
    monkeypatch.setattr(Classifier, "on_train_epoch_start", begin)
    monkeypatch.setattr(Classifier, "training_step", watch)
    record = train(config, tmp_path, typed, {"model": "vgg1", "reg": ["hard_examples"], "data": "digits"})
    images = record["data"]["train_images"]
    assert [len(epoch) for epoch in seen] == [round(0.4 * images)] * 4
    assert all(len(set(epoch)) == len(epoch) for epoch in seen)
    assert not set(seen[0]) & set(seen[1])  # both never seen before
    assert len(set(seen[0]) | set(seen[1]) | set(seen[2])) == images
    for epoch, losses in list(zip(seen, remembered, strict=True))[1:]:
        left = sorted(set(range(len(losses))) - set(epoch) - held_out())
        assert losses[epoch].min() >= losses[left].max()
    assert copies == []
    assert record["images_per_second"] == pytest.approx(4 * len(seen[0]) / record["train_seconds"])


def held_out() -> set[int]:
    data = Digits(seed=0, regularization=Regularization())
    data.setup()
    return set(data.val_index.tolist())


def test_remembered_losses_are_in_the_checkpoint_and_checked() -> None:
    data = Digits(seed=0, regularization=Regularization([HardExamples()]))
    data.setup()
    data.remember(torch.tensor([3, 5]), torch.tensor([0.5, 2.0]))
    again = Digits(seed=0, regularization=Regularization([HardExamples()]))
    again.setup()
    again.load_state_dict(data.state_dict())
    assert torch.equal(again.remembered, data.remembered)
    assert again.remembered[[3, 5]].tolist() == [0.5, 2.0]
    for wrong in (torch.zeros(7), torch.zeros(len(data.remembered), dtype=torch.int64)):
        with pytest.raises(ValueError, match="not of this data set"):
            again.load_state_dict({"losses": wrong})
    assert Digits(seed=0, regularization=Regularization()).state_dict() == {}
