"""Image files with any damage, and files of any bytes: 32 x 32 pixels or a reason, within bounded memory."""

import io
import resource
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cifarlab.images import SUFFIXES, Unreadable, read

MODES = {
    "PNG": ("RGB", "RGBA", "P", "1", "I;16", "LA"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WebP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "P", "1"),
    "TIFF": ("RGB", "I;16", "F", "CMYK", "1"),
}
LARGEST = (
    3 * 2**30
)  # bytes of address space that a picture may take: some 90 million pixels in RGBA, and copies


@cache
def seed(kind: str, mode: str) -> bytes:
    """A whole picture of noise, with metadata and for a GIF a second frame."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 4), np.uint8)
    picture = Image.fromarray(noise).convert("RGB").convert("L" if mode in ("I;16", "F") else mode)
    if mode in ("I;16", "F"):
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16 if mode == "I;16" else np.float32))
    file = io.BytesIO()
    more = {"save_all": True, "append_images": [picture.rotate(90)]} if kind == "GIF" else {}
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    picture.save(file, kind, **(more or {} if kind in ("GIF", "BMP") else {"exif": exif}))
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A picture of some kind with bytes replaced, taken out, put in, repeated or cut off; or any bytes."""
    kind = draw(st.sampled_from([*MODES, ""]))
    if not kind:
        return draw(st.binary(max_size=400))
    content = bytearray(seed(kind, draw(st.sampled_from(MODES[kind]))))
    for _ in range(draw(st.integers(1, 5))):
        # headers stand at the beginning, TIFF's directory at the end
        last = max(len(content) - 1, 0)
        place = draw(st.one_of(st.integers(0, min(last, 100)), st.integers(max(last - 300, 0), last)))
        part = draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff"])))
        match draw(st.integers(0, 4)):
            case 0:
                content[place : place + len(part)] = part
            case 1:
                content[place:place] = part
            case 2:
                del content[place : place + len(part)]
            case 3:
                content[place:place] = content[place : place + 60]
            case 4:
                del content[place:]
    return bytes(content)


def test_every_damage_is_an_answer(
    tmp_path: Path, survived: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, count = tmp_path / "picture", 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    @given(damaged(), st.sampled_from(["stretch", "crop", "pad"]))
    def check(content: bytes, fit: str) -> None:
        nonlocal count
        path.write_bytes(content)
        count += 1
        try:
            pixels = read(path, fit)
        except Unreadable as problem:
            reason = str(problem)
        else:
            assert (pixels.dtype, pixels.shape) == (np.uint8, (32, 32, 3))
            return
        assert reason
        assert "memory" not in reason.lower()

    assert MODES.keys() == SUFFIXES.keys()
    resource.setrlimit(resource.RLIMIT_AS, (held + LARGEST, before[1]))
    try:
        check()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    survived("cases fuzzed: images", count)
