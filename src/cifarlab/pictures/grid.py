"""Many small images in one picture, each with its caption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import IdentityTransform
from torch import Tensor

from cifarlab.atomic import atomically

DPI = 128  # a power of two, so that a size in pixels survives its way through inches
TEXT, TITLE = 7.5, 9.5  # points
TEXT_LINE, TITLE_LINE = 17, 24  # pixels from one line to the next
GAP = 8  # pixels
LONGEST = 28  # characters in a line of a caption


class Pixels(Artist):
    """An array drawn pixel for pixel; matplotlib's own images resample, which takes seconds for large ones.

    Args:
        array: uint8 (H, W, 4), red, green, blue and opacity, as large as the figure.
    """

    def __init__(self, array: np.ndarray) -> None:
        super().__init__()
        self.array = array

    def draw(self, renderer: RendererBase) -> None:
        renderer.draw_image(renderer.new_gc(), 0, 0, self.array[::-1])  # its y axis points upwards


def grid(
    images: Tensor,
    columns: int,
    captions: Sequence[str] | None = None,
    title: str | None = None,
    rows: Sequence[str] | None = None,
    scale: int | None = None,
) -> Figure:
    """Images from left to right, then downwards, enlarged without smoothing; the last row may be shorter.

    Args:
        images: uint8 (N, 3, H, W), on any device.
        columns: images in a row.
        captions: N texts, each of one or more lines, to stand above the images. A line of more than 28
            characters loses its middle.
        title: one or more lines above the grid.
        rows: a label for each row, at its left.
        scale: how many times as large as an image it is drawn; by default so that the grid gets some 900
            pixels wide, its images from 64 to 160.
    """
    count, _, height, width = images.shape
    columns = max(1, min(columns, count))
    scale = scale or max(1, round(min(160, max(64, 900 / columns)) / max(height, width)))
    height, width = scale * height, scale * width
    texts = [[shortened(line) for line in text.split("\n")] for text in captions or ()]
    titles = title.split("\n") if title else []
    labels = [line for label in rows or () for line in label.split("\n")]
    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()

    # a cell holds a caption's lines, the image, and the gap to the next ones
    above = TEXT_LINE * max(map(len, texts), default=0)
    cell_height = above + height + GAP
    cell_width = max(width, widest({line for text in texts for line in text}, TEXT, renderer)) + GAP
    indent = (cell_width - GAP - width) // 2
    down = -(-max(1, count) // columns)
    cells = np.full((down * columns, cell_height, cell_width, 4), 255, dtype=np.uint8)
    cells[:count, above : above + height, indent : indent + width, :3] = (
        images.cpu().permute(0, 2, 3, 1).numpy().repeat(scale, axis=1).repeat(scale, axis=2)
    )
    # the cells as one array, since a thousand axes would take a minute, with room for the title and labels
    sheet = cells.reshape(down, columns, cell_height, cell_width, 4).swapaxes(1, 2)
    sheet = sheet.reshape(down * cell_height, columns * cell_width, 4)
    top = GAP + TITLE_LINE * len(titles)
    left = GAP + (widest(labels, TEXT, renderer) + GAP if labels else 0)
    right = max(0, GAP + widest(titles, TITLE, renderer) + GAP - left - sheet.shape[1])
    sheet = np.pad(sheet, ((top, 0), (left, right), (0, 0)), constant_values=255)
    figure.set_size_inches(sheet.shape[1] / DPI, sheet.shape[0] / DPI)
    figure.add_artist(Pixels(sheet))

    def write(x: float, y: float, text: str, size: float, across: str, down: str) -> None:
        """Text at a place in pixels from the top left corner; a dollar sign in it is no formula."""
        figure.text(
            x,
            len(sheet) - y,
            text,
            transform=IdentityTransform(),
            fontsize=size,
            ha=across,
            va=down,
            parse_math=False,
        )

    for number, line in enumerate(titles):
        write(GAP, TITLE_LINE * (number + 1), line, TITLE, "left", "baseline")
    for number, text in enumerate(texts):
        row, column = divmod(number, columns)
        for place, line in enumerate(text, start=1 - len(text)):
            x = left + column * cell_width + indent + width / 2
            base = top + row * cell_height + above + place * TEXT_LINE - 5
            write(x, base, line, TEXT, "center", "baseline")
    for row, label in enumerate(rows or ()):
        y = top + row * cell_height + above + height / 2
        write(left - GAP, y, label, TEXT, "right", "center_baseline")
    return figure


def widest(lines: Iterable[str], size: float, renderer: RendererAgg) -> int:
    """The width in pixels that the lines need at that font size in points."""
    font = FontProperties(size=size)
    widths = (renderer.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines)
    return round(max(widths, default=0))


def shortened(line: str) -> str:
    """The line, its middle left out if it is too long for a caption."""
    half = (LONGEST - 1) // 2
    return line if len(line) <= LONGEST else f"{line[:half]}…{line[-half:]}"


def save(figure: Figure, path: Path) -> None:
    """Write a picture as a PNG file, atomically."""
    with atomically(path) as file:
        figure.savefig(file, format="png")
