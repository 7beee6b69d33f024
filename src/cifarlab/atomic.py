"""Files that are whole or not there."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# a file of a run's folder before it is whole
WRITTEN = (
    r"\.(record\.json|config\.yaml|metrics\.csv|curves\.png|weights\.safetensors|model\.(pt2|onnx)"
    r"|(last|best)\.ckpt)\.\d+"
)


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` once it is whole: a reader, or a kill, finds the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        with open(beside, "xb") as file:  # never through a link that somebody put there
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # a failing write names no file
        raise
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def remove_torn(*folders: Path) -> None:
    """Remove what killed processes had begun to write in runs' folders where no other is at work."""
    for folder in folders:
        for path in folder.glob(".*"):
            if re.fullmatch(WRITTEN, path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file by that text, atomically."""
    with atomically(path) as file:
        file.write(text.encode())
