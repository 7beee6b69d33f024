"""Files that a stranger may have made, read without running anything in them or filling the memory.

Nothing here imports torch: what a file may cost is settled before anything opens it in earnest.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import yaml

from cifarlab.errors import UserError

LARGEST_TEXT = 4_000_000  # bytes; a record has 2,000, and metrics.csv 100 for an epoch
LARGEST_YAML = 200_000  # bytes; a configuration has 3,000, and each costs a thousand times its size
LONGEST = 3_000  # characters of a value in YAML, which may be a number: all digits of that can be printed
LARGEST_ARCHIVE = 8_000_000_000  # bytes of a checkpoint or an exported network
# each entry costs a little memory and time; a network of 1,000 layers has 10,000
MOST_ENTRIES = 100_000
ENTRY = 300  # bytes of one in the archive's directory; torch's have 70
DEEPEST = 20  # levels of a YAML file; a configuration has four
# control characters, which a terminal would obey, those that turn the direction of text, and halves of one
HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
# what a run writes into its folder, a folder before what lies in it
FOLDERS = ("checkpoints", "evaluation", *(f"evaluation/{split}" for split in ("train", "val", "test")))
FILES = (
    *("train.log", "record.json", "config.yaml", "metrics.csv", "curves.png"),
    *("weights.safetensors", "model.pt2", "model.onnx", "checkpoints/last.ckpt", "checkpoints/best.ckpt"),
)
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where PyYAML was built with it


class Refused(Exception):
    """A file that will not be opened; the message completes "FILE cannot be read: ..."."""


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """A plain file's UTF-8 text, of at most `largest` bytes.

    Raises:
        OSError: there is no such file, or it may not be read.
        Refused: it is a folder, a pipe or a device, too large, or not UTF-8.
    """
    size = check_plain(path, largest)
    with open(path, "rb") as file:
        content = file.read(size)  # /proc holds files of no size that never end
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Refused("it is no UTF-8 text") from None


def check_plain(path: Path, largest: int) -> int:
    """Refuse what is no plain file, for opening a pipe may wait for ever, and what is too large.

    Returns the file's bytes.

    Raises:
        OSError: there is no such file.
        Refused: for the rest.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Refused("it is no plain file")
    if status.st_size > largest:
        raise Refused(f"it has more than {largest:,} bytes")
    return status.st_size


def check_run_folder(folder: Path) -> None:
    """Refuse other things in a run's folder where a run has its files and folders.

    Behind a link lies what is not the run's to write, append to or clear, and a pipe may wait for ever. The
    folder itself may be reached through links.

    Raises:
        OSError: the folder may not be read.
        UserError: naming the first such thing.
    """
    events = [path.name for path in folder.glob("events*")]
    for kind, is_kind, names in (
        ("folder", stat.S_ISDIR, FOLDERS),
        ("plain file", stat.S_ISREG, (*FILES, *events)),
    ):
        for path in map(folder.joinpath, names):
            if os.path.lexists(path) and not is_kind(path.lstat().st_mode):
                raise UserError(f"{clean(str(path))} is a link or no {kind}; a run's folder holds neither.")


def memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def read_yaml(path: Path) -> Any:
    """Plain lists, mappings and values from a YAML file.

    Raises:
        OSError: as `read_text`.
        Refused: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, LARGEST_YAML))


def parse_yaml(text: str) -> Any:
    """Plain lists, mappings and values.

    Raises:
        Refused: it is not YAML, uses tags, or aliases, with which a few lines can stand for gigabytes, holds
            a value that would take long to read, or nests so deeply that it overflows the parser's stack.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise Refused("it uses YAML aliases (*name), which no run writes")
            if getattr(event, "tag", None) is not None:
                raise Refused("it uses YAML tags (!!name), which no run writes")
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST:
                raise Refused(f"it holds a value of more than {LONGEST:,} characters")
            if depth > DEEPEST:
                raise Refused(f"it nests more than {DEEPEST} levels")
        return yaml.load(text, Loader=Loader)
    except Refused:
        raise
    except Exception as error:  # PyYAML's own, and what a value that only looks like a date or number makes
        raise Refused(f"it is no valid YAML ({type(error).__name__})") from None


def read_json(path: Path) -> Any:
    """Plain values from a JSON file.

    Raises:
        OSError: as `read_text`.
        Refused: as `read_text`, or it is torn, or no JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise Refused("it is torn, or no JSON") from None


def clean(text: str) -> str:
    """The text on one line, safe to print."""
    return HARMFUL.sub(" ", text).strip()


def harmless(text: str) -> str:
    """Lines of text, safe to print."""
    return "\n".join(HARMFUL.sub(" ", line) for line in text.split("\n"))


def no_formula(value: Any) -> Any:
    """For a CSV file: a text that a spreadsheet would take for a formula and run gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@\t\r")) else value


class Bounded(io.FileIO):
    """An archive that zipfile may ask for its directory, which it reads at once, but for none too large."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MOST_ENTRIES * ENTRY:
            raise Refused(f"it has more than {MOST_ENTRIES:,} entries")
        return super().read(size)


def check_archive(path: Path) -> None:
    """Refuse a zip file, as torch writes them, that would unpack to more than it holds.

    Raises:
        OSError: there is no such file.
        Refused: it is no such archive, or its entries are compressed (torch stores them plain), overlap, lie
            outside it or are too many.
    """
    check_plain(path, min(LARGEST_ARCHIVE, memory()))
    try:
        with Bounded(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise Refused(f"it is no archive of torch's ({type(error).__name__})") from None
    if len(entries) > MOST_ENTRIES:
        raise Refused(f"it has more than {MOST_ENTRIES:,} entries")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Refused(f"its entry {entry.filename!r} is compressed, as torch writes none")
        if ".." in Path(entry.filename).parts or Path(entry.filename).is_absolute():
            raise Refused(f"its entry {entry.filename!r} lies outside the archive")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise Refused("its entries claim more bytes than the file has")
