"""A disk that is full, read-only or over its quota at any write of a command.

Each says so in one sentence that names the file, leaves the last good checkpoint, and goes on to the same
bits once there is room.
"""

import builtins
import errno
import io
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUICK
from folders import ends
from PIL import Image
from processes import CHECKOUT, finish

from cifarlab.runs import record as records

RUN = [*QUICK, "logger=tensorboard"]
NEVER = 10**9
PAGE, SMALL = 4096, 2**20
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


@dataclass
class Disk:
    """Refuses, in this process, the so manieth wish to change something below a folder, and all after it.

    A file is written through Python's own buffers: what is refused are the bytes on their way to the system.
    """

    folder: Path
    moment: int
    error: int
    tally: Path | None = None  # a file that gets the number of wishes
    once: bool = False
    wishes: int = 0

    def __call__(self) -> None:
        disk, opened = self, builtins.open

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                disk.ask()
                return super().write(data)

        def open(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            *options: Any,
            **others: Any,
        ) -> Any:
            if others.get("opener") or not (set(mode) & set("wax+") and self.holds(file)):
                return opened(file, mode, buffering, encoding, errors, newline, *options, **others)
            self.ask(file)
            raw = File(file, mode.replace("b", "").replace("t", ""))
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        builtins.open = io.open = open
        for name in ("mkdir", "replace", "rename", "link"):
            setattr(os, name, partial(self.asked, getattr(os, name)))
        fsync = os.fsync

        def asked_fsync(descriptor: int) -> None:
            self.ask()
            fsync(descriptor)

        os.fsync = asked_fsync

    def asked(self, function: Callable[..., Any], file: Any, *others: Any, **options: Any) -> Any:
        if self.holds(file):
            self.ask(file)
        return function(file, *others, **options)

    def holds(self, file: Any) -> bool:
        return isinstance(file, str | os.PathLike) and Path(file).absolute().is_relative_to(self.folder)

    def ask(self, file: Any = None) -> None:
        """Raise the error if it is time."""
        self.wishes += 1
        if self.tally is not None:
            self.tally.write_bytes(str(self.wishes).encode())
        if self.wishes == self.moment or (self.wishes > self.moment and not self.once):
            raise OSError(self.error, os.strerror(self.error), *([str(file)] if file else []))


class Whole:
    """A run on a sound disk, and the number of its wishes."""

    def __init__(self, place: Path) -> None:
        shutil.copytree(CHECKOUT / "conf", place / "conf")
        self.place = place
        self.wishes = wishes(place, "train.py", place / "logs", *RUN, "hydra.run.dir=logs/whole")
        self.ends = ends(place / "logs/whole")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("full"))


def wishes(place: Path, script: str, folder: Path, *arguments: str) -> int:
    """How often a command wishes to change something below the folder."""
    tally = place / f"{script}.count"
    code = finish(place, *arguments, script=script, before=Disk(folder, NEVER, 0, tally))
    assert code == 0, said(place)
    return int(tally.read_text())


def said(place: Path) -> str:
    """What the last command printed, which is then forgotten."""
    output = place / "output.txt"
    text = output.read_text() if output.exists() else ""
    output.unlink(missing_ok=True)
    return text


def check_failed(whole: Whole, folder: Path, code: int, reason: str) -> bool:
    """A run says once why it failed, and leaves nothing torn; whether there is one to go on with."""
    text = said(whole.place)
    assert code in (1, 2), text
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if reason in line]) == 1, text
    last = text.splitlines()[-1]
    if code == 2:  # its folder could not be made
        assert last == f"{reason}: {folder.relative_to(whole.place)}."
    if not (folder / "record.json").exists():  # it had not begun
        assert code == 2 or last.endswith("; once that is mended, give the same command again.")
        assert not folder.exists() or not list(folder.iterdir())
        return False
    assert code == 1
    assert last.startswith(f"{reason}: ")
    assert last.endswith(f"go on with: python train.py 'resume={folder.relative_to(whole.place)}'")
    assert not list(folder.rglob(".*"))
    checkpoint = folder / "checkpoints/last.ckpt"
    if checkpoint.exists():
        epochs = torch.load(checkpoint, weights_only=True)["epoch"] + 1
        assert records.read(folder)["epochs"] <= epochs
    return True


def check_resumed(whole: Whole, folder: Path) -> None:
    assert finish(whole.place, f"resume={folder}") == 0, said(whole.place)
    assert ends(folder) == whole.ends
    said(whole.place)


@pytest.mark.parametrize("once", [False, True])
def test_a_run_whose_writes_fail(
    whole: Whole, once: bool, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """From that moment on, as on a full disk, or once, as over a network."""
    count = tries(1, whole.wishes // (1 + once))
    for k in range(count):
        moment = 1 + k * whole.wishes // count + (count < whole.wishes) * 17
        error = ERRORS[k % len(ERRORS)]
        folder = whole.place / f"logs/{once}{k}"
        disk = Disk(whole.place / "logs", moment, error, once=once)
        code = finish(whole.place, *RUN, f"hydra.run.dir=logs/{once}{k}", before=disk)
        if code == 0:  # it was a line of the log
            assert "Traceback" not in said(whole.place)
            assert ends(folder) == whole.ends
        elif check_failed(whole, folder, code, os.strerror(error)):
            if once:
                record = records.read(folder)
                assert record["status"] == "failed"
                assert os.strerror(error) in record["error"]
            check_resumed(whole, folder)
        shutil.rmtree(folder, ignore_errors=True)
    survived("failing writes, in a run", count)


def test_a_disk_that_is_full_at_a_runs_first_file(whole: Whole) -> None:
    folder = whole.place / "logs/first"
    disk = Disk(whole.place / "logs", 4, errno.ENOSPC)  # behind Hydra's wishes
    assert finish(whole.place, *RUN, "hydra.run.dir=logs/first", before=disk) == 1
    reason = f"{os.strerror(errno.ENOSPC)}: logs/first/config.yaml"
    assert said(whole.place).endswith(f"\n{reason}; once that is mended, give the same command again.\n")
    assert not folder.exists()


@pytest.fixture
def small(whole: Whole) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = whole.place / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", folder], capture_output=True
    )
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
    folder.rmdir()


def test_a_run_on_a_small_disk(
    whole: Whole, small: Path, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    count, chance, needed = tries(1, 40), random.Random(0), size(whole.place / "logs/whole")
    assert needed < SMALL
    for k in range(count):
        free = int((k + chance.random()) / count * needed)
        (small / "ballast").write_bytes(bytes(SMALL - free // PAGE * PAGE))
        folder = small / f"run{k}"
        code = finish(whole.place, *RUN, f"hydra.run.dir=small/run{k}")
        go_on = code and check_failed(whole, folder, code, os.strerror(errno.ENOSPC))
        (small / "ballast").unlink()
        if go_on:
            check_resumed(whole, folder)
        shutil.rmtree(folder, ignore_errors=True)
    survived("failing writes, on a small file system", count)


def size(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*"))


def test_a_read_only_folder(whole: Whole, small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    assert finish(whole.place, *RUN, "hydra.run.dir=small/run") == 2
    assert said(whole.place) == "Read-only file system: small/run.\n"


OTHERS = {
    "evaluate.py": ["run=logs/whole", "out=out"],
    "predict.py": ["run=logs/whole", "images=image.png", "out=out/p.csv", "gallery=out/g.png"],
    "explore.py": ["data=digits", "out=out"],
    "report.py": ["logs/whole", "out=out/r.html", "out=out/r.md"],
}


@pytest.mark.parametrize("script", OTHERS)
def test_a_command_whose_writes_fail(
    whole: Whole, script: str, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    Image.new("RGB", (32, 32)).save(whole.place / "image.png")
    shutil.rmtree(whole.place / "out", ignore_errors=True)
    (whole.place / "out").mkdir()
    said(whole.place)
    total = wishes(whole.place, script, whole.place / "out", *OTHERS[script])
    kept = {path: path.read_bytes() for path in (whole.place / "out").rglob("*") if path.is_file()}
    assert kept
    said(whole.place)
    count = tries(1, total)
    for k in range(count):
        for path in kept:
            path.write_bytes(b"old")
        error = ERRORS[k % len(ERRORS)]
        disk = Disk(whole.place / "out", 1 + k, error)
        code = finish(whole.place, *OTHERS[script], script=script, before=disk)
        text = said(whole.place)
        assert code in (1, 2), text
        assert "Traceback" not in text
        assert os.strerror(error) in text.splitlines()[-1], text
        now = {path: path.read_bytes() for path in (whole.place / "out").rglob("*") if path.is_file()}
        assert now.keys() <= kept.keys()
        for path, content in now.items():  # the old one, or all of a new one
            assert content == b"old" or len(content) >= 0.9 * len(kept[path])
    survived("failing writes, in other commands", count)
