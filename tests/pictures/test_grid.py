"""The grid of images, pixel by pixel, and where its texts stand."""

from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from cifarlab.pictures.grid import grid, save

GAP, CAPTION_LINE, TITLE_LINE = 8, 17, 24


def images(count: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)).byte()


def drawn(figure: Figure) -> np.ndarray:
    """The picture as it is written, uint8 (H, W, 3)."""
    file = BytesIO()
    figure.savefig(file, format="png")
    return np.array(Image.open(file).convert("RGB"))


def enlarged(image: Tensor, scale: int) -> np.ndarray:
    return np.kron(image.permute(1, 2, 0).numpy(), np.ones((scale, scale, 1), dtype=np.uint8))


def test_every_image_is_whole_and_in_its_place() -> None:
    shown = images(5, height=8, width=12)
    picture = drawn(grid(shown, 3, scale=2))
    assert picture.shape == (GAP + 2 * (16 + GAP), GAP + 3 * (24 + GAP), 3)
    for number, image in enumerate(shown):
        row, column = divmod(number, 3)
        top, left = GAP + row * (16 + GAP), GAP + column * (24 + GAP)
        np.testing.assert_array_equal(picture[top : top + 16, left : left + 24], enlarged(image, 2))
        picture[top : top + 16, left : left + 24] = 255
    assert (picture == 255).all()  # the sixth place too


def test_scale_follows_from_the_columns() -> None:
    # 160, 900 / 8 = 112.5 and 64 pixels an image, as multiples of its 32
    widths = [drawn(grid(images(25), columns)).shape[1] for columns in (3, 8, 25)]
    assert widths == [GAP + 3 * (160 + GAP), GAP + 8 * (128 + GAP), GAP + 25 * (64 + GAP)]
    assert drawn(grid(images(2, 300, 200), 2)).shape == (GAP + 300 + GAP, GAP + 2 * (200 + GAP), 3)


def test_captions_title_and_rows_leave_the_images_whole() -> None:
    shown, names = images(4), ["frog\n98 %", "a caption wider than it", "", "$x_1$"]
    picture = drawn(grid(shown, 2, names, title="one\ntwo", rows=["first", "second"], scale=2))
    cell = 2 * CAPTION_LINE + 64 + GAP
    for row in range(2):
        top = GAP + 2 * TITLE_LINE + row * cell + 2 * CAPTION_LINE
        for image in shown[2 * row : 2 * row + 2]:
            band = picture[top : top + 64]
            found = [
                x for x in range(band.shape[1] - 63) if (band[:, x : x + 64] == enlarged(image, 2)).all()
            ]
            assert len(found) == 1


def test_texts_neither_meet_nor_leave_the_picture() -> None:
    names = [f"{'a_long_name' * (1 + n % 4)}\n$x_{n} 12.3 %" for n in range(12)]
    rows = ["large man-made\noutdoor things", "people", "trees"]
    figure = grid(
        images(12), 4, names, title="A title that is much wider than the four images " * 3, rows=rows
    )
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = {text: text.get_window_extent(renderer) for text in figure.texts}
    width, height = figure.canvas.get_width_height()
    assert len(boxes) == 1 + 2 * 12 + 3
    for box in boxes.values():
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
    lines = sorted(boxes.items(), key=lambda item: (item[0].get_position()[1], item[1].x0))
    for (text, box), (other, next_box) in pairwise(lines):
        if text.get_position()[1] == other.get_position()[1]:
            assert box.x1 < next_box.x0
    assert any(text.get_text() == "a_long_namea_…mea_long_name" for text in boxes)


def test_no_images_leave_the_title() -> None:
    figure = grid(images(0), 5, [], title="No mistakes")
    assert [text.get_text() for text in figure.texts] == ["No mistakes"]
    picture = drawn(figure)
    assert (picture < 128).any()


def test_save_replaces_a_file_by_the_whole_picture(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    path.write_text("an older one")
    figure = grid(images(2), 2)
    save(figure, path)
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(path).convert("RGB")), drawn(figure))
