"""Loss, penalties, smoothing and metrics against formulas in numpy."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from cifarlab.models.classifier import Tally
from cifarlab.models.plain import VGG
from cifarlab.regularizers import L2, LabelSmoothing, Regularization

RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8))
LABELS = torch.from_numpy(RNG.integers(0, 10, 8))


def small(*regularizers: object) -> VGG:
    torch.manual_seed(0)
    return VGG(blocks=1, width=4, dense=8, num_classes=10, regularization=Regularization(regularizers))


def objective_and_log_p(model: VGG, targets: torch.Tensor) -> tuple[float, np.ndarray]:
    objective = model.training_step((IMAGES, targets, torch.arange(len(IMAGES))), 0)
    return float(objective.detach()), log_softmax(model(IMAGES).detach().double().numpy(), axis=1)


def test_the_objective_is_the_mean_cross_entropy() -> None:
    objective, log_p = objective_and_log_p(small(), LABELS)
    assert objective == pytest.approx(-log_p[np.arange(8), LABELS].mean(), rel=1e-5)


def test_label_smoothing_moves_the_target_but_not_the_reported_loss() -> None:
    model = small(LabelSmoothing(0.1))
    objective, log_p = objective_and_log_p(model, LABELS)
    target = np.full((8, 10), 0.01)
    target[np.arange(8), LABELS] += 0.9
    assert objective == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-5)
    loss, _, images = model.train_tally.sums(torch.device("cpu"))
    assert loss / images == pytest.approx(-log_p[np.arange(8), LABELS].mean(), rel=1e-5)


def test_mixed_targets_are_probabilities() -> None:
    targets = torch.from_numpy(RNG.dirichlet(np.ones(10), 8)).float()
    objective, log_p = objective_and_log_p(small(), targets)
    assert objective == pytest.approx(-(targets.numpy() * log_p).sum(1).mean(), rel=1e-5)


def test_the_penalty_is_in_the_objective_not_in_the_reported_loss() -> None:
    plain, penalised = small(), small(L2(0.001))
    difference = objective_and_log_p(penalised, LABELS)[0] - objective_and_log_p(plain, LABELS)[0]
    squares = sum(float(kernel.detach().double().square().sum()) for kernel in penalised.kernels())
    assert difference == pytest.approx(0.001 * squares, rel=1e-3)
    device = torch.device("cpu")
    assert torch.equal(penalised.train_tally.sums(device), plain.train_tally.sums(device))


def test_a_tally_weighs_images_not_batches() -> None:
    tally = Tally()
    tally.add(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False]))
    tally.add(torch.tensor([10.0]), torch.tensor([False]))
    assert tally.sums(torch.device("cpu")).tolist() == [16.0, 2.0, 4.0]


def test_a_tally_names_the_first_bad_batch() -> None:
    tally = Tally()
    for loss in (1.0, float("inf"), float("nan")):
        tally.add(torch.tensor([loss]), torch.tensor([True]))
    assert (tally.first_bad(0), tally.first_bad(2)) == (1, 2)
