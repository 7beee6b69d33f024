"""Image files of all kinds and modes against pixels worked out by hand, and files that are none."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifarlab import images
from cifarlab.errors import UserError
from cifarlab.images import Unreadable, find, read

RAMP = np.arange(1024, dtype=np.uint32).reshape(32, 32)
COLOURS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels.astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.webp", "no_suffix"])
def test_an_image_of_the_right_size_is_left_alone(tmp_path: Path, name: str) -> None:
    options = {"a.webp": {"lossless": True}, "no_suffix": {"format": "PNG"}}.get(name, {})
    assert np.array_equal(read(saved(tmp_path / name, COLOURS, **options)), COLOURS)


def test_jpeg_and_gif_lose_little(tmp_path: Path) -> None:
    smooth = np.stack([RAMP // 4, RAMP // 8, 255 - RAMP // 4], axis=2).astype(np.uint8)
    for name, most in (("a.jpg", 12), ("a.gif", 40)):
        pixels = read(saved(tmp_path / name, smooth))
        assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
        assert abs(pixels.astype(int) - smooth).max() <= most


def test_shrinking_averages_over_areas(tmp_path: Path) -> None:
    # each pixel becomes 3 x 2: with 0 and 60 in the places of its columns 0 and 1, else the value itself
    values = RAMP // 4
    large = values.repeat(3, axis=0).repeat(2, axis=1).astype(np.uint8)
    assert np.array_equal(read(saved(tmp_path / "a.png", large)), grey(values))
    stripes = np.tile(np.array([[10, 60]], dtype=np.uint8), (96, 32))  # 35 on average
    assert np.array_equal(read(saved(tmp_path / "b.png", stripes)), np.full((32, 32, 3), 35))


def test_how_a_picture_becomes_a_square(tmp_path: Path) -> None:
    # 64 x 32: a quarter red, the middle half green, a quarter blue
    wide = np.zeros((32, 64, 3), dtype=np.uint8)
    wide[:, :16, 0] = wide[:, 16:48, 1] = wide[:, 48:, 2] = 200
    path = saved(tmp_path / "a.png", wide)
    stretched = read(path)
    assert np.array_equal(stretched[0, [0, 7, 8, 23, 24, 31]].argmax(1), [0, 0, 1, 1, 2, 2])
    assert np.array_equal(read(path, "crop"), wide[:, 16:48])
    padded = read(path, "pad")
    assert (padded[:8] == 255).all()
    assert (padded[24:] == 255).all()
    assert np.array_equal(padded[8:24], stretched[:16])


def test_a_tiny_picture_is_enlarged(tmp_path: Path) -> None:
    pixels = read(saved(tmp_path / "a.png", np.array([[0, 255]], dtype=np.uint8)))
    row = pixels[5, :, 0].astype(int)
    assert (row[0], row[-1]) == (0, 255)
    assert (np.diff(row) >= 0).all()
    assert np.array_equal(pixels, np.repeat(pixels[5:6], 32, axis=0))
    one = read(saved(tmp_path / "b.png", np.array([[[1, 2, 3]]], dtype=np.uint8)))
    assert np.array_equal(one, np.broadcast_to([1, 2, 3], (32, 32, 3)))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = (RAMP * 64).astype(np.uint16)  # 0 to 65,472
    expected = grey(np.floor(values / 257 + 0.5))
    assert expected.max() == 255
    for name in ("a.png", "a.tiff"):
        assert np.array_equal(read(saved(tmp_path / name, values)), expected)


def test_one_bit_and_palette_and_grey(tmp_path: Path) -> None:
    checks = (RAMP % 2 * 255).astype(np.uint8)
    for mode in ("1", "L", "P"):
        assert np.array_equal(
            read(saved(tmp_path / "a.png", Image.fromarray(checks).convert(mode))), grey(checks)
        )
    # a palette has colours, whose numbers mean nothing
    palette = Image.fromarray((RAMP % 2).astype(np.uint8), "L")
    palette.putpalette([9, 8, 7, 200, 100, 50])
    assert np.array_equal(read(saved(tmp_path / "b.png", palette))[0, :2], [[9, 8, 7], [200, 100, 50]])


def test_transparent_parts_are_over_white(tmp_path: Path) -> None:
    alpha = np.zeros((32, 32), dtype=np.uint8)
    alpha[8:16], alpha[16:] = 51, 255  # 0, 1/5 and 1
    pixels = read(
        saved(tmp_path / "a.png", np.dstack([np.full((32, 32, 3), [100, 0, 250]), alpha]).astype(np.uint8))
    )
    assert np.array_equal(pixels[0, 0], [255, 255, 255])
    assert np.array_equal(pixels[8, 0], [0.2 * 100 + 0.8 * 255, 0.8 * 255, 0.2 * 250 + 0.8 * 255])
    assert np.array_equal(pixels[31, 0], [100, 0, 250])
    two = Image.merge("LA", [Image.new("L", (32, 32), 100), Image.fromarray(alpha)])
    assert np.array_equal(read(saved(tmp_path / "b.png", two))[[0, 8, 31], 0, 0], [255, 224, 100])
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([1, 2, 3, 4, 5, 6])
    assert (read(saved(tmp_path / "c.png", palette, transparency=1)) == 255).all()
    # the colour of what cannot be seen does not count when shrunk: half red, half transparent green
    mixed = np.zeros((32, 64, 4), dtype=np.uint8)
    mixed[:, ::2], mixed[:, 1::2] = [200, 0, 0, 255], [0, 255, 0, 0]
    seen = read(saved(tmp_path / "d.png", mixed)).astype(int)
    assert abs(seen - [(200 + 255) / 2, 127.5, 127.5]).max() <= 1


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    assert np.array_equal(read(saved(tmp_path / "a.tiff", image))[0, 0], [255, 0, 0])
    assert abs(read(saved(tmp_path / "a.jpg", image)).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_an_animation_the_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(read(path), np.broadcast_to([255, 0, 0], (32, 32, 3)))


@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg", "webp"])
def test_turned_as_exif_says(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture has to be turned clockwise by 90 degrees
    dark_top = grey(np.repeat([[0], [255]], 16, axis=0) * np.ones((1, 32)))
    pixels = read(saved(tmp_path / f"a.{suffix}", dark_top, exif=exif))
    assert pixels[:, 20:].max() < 8
    assert pixels[:, :12].min() > 247


def test_a_large_jpeg_is_decoded_small(tmp_path: Path) -> None:
    image = Image.new("RGB", (3000, 2000), (10, 100, 200))
    image.paste((250, 250, 250), (1500, 0, 3000, 2000))
    pixels = read(saved(tmp_path / "a.jpg", image)).astype(int)
    assert abs(pixels[:, :15] - [10, 100, 200]).max() <= 3
    assert abs(pixels[:, 17:] - 250).max() <= 3


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def whole() -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "JPEG")
    return file.getvalue()


BAD = {
    "text": (b"not an image", "no PNG, JPEG, WebP, GIF, BMP or TIFF, or its beginning is damaged"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG, JPEG, WebP, GIF, BMP or TIFF"),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "no PNG, JPEG, WebP, GIF, BMP or TIFF",
    ),
    "empty": (b"", "0 bytes; expected 1 byte to 1 GiB"),
    "torn": (whole()[:-100], "cannot be read (image file is truncated"),
    "head": (whole()[:12], "cannot be read (Truncated File Read)"),
    "no pixels": (png(0, 5), "no PNG, JPEG, WebP, GIF, BMP or TIFF, or its beginning is damaged"),
    "no pixels in a gif": (
        b"GIF89a" + bytes(6) + b"," + bytes(12) + b";",
        "no PNG, JPEG, WebP, GIF, BMP or TIFF",
    ),
    "no data": (png(32, 32), "cannot be read ("),
    "bomb": (png(30_000, 30_000), "more than 89,478,485 pixels"),
    "lesser bomb": (png(9_460, 9_460), "9,460 x 9,460 pixels; expected at most 89,478,485"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("content, reason", BAD.values(), ids=BAD)
def test_what_is_no_image_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Unreadable) as caught:
        read(tmp_path / "a.png")
    assert str(caught.value).startswith(reason)


def test_what_is_no_file_says_why(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    with open(tmp_path / "huge.webp", "wb") as file:
        file.truncate(2**30 + 1)
    reasons = {
        ".": "a folder, not an image, or one without images",
        "none.png": "there is no such file",
        "link.png": "a link to nothing",
        "loop.png": "cannot be read (Too many levels of symbolic links)",
        "pipe.png": "not an ordinary file",
        "huge.webp": "1,073,741,825 bytes; expected 1 byte to 1 GiB",
    }
    for name, reason in reasons.items():
        with pytest.raises(Unreadable) as caught:
            read(tmp_path / name)
        assert str(caught.value) == reason


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)  # file modes do not stop root, as who tests may run
    with pytest.raises(Unreadable, match=r"^cannot be read \(Permission denied\)$"):
        read(saved(tmp_path / "a.png", COLOURS))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_of_an_unknown_range_are_refused(tmp_path: Path, dtype: type) -> None:
    with pytest.raises(Unreadable, match="32-bit numbers of an unknown range"):
        read(saved(tmp_path / "a.tiff", RAMP.astype(dtype)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_anywhere_is_an_answer(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    answers = {"pixels": 0, "reason": 0}
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        path = saved(tmp_path / f"a.{suffix}", COLOURS)
        content = path.read_bytes()
        for _ in range(30):
            damaged = bytearray(content)
            for place in random.integers(0, min(400, len(content)), 4):
                damaged[place] = random.integers(256)
            path.write_bytes(damaged)
            try:
                assert read(path).shape == (32, 32, 3)
                answers["pixels"] += 1
            except Unreadable:
                answers["reason"] += 1
    assert min(answers.values()) > 20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        ".hidden.png",
        "[1].gif",
        "deep/c.webp",
        "deep/er/d.tif",
        "empty/x",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(*typed: str) -> list[str]:
    return [str(path) for path in find(typed)]


def test_what_images_names(folder: Path) -> None:
    assert names(".") == ["[1].gif", "a.JPG", "b.png"]
    assert names(str(folder / "deep")) == [str(folder / "deep/c.webp")]
    assert names("*") == ["[1].gif", "a.JPG", "b.png"]
    assert names("**") == ["[1].gif", "a.JPG", "b.png", "deep/c.webp", "deep/er/d.tif"]
    assert names("deep/**/*.tif") == ["deep/er/d.tif"]
    assert names("[1].gif") == ["[1].gif"]  # a file's own name before a pattern
    assert names("notes.txt") == ["notes.txt"]  # named itself, a file is tried whatever it is called
    assert names("b.png", "deep", "nothing.png") == ["b.png", "deep/c.webp", "nothing.png"]


def test_a_list_on_stdin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = b"b.png\n\nwith space .png\r\nbad\xff.png\nlast.png"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    assert names("-", "a.JPG") == ["b.png", "with space .png", "bad\udcff.png", "last.png", "a.JPG"]


NOTHING = {
    "empty": "images=empty: that folder holds no PNG, JPEG, WebP, GIF, BMP or TIFF files; images='empty/**' "
    "looks deeper.",
    "none.png": "images=none.png names nothing; expected an image file, a folder, a pattern such as",
    "*.bmp": "images=*.bmp names nothing; expected an image file,",
    "": "images= names nothing; expected an image file,",
    "-": "images=-: no file is named on stdin; expected one in each line.",
}


@pytest.mark.parametrize("typed, sentence", NOTHING.items(), ids=NOTHING)
def test_a_name_that_names_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, typed: str, sentence: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(UserError) as caught:
        find([typed])
    assert str(caught.value).startswith(sentence)


def test_a_list_that_names_nothing(folder: Path) -> None:
    for typed in ([], ["empty", "none.png"]):
        with pytest.raises(UserError, match=r"^images=\[.*\] names nothing; expected"):
            find(typed)


def test_suffixes_are_pillows_own() -> None:
    Image.init()
    for kind, suffixes in images.SUFFIXES.items():
        assert {Image.EXTENSION[suffix] for suffix in suffixes} == {kind.upper()}


def test_a_very_thin_picture_is_not_lost(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 2), "red").save(tmp_path / "thin.png")
    pixels = read(tmp_path / "thin.png", "pad")
    red = (pixels == [255, 0, 0]).all(2)
    assert red.sum() == 32  # one row
    assert red.any(1).sum() == 1


def test_a_transparent_colour_of_16_bits_is_put_over_white(tmp_path: Path) -> None:
    deep = np.full((32, 32), 257 * 100, dtype=np.uint16)
    deep[:, 16:] = 5
    Image.fromarray(deep).save(tmp_path / "deep.png", transparency=5)
    pixels = read(tmp_path / "deep.png")
    assert (pixels[:, :16] == 100).all()
    assert (pixels[:, 16:] == 255).all()
