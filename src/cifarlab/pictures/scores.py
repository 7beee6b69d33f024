"""What a classifier confuses, and how far its probabilities can be believed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cifarlab.pictures.grid import grid
from cifarlab.scores import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
NUMBERED = 20  # with more classes there is no room for a number in each cell


def blank(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, without pyplot's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def confusion_figure(
    matrix: Tensor, classes: Sequence[str], title: str, groups: Sequence[str] | None = None
) -> Figure:
    """Images by true class (row) and predicted class (column).

    Args:
        matrix: int64 (classes, classes). The colour is the share of a row, so that rare classes count as
            much; with at most 20 classes the number of images stands in each cell.
        groups: each class's superclass; those of one are put side by side and framed.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import PercentFormatter

    count = len(classes)
    if groups:
        order = sorted(range(count), key=groups.__getitem__)
        matrix, classes = matrix[order][:, order], [classes[label] for label in order]
        groups = [groups[label] for label in order]
    shares = (matrix / matrix.sum(1, keepdim=True).clamp_min(1)).numpy()
    numbered = count <= NUMBERED
    side = max(5.5, 0.5 * count) if numbered else 3 + 0.13 * count
    figure = blank(side + (4 if groups else 1), side)
    axes = figure.add_subplot()
    # the square root: a share of one in a hundred can still be told from none
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    axes.tick_params(length=0, labelsize=9 if numbered else 7)
    axes.set_yticks(range(count), classes)
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if numbered else {"rotation": 90}
    axes.set_xticks(range(count), classes, **turned)
    if numbered:
        for row, numbers in enumerate(matrix.tolist()):
            for column, number in enumerate(numbers):
                colour = "white" if shares[row, column] > 0.4 else "black"
                axes.text(column, row, f"{number:,}", ha="center", va="center", color=colour, fontsize=8)
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    if groups:
        starts = [n for n in range(count) if n == 0 or groups[n] != groups[n - 1]]
        ends = [*starts[1:], count]
        for start, end in zip(starts, ends, strict=True):
            size = end - start
            axes.add_patch(Rectangle((start - 0.5, start - 0.5), size, size, fill=False, ec="tab:orange"))
            for line in (axes.axhline, axes.axvline):
                line(end - 0.5, color="0.8", lw=0.5, zorder=0.5)
        right = axes.secondary_yaxis("right")
        right.tick_params(length=0, labelsize=8)
        middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
        right.set_yticks(middles, [groups[start] for start in starts])
        labels += right.get_yticklabels()
    for label in labels:
        label.set_parse_math(False)  # a dollar sign in a class's name is no formula
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title, fontsize=10 if numbered else 12, parse_math=False)
    bar = figure.colorbar(picture, ax=axes, format=PercentFormatter(1), shrink=0.6, aspect=30)
    bar.set_label("share of the true class's images")
    return figure


def reliability_figure(calibration: Calibration, title: str) -> Figure:
    """Accuracy by confidence (calibrated: on the diagonal), above how many images had that confidence."""
    from matplotlib.ticker import PercentFormatter

    total, width = sum(calibration.images), 1 / len(calibration.images)
    rows = zip(calibration.images, calibration.confidence, calibration.accuracy, strict=True)
    bins = [((m + 0.5) * width, images / total, c - a, a) for m, (images, c, a) in enumerate(rows) if images]
    middles, shares, gaps, accuracies = zip(*bins, strict=True)

    figure = blank(5.5, 6.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(middles, accuracies, width, color="tab:blue", edgecolor="white", label="accuracy")
    gap = {"facecolor": "none", "edgecolor": "tab:orange", "hatch": "///"}
    upper.bar(middles, gaps, width, accuracies, **gap, label="gap between accuracy and mean confidence")
    upper.plot([0, 1], [0, 1], color="black", ls="--", lw=1, label="perfectly calibrated")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    upper.set_title(title, fontsize=10, parse_math=False)
    legend = f"Expected calibration error {calibration.error:.4f}"
    upper.legend(title=legend, loc="upper left", fontsize=8, title_fontsize=9)
    lower.bar(middles, shares, width, color="0.6", edgecolor="white")
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="share of the images")
    for panel in (upper, lower):
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
    lower.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def mistakes_figure(images: Tensor, mistakes: Iterable[tuple[str, float, str]], title: str) -> Figure:
    """Images, uint8 (N, 3, H, W), each with the class it was taken for, that one's probability, and its own
    class."""
    captions = [
        f"{predicted} ({'> 99.9%' if probability > 0.9995 else f'{probability:.1%}'})\ntrue: {true}"
        for predicted, probability, true in mistakes
    ]
    says = "The most confident mistakes: the predicted class and its probability"
    return grid(images, 5, captions, f"{title}\n{says}")
