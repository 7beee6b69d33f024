"""`curves.png` and `metrics.csv`: a run's history, epoch by epoch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from cifarlab.atomic import write_text

COLUMNS = ("epoch", "step", "lr", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "seconds")
Row = dict[str, Any]


def write_metrics(path: Path, history: list[Row]) -> None:
    """One line per epoch; what is unknown is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def draw_curves(path: Path, history: list[Row], validates_on_test: bool) -> None:
    """Two panels, cross-entropy and accuracy by epoch: training blue, validation orange."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter  # slow to import, as what follows

    from cifarlab.pictures.grid import save
    from cifarlab.pictures.scores import blank

    figure = blank(10, 4)
    panels = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    validation = "validation (the test images)" if validates_on_test else "validation"
    for panel, metric, title in zip(
        panels, ("loss", "accuracy"), ("Cross-entropy (nats)", "Accuracy"), strict=True
    ):
        for part, label, colour in (("train", "training", "tab:blue"), ("val", validation, "tab:orange")):
            values = [row[f"{part}/{metric}"] for row in history]
            if any(value is not None for value in values):
                marker = "o" if len(history) < 3 else None
                panel.plot(
                    epochs,
                    [float("nan") if v is None else v for v in values],
                    color=colour,
                    label=label,
                    marker=marker,
                )
        if len(history) == 1:
            panel.set_xlim(0, 2)
        panel.set_title(title)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.legend()
    panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    save(figure, path)
