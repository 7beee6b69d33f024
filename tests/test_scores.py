"""Figures from log-probabilities, against numbers worked out by hand."""

import math

import pytest
import torch

from cifarlab import scores

# four images of three classes; the third image's class is the second likeliest, the last one's the third
P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.5, 0.3, 0.2]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 2])


def test_figures() -> None:
    figures = scores.figures(P.log(), LABELS)
    assert figures["accuracy"] == 0.5
    assert figures["superclass_accuracy"] is None
    assert figures["loss"] == pytest.approx(-math.log(0.7 * 0.8 * 0.3 * 0.2) / 4)
    # each image alone in its bin of 15: |1 - 0.7|, |1 - 0.8|, |0 - 0.6|, |0 - 0.5|
    assert figures["expected_calibration_error"] == pytest.approx((0.3 + 0.2 + 0.6 + 0.5) / 4)


def test_superclass_accuracy_counts_the_right_superclass() -> None:
    superclass_of = torch.tensor([0, 0, 1])  # the third image's 0 instead of 1 is now right, the last is not
    assert scores.figures(P.log(), LABELS, superclass_of)["superclass_accuracy"] == 0.75


def test_top5_takes_the_five_likeliest_classes() -> None:
    log_p = torch.arange(12.0).log_softmax(0).repeat(12, 1)  # of 12 classes, 7 to 11 are the likeliest
    assert scores.figures(log_p, torch.arange(12))["top5_accuracy"] == pytest.approx(5 / 12)
    assert scores.figures(P.log(), LABELS)["top5_accuracy"] == 1  # of three classes


def test_calibration_bins() -> None:
    # with two classes the confidence is at least a half; 0.75 belongs to the bin (0.5, 0.75] of four
    confidence = torch.tensor([0.75, 0.55, 0.9, 0.5], dtype=torch.float64)
    log_p = torch.stack([confidence, 1 - confidence], 1).log()
    log_p[0, 0] = math.log(0.75) + 2e-17  # rounds to the edge itself
    found = scores.calibration(log_p, torch.tensor([0, 1, 0, 0]), bins=4)
    assert found.images == [0, 1, 2, 1]
    assert found.confidence == pytest.approx([0, 0.5, 0.65, 0.9])
    assert found.accuracy == [0, 1, 0.5, 1]
    assert found.error == pytest.approx((1 * 0.5 + 2 * 0.15 + 1 * 0.1) / 4)


def test_a_forecast_that_is_right_as_often_as_it_says_has_no_calibration_error() -> None:
    log_p = torch.tensor([[0.75, 0.25]]).log().repeat(8, 1)
    assert scores.calibration(log_p, torch.tensor([0, 0, 0, 1] * 2)).error == pytest.approx(0, abs=1e-7)


def test_confusion_has_the_true_class_as_row() -> None:
    matrix = scores.confusion(P.log(), LABELS)
    assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert scores.class_accuracies(matrix) == [1, 0.5, 0]
    assert scores.merged(matrix, torch.tensor([1, 0, 1])).tolist() == [[1, 1], [0, 2]]


def test_a_class_without_images_has_no_accuracy() -> None:
    assert scores.class_accuracies(torch.tensor([[0, 0], [1, 3]])) == [None, 0.75]


def test_confident_mistakes_come_surest_first() -> None:
    assert scores.confident_mistakes(P.log(), LABELS, 25).tolist() == [2, 3]
    assert scores.confident_mistakes(P.log(), LABELS, 1).tolist() == [2]
    assert scores.confident_mistakes(P.log(), P.argmax(1), 25).tolist() == []


def test_mean_of_averages_probabilities() -> None:
    mirrored = P.flip(1)
    mean = scores.mean_of([P.log(), mirrored.log()], [1, 1])
    assert torch.allclose(mean.exp(), (P + mirrored) / 2)
    uneven = scores.mean_of([P.log(), mirrored.log()], [3, 1])
    assert torch.allclose(uneven.exp(), 0.75 * P + 0.25 * mirrored)
    losses = [scores.figures(log_p, LABELS)["loss"] for log_p in (mean, P.log(), mirrored.log())]
    assert losses[0] < (losses[1] + losses[2]) / 2
