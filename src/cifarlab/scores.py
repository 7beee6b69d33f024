"""From log-probabilities and labels to figures: pure functions, without a network or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

BINS = 15  # of the confidence, as in Guo et al. 2017


@dataclass(frozen=True)
class Calibration:
    """How often predictions of a certain confidence are right.

    The confidence is the predicted class's probability. Bin m of M holds those above m / M and up to
    (m + 1) / M; where it holds no image its two means are 0.
    """

    images: list[int]
    confidence: list[float]  # the mean
    accuracy: list[float]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence| over the images, by their bins.

        M. P. Naeini, G. F. Cooper and M. Hauskrecht, Obtaining well calibrated probabilities using Bayesian
        binning (2015); C. Guo et al., On calibration of modern neural networks (2017).
        """
        bins = zip(self.images, self.confidence, self.accuracy, strict=True)
        return sum(images * abs(a - c) for images, c, a in bins) / sum(self.images)


def calibration(log_p: Tensor, labels: Tensor, bins: int = BINS) -> Calibration:
    """From log-probabilities (N, classes) and labels (N,), in bins of equal width."""
    top, predicted = log_p.double().max(1)
    confidence, correct = top.exp(), (predicted == labels).double()
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    place = torch.bucketize(confidence, edges)  # an edge belongs to the bin below it
    images, confidences, hits = (
        torch.bincount(place, weights, minlength=bins) for weights in (None, confidence, correct)
    )
    some = images.clamp_min(1)
    return Calibration(images.tolist(), (confidences / some).tolist(), (hits / some).tolist())


def figures(log_p: Tensor, labels: Tensor, superclass_of: Tensor | None = None) -> dict[str, float | None]:
    """Accuracies, loss in nats and expected calibration error.

    Args:
        log_p: log-probabilities, float (N, classes).
        labels: int64 (N,).
        superclass_of: each class's superclass, int64 (classes,). Without it the superclass accuracy, the
            share of images whose predicted class is of the right superclass, is None.
    """
    log_p = log_p.double()
    predicted = log_p.argmax(1)
    top = log_p.topk(min(5, log_p.shape[1])).indices
    figures: dict[str, float | None] = {
        "accuracy": share(predicted == labels),
        "superclass_accuracy": None,
        "top5_accuracy": share((top == labels[:, None]).any(1)),
        "loss": -log_p.gather(1, labels[:, None]).mean().item(),
        "expected_calibration_error": calibration(log_p, labels).error,
    }
    if superclass_of is not None:
        figures["superclass_accuracy"] = share(superclass_of[predicted] == superclass_of[labels])
    return figures


def share(hit: Tensor) -> float:
    return hit.double().mean().item()


def confusion(log_p: Tensor, labels: Tensor) -> Tensor:
    """Images by true class (row) and predicted class (column): int64 (classes, classes)."""
    classes = log_p.shape[1]
    return torch.bincount(labels * classes + log_p.argmax(1), minlength=classes**2).view(classes, classes)


def merged(matrix: Tensor, superclass_of: Tensor) -> Tensor:
    """A confusion matrix of classes as that of their superclasses, `superclass_of` (classes,)."""
    member = torch.nn.functional.one_hot(superclass_of)
    return member.T @ matrix @ member


def class_accuracies(matrix: Tensor) -> list[float | None]:
    """From a confusion matrix the share of each class's images that was hit; None for a class without any."""
    pairs = zip(matrix.diagonal().tolist(), matrix.sum(1).tolist(), strict=True)
    return [hits / images if images else None for hits, images in pairs]


def confident_mistakes(log_p: Tensor, labels: Tensor, count: int) -> Tensor:
    """Positions of the wrongly classified images, the surest first: int64, at most that many."""
    confidence, predicted = log_p.max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]


def mean_of(log_ps: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The logarithm of the weighted mean of predictions' probabilities: float64 (N, classes).

    Of the probabilities, as in A. Krizhevsky, I. Sutskever and G. E. Hinton, ImageNet classification with
    deep convolutional neural networks (2012), and not of the logits: by Jensen's inequality its loss is never
    above the mean of their losses.
    """
    shares = [log(weight / sum(weights)) for weight in weights]
    return torch.stack([log_p.double() + s for log_p, s in zip(log_ps, shares, strict=True)]).logsumexp(0)
