"""Progressive resizing: which size in which epoch, and that a size is an average over areas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cifarlab.errors import UserError
from cifarlab.models.plain import VGG
from cifarlab.models.speedrun import Speedrun
from cifarlab.regularizers import Flip, ProgressiveResizing, Regularization
from cifarlab.training import refuse_size, train

CONF = Path(__file__).parents[2] / "conf"

IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
INDEX = torch.arange(8)


def sizes(resizing: ProgressiveResizing, epochs: int) -> list[int]:
    return [resizing(IMAGES, INDEX, epoch, epochs).shape[-1] for epoch in range(epochs)]


@pytest.mark.parametrize("epochs, expected", [(1, [24]), (4, [24, 24, 32, 32]), (5, [24] * 3 + [32] * 2)])
def test_half_of_the_epochs_are_small(epochs: int, expected: list[int]) -> None:
    assert sizes(ProgressiveResizing(), epochs) == expected


def test_a_share_of_the_epochs_is_not_one_more_by_rounding() -> None:
    assert sizes(ProgressiveResizing([16], [0.28]), 100) == [16] * 28 + [32] * 72


def test_sizes_follow_each_other() -> None:
    assert sizes(ProgressiveResizing([16, 24], [0.3, 0.7]), 10) == [16] * 3 + [24] * 4 + [32] * 3


def test_a_pixel_is_the_mean_of_those_it_covers() -> None:
    halved = ProgressiveResizing([16], [0.5])(IMAGES, INDEX, 0, 2)
    expected = IMAGES.reshape(8, 3, 16, 2, 16, 2).mean((3, 5))
    torch.testing.assert_close(halved, expected, rtol=0, atol=1e-4)


def test_whole_images_stay_as_they_are() -> None:
    assert ProgressiveResizing()(IMAGES, INDEX, 1, 2) is IMAGES


def test_a_run_tells_it_the_epoch_and_what_sizes_it_has() -> None:
    regularization = Regularization([ProgressiveResizing([20], [0.25]), Flip()])
    assert regularization.sizes == [20]
    assert [regularization.augment(IMAGES, INDEX, e, 4).shape[-1] for e in range(4)] == [20, 32, 32, 32]


def test_a_run_trains_on_small_images_first_and_validates_on_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["data=digits", "model=speedrun", "model.widths=[4]", "reg=progressive_resizing", "logger=none"]
    typed += ["trainer.max_epochs=4", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    typed += ["reg.progressive_resizing.sizes=[20]", "export=none", "test=false", "trainer=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", typed), resolve=True)
    seen: list[tuple[bool, int]] = []
    forward = Speedrun.forward

    def watch(self: Speedrun, images: torch.Tensor) -> torch.Tensor:
        seen.append((self.training, images.shape[-1]))
        return forward(self, images)

    monkeypatch.setattr(Speedrun, "forward", watch)
    train(config, tmp_path, typed, {"model": "speedrun", "reg": ["progressive_resizing"], "data": "digits"})
    assert [size for training, size in seen if training] == [20] * 4 + [32] * 4
    assert [size for training, size in seen if not training][1:] == [32] * 5  # behind `refuse_size`


def test_networks_that_end_in_dense_layers_are_refused() -> None:
    refuse_size(Speedrun(num_classes=10, widths=[8, 8]), 24)
    with pytest.raises(UserError, match="24 x 24 pixels, which this network cannot take"):
        refuse_size(VGG(num_classes=10, blocks=1, width=4, dense=8), 24)
    with pytest.raises(UserError, match="2 x 2 pixels"):
        refuse_size(Speedrun(num_classes=10), 2)


def test_trying_a_size_leaves_the_network_as_it_was() -> None:
    model = Speedrun(num_classes=10, widths=[8, 8])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refuse_size(model, 24)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
