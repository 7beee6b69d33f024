"""Muon against its definition by singular values, and who gets which rule."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from cifarlab.errors import UserError
from cifarlab.optim.muon import orthogonalized
from cifarlab.optim.optimizers import adam, muon
from cifarlab.training import train

CONF = Path(__file__).parents[2] / "conf"
TYPED = ["data=digits", "model=vgg1", "model.width=2", "model.dense=4", "optimizer=muon", "trainer=cpu"]
TYPED += ["trainer.limit_train_batches=1", "data.validation=none", "export=none", "test=false", "logger=none"]


def kernel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (16, 16)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = kernel(*shape)
    turned = orthogonalized(matrix, rounds=5)
    values = torch.linalg.svdvals(turned)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    coordinates = u.T @ turned @ v.T  # diagonal: the singular vectors are the same
    assert torch.allclose(coordinates, coordinates.diagonal().diag(), atol=1e-4)


def one_step(weight: torch.Tensor, gradient: torch.Tensor, **keys: object) -> torch.Tensor:
    """A hidden kernel after one step, beside a last layer that Adam takes."""
    hidden, last = nn.Parameter(weight.clone()), nn.Parameter(kernel(10, 4))
    optimizer = muon(params=[hidden, last], **keys)
    hidden.grad, last.grad = gradient.clone(), torch.zeros_like(last)
    optimizer.step()
    return hidden.detach()


def test_the_step_has_the_size_lr_whatever_the_gradients() -> None:
    weight, gradient = kernel(6, 3, 3, 3), kernel(6, 3, 3, 3, seed=1)
    step = weight - one_step(weight, gradient, lr=0.1)
    assert torch.allclose(step, 0.1 * orthogonalized(gradient.flatten(1), 5).view_as(weight), atol=1e-6)
    assert torch.allclose(weight - one_step(weight, 1000 * gradient, lr=0.1), step, atol=1e-6)
    tall = kernel(36, 1, 3, 3)  # sqrt(36 / 9) = 2 times as far
    step = tall - one_step(tall, gradient.view(18, 9).repeat(2, 1).view(36, 1, 3, 3), lr=0.1)
    assert torch.linalg.svdvals(step.flatten(1)).max() == pytest.approx(0.2, rel=0.3)


def test_decay_and_normalization() -> None:
    weight, nothing = kernel(6, 3, 3, 3), torch.zeros(6, 3, 3, 3)
    assert torch.allclose(one_step(weight, nothing, lr=0.1, weight_decay=0.5), 0.95 * weight)
    assert one_step(weight, nothing, normalize=True).norm() == pytest.approx(6**0.5)


def test_nesterov_momentum() -> None:
    hidden = nn.Parameter(torch.zeros(2, 2))
    optimizer = muon(params=[hidden, nn.Parameter(torch.zeros(1, 2))], lr=1.0, momentum=0.5)
    for gradient in (torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 0.0]])):
        hidden.grad = gradient
        before = hidden.detach().clone()
        optimizer.step()
    # v = 0.5 I + g, and g + 0.5 v = 0.25 I + 1.5 g
    expected = orthogonalized(torch.tensor([[0.25, 1.5], [0.0, 0.25]]), 5)
    assert torch.allclose(before - hidden, expected, atol=1e-6)


def test_vectors_and_the_last_matrix_get_adam() -> None:
    shapes = [(4, 3, 3, 3), (4,), (5, 4), (5,), (2, 5), (2,)]
    weights = [nn.Parameter(kernel(*shape, seed=n)) for n, shape in enumerate(shapes)]
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    ours = muon(params=iter(weights), adam_lr=0.01, betas=[0.8, 0.9], eps=1e-5)
    theirs = adam(params=twins, lr=0.01, betas=[0.8, 0.9], eps=1e-5)
    for seed in range(3):
        for weight, twin in zip(weights, twins, strict=True):
            weight.grad = twin.grad = kernel(*weight.shape, seed=10 + seed)
        ours.step()
        theirs.step()
    same = [torch.allclose(one, other, atol=1e-6) for one, other in zip(weights, twins, strict=True)]
    assert same == [False, True, False, True, True, True]


def test_a_network_without_a_hidden_layer_is_refused() -> None:
    with pytest.raises(UserError, match="optimizer=muon finds no hidden layer"):
        muon(params=[nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2))])


def rates(folder: Path, *typed: str) -> list[float]:
    """A run's rates in its last checkpoint."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", [*TYPED, *typed]), resolve=True)
    train(config, folder, [*typed], {})
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return [group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]]


def test_a_resumed_run_takes_new_rates(tmp_path: Path) -> None:
    first = rates(tmp_path, "trainer.max_epochs=1", "optimizer.lr=0.02", "optimizer.adam_lr=0.001")
    assert first == pytest.approx([0.02, 0.001])
    typed = [f"resume={tmp_path}", "trainer.max_epochs=2", "optimizer.lr=0.02", "optimizer.adam_lr=0.005"]
    assert rates(tmp_path, *typed) == pytest.approx([0.02, 0.005])
