"""PNGs beside a Markdown or LaTeX report: curves, accuracy against time, what each regularizer brings."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifarlab.atomic import atomically
from cifarlab.report.history import Curve
from cifarlab.report.rows import Row
from cifarlab.report.statistics import Estimate
from cifarlab.report.summary import METRICS, Report

MOST_CURVES = 8
MOST_NAMED = 12
# Okabe and Ito's colours, told apart by the colour-blind, without the yellow that white swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
LINES = ("-", "--", ":")
LONGEST_NAME = 60
SHORT = 8  # epochs, below which the curves need no second, closer look


def draw(report: Report, curves: Sequence[Curve], beside: Path) -> list[tuple[str, str]]:
    """Draw the pictures for which there is something; returns their (file name, caption)."""
    drawn = []
    if curves:
        caption = (
            "Validation accuracy by epoch: mean over runs, band from the lowest to the highest of them, each "
            "epoch over the runs that reached it."
        )
        drawn.append((save(curves_figure(curves), beside, "curves"), caption))
    if len(timed := timed_rows(report)) > 1:
        caption = (
            f"Mean {report.metric_name} against mean training time; nothing here is both faster and better "
            "than what lies on the line (the Pareto front)."
        )
        drawn.append((save(pareto_figure(report, timed), beside, "time"), caption))
    if report.factors:
        caption = (
            f"Points of {report.metric_name} that each regularizer adds: a dot per choice of the others, "
            "the diamond their mean with its 95 % interval."
        )
        drawn.append((save(factors_figure(report), beside, "regularizers"), caption))
    return drawn


def save(figure: Any, beside: Path, what: str) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    path = beside.with_name(f"{beside.stem}_{what}.png")
    with atomically(path) as file:
        figure.savefig(file, dpi=120, format="png", metadata={"Software": None})
    return path.name


def new_figure(height: float, panels: int = 1) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure  # slow to import, and without pyplot's state

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label(row: Row) -> str:
    """A row's name, shortened; dollars would begin mathematics."""
    name = row.name if len(row.name) <= LONGEST_NAME else f"{row.name[: LONGEST_NAME - 1]}…"
    return name.replace("$", r"\$") + (" †" if row.validates_on_test else "")


def timed_rows(report: Report) -> list[Row]:
    """The rows with a time and an accuracy, fastest first."""
    rows = [row for row in report.rows if row.seconds and row.metric(report.metric)]
    return sorted(rows, key=lambda row: row.seconds or 0)


def pareto_front(report: Report, rows: Sequence[Row]) -> list[Row]:
    """Of rows sorted by time those that are better than all faster ones."""
    front: list[Row] = []
    best = float("-inf")
    for row in rows:
        found = row.metric(report.metric)
        if found is not None and found.mean > best:
            front.append(row)
            best = found.mean
    return front


def curves_figure(curves: Sequence[Curve]) -> Any:
    """All epochs, and beside them the second half, where the lines lie close."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    last = max(curve.epochs[-1] for curve in curves)
    figure, axes = new_figure(4.2 + 0.12 * len(curves), panels=2 if last >= SHORT else 1)
    for panel, first in zip(axes, (0, last // 2), strict=False):
        for number, curve in enumerate(curves):
            colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
            start = bisect_left(curve.epochs, first)
            epochs, mean, low, high = (
                values[start:] for values in (curve.epochs, curve.mean, curve.low, curve.high)
            )
            name = f"{label(curve.row)} ({curve.runs} run{'s' * (curve.runs != 1)})"
            marker = "o" if len(epochs) < 3 else None
            panel.plot(epochs, mean, color=colour, label=name, marker=marker, ls=line, linewidth=1.5)
            if curve.runs > 1:
                panel.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
        panel.set(xlabel="epoch", title="The second half" if first else "Validation accuracy")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, loc="outside lower center", frameon=False, ncols=2)
    return figure


def pareto_figure(report: Report, rows: Sequence[Row]) -> Any:
    from matplotlib.ticker import PercentFormatter

    figure, (axes,) = new_figure(5.5)
    front = pareto_front(report, rows)
    best = {id(row) for row in front}
    others = [row for row in rows if id(row) not in best]
    for some, colour in ((others, COLOURS[0]), (front, COLOURS[1])):
        seconds = [row.seconds or 0.0 for row in some]
        found = [row.metric(report.metric) or Estimate(0, math.nan) for row in some]
        means, sds = [each.mean for each in found], [each.sd or 0.0 for each in found]
        axes.errorbar(seconds, means, yerr=sds, fmt="o", color=colour, elinewidth=1, markersize=4)
    axes.plot(seconds, means, color=COLOURS[1], linewidth=1, label="Pareto front", drawstyle="steps-post")
    # a number at the point and the name below: names would overlap
    named = list(zip(front, means, seconds, strict=True))[-MOST_NAMED:]
    for number, (row, mean, second) in enumerate(named, 1):
        axes.annotate(str(number), (second, mean), xytext=(-5, 5), textcoords="offset points", ha="right")
        axes.plot([], [], " ", label=f"{number}  {label(row)}")
    if (rows[-1].seconds or 1.0) > 20 * (rows[0].seconds or 1.0):
        axes.set_xscale("log")
    axes.set(xlabel="training time (s)", ylabel=METRICS[report.metric])
    axes.set_title(f"{METRICS[report.metric].capitalize()} against training time (mean, standard deviation)")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(fontsize=8, loc="outside lower center", frameon=False, ncols=2)
    return figure


def factors_figure(report: Report) -> Any:
    names = [factor.name for factor in report.factors]
    figure, (axes,) = new_figure(1.6 + 0.6 * len(names))
    for height, factor in enumerate(report.factors):
        gains = [100 * step.gain.mean for step in factor.steps]
        axes.plot(
            gains, [height] * len(gains), "o", color=COLOURS[0], alpha=0.45, markersize=6, markeredgewidth=0
        )
        for gain, mark in ((factor.alone, "<"), (factor.last, ">")):
            if gain is not None:
                axes.plot(100 * gain, height + 0.22, mark, color=COLOURS[2], markersize=6)
        effect = factor.effect
        half = None if effect.half_width is None else 100 * effect.half_width
        axes.errorbar(
            100 * effect.mean, height, xerr=half, fmt="D", color=COLOURS[1], capsize=4, markersize=7
        )
    for mark, colour, text in (
        ("o", COLOURS[0], "one choice of the others"),
        ("<", COLOURS[2], "alone"),
        (">", COLOURS[2], "added to all others"),
        ("D", COLOURS[1], "mean, 95 % interval"),
    ):
        axes.plot([], [], mark, color=colour, label=text)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"points of {report.metric_name} gained")
    axes.set_title("What each regularizer brings")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure
