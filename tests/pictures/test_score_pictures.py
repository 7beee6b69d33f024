"""The confusion matrix and the reliability diagram: what is drawn, where."""

from itertools import pairwise

import pytest
import torch
from matplotlib.patches import Rectangle

from cifarlab.pictures.scores import confusion_figure, reliability_figure
from cifarlab.scores import Calibration


def test_a_small_confusion_matrix_shows_shares_as_colours_and_counts_as_numbers() -> None:
    figure = confusion_figure(torch.tensor([[3, 1], [0, 0]]), ["cat", "dog"], "a run")
    axes = figure.axes[0]
    # the second class has no image, so no share either
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "3", (1, 0): "1", (0, 1): "0", (1, 1): "0"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")


def test_classes_of_a_superclass_stand_side_by_side_in_a_frame() -> None:
    matrix = torch.tensor([[4, 0, 1], [0, 2, 0], [3, 0, 1]])
    figure = confusion_figure(matrix, ["rose", "cat", "tulip"], "a run", ["flowers", "animals", "flowers"])
    axes = figure.axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["cat", "rose", "tulip"]
    assert axes.images[0].get_array().flatten().tolist() == pytest.approx(
        [1, 0, 0, 0, 0.8, 0.2, 0, 0.75, 0.25]
    )
    frames = [(p.get_xy(), p.get_width(), p.get_height()) for p in axes.patches if isinstance(p, Rectangle)]
    assert frames == [((-0.5, -0.5), 1, 1), ((0.5, 0.5), 2, 2)]
    right = axes.child_axes[0]
    assert right.get_yticks().tolist() == [0, 1.5]
    assert [label.get_text() for label in right.get_yticklabels()] == ["animals", "flowers"]


def test_many_long_names_stay_apart_and_inside() -> None:
    names = [f"a class with number {n}" for n in range(40)]
    figure = confusion_figure(torch.eye(40, dtype=torch.int64), names, "a run", [name[:20] for name in names])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(lower.y1 <= upper.y0 for upper, lower in pairwise(boxes))
    boxes += [axes.yaxis.label.get_window_extent(), axes.xaxis.label.get_window_extent()]
    corners = [corner for box in boxes for corner in (box.p0, box.p1)]
    assert all(figure.bbox.contains(*corner) for corner in corners)


def test_reliability_bars_are_the_accuracies_of_the_bins_that_hold_images() -> None:
    calibration = Calibration([0, 1, 0, 3], [0, 0.4, 0, 0.9], [0, 1, 0, 1 / 3])
    upper, lower = reliability_figure(calibration, "a run").axes
    bars, gaps = upper.containers
    assert [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in bars] == [
        (0.25, 0.25, 1),
        (0.75, 0.25, pytest.approx(1 / 3)),
    ]
    # a gap reaches from the accuracy to the mean confidence
    assert [gap.get_y() + gap.get_height() for gap in gaps] == pytest.approx([0.4, 0.9])
    assert [bar.get_height() for bar in lower.containers[0]] == [0.25, 0.75]
    assert upper.get_legend().get_title().get_text() == "Expected calibration error 0.5750"


def test_names_are_no_formulas() -> None:
    figure = confusion_figure(torch.eye(2, dtype=torch.int64), ["$x_", "a$^$"], "$_ of 5 $", ["$a_$", "$b^$"])
    figure.draw_without_rendering()  # fails on a formula that cannot be read
    assert figure.axes[0].get_title() == "$_ of 5 $"
