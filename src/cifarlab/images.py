"""Image files of any size and mode, as the pixels that a network takes."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from glob import escape, glob, has_magic
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cifarlab.config import show
from cifarlab.errors import UserError

Fit = Literal["stretch", "crop", "pad"]

SIZE = 32  # pixels, of either side
SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WebP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}
KINDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
LIMIT_PIXELS = 89_478_485  # Pillow's own, of which it only warns: 256 MiB in RGB
LIMIT_BYTES = 2**30

# ours is an error; the others are of odd metadata
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module="PIL")


class Unreadable(Exception):
    """Why a file gives no pixels, in words that follow its name and a colon."""


def find(names: Sequence[str]) -> Iterator[Path]:
    """The files that `images=` stands for: each name a file, a folder, a pattern, or `-` for a list on stdin.

    A folder stands for the images directly in it and a pattern for those that it matches, told by their
    suffixes and sorted; names that begin with a dot are left out. Beside others, a name that stands for none
    comes as it is, for `read` to say why.

    Raises:
        UserError: no name stands for anything.
    """
    parts = [expand(name) for name in names]
    if not any(parts):
        typed = f"images={show(names[0] if len(names) == 1 else list(names))}"
        if len(names) == 1 and os.path.isdir(names[0]):
            deeper = os.path.join(names[0], "**")
            raise UserError(f"{typed}: that folder holds no {KINDS} files; images='{deeper}' looks deeper.")
        if names == ["-"]:
            raise UserError("images=-: no file is named on stdin; expected one in each line.")
        wanted = "an image file, a folder, a pattern such as 'photos/*.png', or - for a list on stdin"
        raise UserError(f"{typed} names nothing; expected {wanted}.")
    return chain.from_iterable(part or [Path(name)] for part, name in zip(parts, names, strict=True))


def expand(name: str) -> Iterable[Path]:
    """What one name stands for, empty if for nothing."""
    if name == "-":
        lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
        paths = (Path(line) for line in lines if line)
        first = next(paths, None)
        return chain([first], paths) if first else []
    if os.path.lexists(name) and not os.path.isdir(name):
        return [Path(name)]
    pattern = os.path.join(escape(name), "*") if os.path.isdir(name) else name
    suffixes = tuple(suffix for kind in SUFFIXES.values() for suffix in kind)
    found = (path for path in glob(pattern, recursive=True) if path.lower().endswith(suffixes))
    return [Path(path) for path in sorted(found) if not os.path.isdir(path)]


def read(path: Path, fit: Fit = "stretch") -> NDArray[np.uint8]:
    """The first frame of an image file as RGB pixels of 0 to 255, uint8 (32, 32, 3).

    Turned as its EXIF orientation says, transparent parts over white, 16-bit grey scaled to 8 bits. Colour
    profiles are ignored.

    Args:
        path: of a file of one of the kinds, told by its content; up to 89 million pixels and 1 GiB.
        fit: `stretch` makes the whole picture a square whatever its shape, which is how CIFAR's images look
            (whole cars fill the square, their wheels ellipses); `crop` takes the square in the middle; `pad`
            keeps the shape and adds white.

    Raises:
        Unreadable: it is not there, not such a file, or damaged.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Unreadable("a folder, not an image, or one without images")
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not an ordinary file")  # a pipe would block, a device never end
        if not 0 < status.st_size <= LIMIT_BYTES:
            raise Unreadable(f"{status.st_size:,} bytes; expected 1 byte to 1 GiB")
        with Image.open(path, formats=list(SUFFIXES)) as image:
            width, height = image.size
            if width * height > LIMIT_PIXELS:
                raise Unreadable(f"{width:,} x {height:,} pixels; expected at most {LIMIT_PIXELS:,}")
            # a JPEG decodes at an eighth of its size much faster; the other half is left to `resized`
            image.draft(None, (2 * SIZE, 2 * SIZE))
            ImageOps.exif_transpose(image, in_place=True)
            small = resized(eight_bit(image), fit)
        if small.mode == "RGBA":
            small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
        return np.asarray(small.convert("RGB"))
    except Unreadable:
        raise
    except FileNotFoundError:
        missing = "no image matches" if has_magic(str(path)) else "there is no such file"
        raise Unreadable("a link to nothing" if path.is_symlink() else missing) from None
    except UnidentifiedImageError:
        raise Unreadable(f"no {KINDS}, or its beginning is damaged") from None
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {LIMIT_PIXELS:,} pixels") from None
    except Exception as error:  # a damaged file can fail in any way
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreadable(f"cannot be read ({reason})") from None


def eight_bit(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, or RGBA where parts are transparent."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        deep = np.asarray(image).astype(np.uint32)
        grey = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
        if (clear := image.info.get("transparency")) is None:
            return grey
        opaque = Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, opaque)).convert("RGBA")
    if image.mode in ("I", "F"):
        raise Unreadable("its pixels are 32-bit numbers of an unknown range; save it with 8 or 16 bits")
    if image.mode in ("L", "1") and not image.has_transparency_data:
        return image.convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def resized(image: Image.Image, fit: Fit) -> Image.Image:
    """The image at 32 x 32: shrunk by averaging over areas, enlarged by cubic interpolation."""
    shape = (SIZE, SIZE)
    method = Image.Resampling.BOX if min(image.size) >= SIZE else Image.Resampling.BICUBIC
    if fit == "stretch":
        return image.resize(shape, method)
    if fit == "crop":
        return ImageOps.fit(image, shape, method)
    scale = SIZE / max(image.size)
    small = image.resize([max(1, round(scale * side)) for side in image.size], method)
    return ImageOps.pad(small, shape, method, color="white")  # which alone would lose a very thin picture
