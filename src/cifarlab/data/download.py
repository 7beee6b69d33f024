"""One verified file from the first mirror that delivers it, continued where an earlier attempt stopped."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path

import requests
import urllib3
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cifarlab.errors import UserError

BLOCK = 1 << 18
RESUMES = 5  # how often a mirror that breaks off is asked to go on, as long as each time brings something


class _Failed(Exception):
    """A mirror cannot be used; the message completes a sentence that begins with its address."""


class _BrokenOff(_Failed):
    """The transfer ended early: worth asking the same mirror for the rest."""


class _TooSlow(_Failed):
    def __init__(self, rate: float) -> None:
        super().__init__(f"sends only {rate / 1e3:.0f} kB/s")
        self.rate = rate


def fetch(
    name: str,
    urls: Sequence[str],
    target: Path,
    md5: str,
    *,
    size: int,
    say: Callable[[str], None],
    stall_seconds: float = 20,
    min_bytes_per_second: float = 100_000,
    grace_seconds: float = 30,
) -> None:
    """Download `name`, a file of `size` bytes whose MD5 is known, to `target`.

    Mirrors are tried in order. One that is down, refuses, sends nothing for `stall_seconds`, averages less
    than `min_bytes_per_second` over `grace_seconds`, breaks off for good or delivers wrong bytes gives way to
    the next, which continues the same `<target>.partial`; so does the next call after an interruption. Where
    none is fast, the fastest is taken patiently. `target` appears complete and verified, or not at all.

    One process at a time: the caller holds a lock. Progress is a bar on a terminal, else a line through `say`
    about every 10 %.

    Raises:
        UserError: no mirror delivered the file, or its folder cannot be written.
    """
    partial = target.with_name(target.name + ".partial")
    download = _Download(name, partial, md5, size, stall_seconds, grace_seconds, say)
    mirrors = list(dict.fromkeys(urls))
    reasons: dict[str, str] = {}
    slow: list[tuple[float, str]] = []

    def delivers(url: str, minimum: float) -> bool:
        try:
            download.run(url, minimum)
        except _Failed as failure:
            reasons[url] = str(failure)
            if isinstance(failure, _TooSlow):
                slow.append((failure.rate, url))
            return False
        return True

    with usable(target.parent):
        if download.is_complete():  # an earlier call ended before it could rename it
            return publish(partial, target, say)
        for url, following in zip_longest(mirrors, mirrors[1:]):
            if delivers(url, min_bytes_per_second):
                return publish(partial, target, say)
            if following:
                say(f"{name}: {url} {reasons[url]}; trying {following}")
        for rate, url in sorted(slow, reverse=True):
            say(f"{name}: no faster mirror works; going on with {url} at {rate / 1e3:.0f} kB/s")
            if delivers(url, 0):
                return publish(partial, target, say)

    tried = "; ".join(f"{url} {reason}" for url, reason in reasons.items()) or "no mirror is named"
    raise UserError(
        f"{name} could not be downloaded ({tried}): run the command again to continue, or put the file at "
        f"{target} yourself, or name the folder that holds the data by data.root="
    )


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turn what the system refuses in `folder` (no space, no permission, no folder) into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data.root={folder} cannot be used ({error.strerror or error}): name a folder that you may read "
            "and write, on a disk with 1 GB free"
        ) from error


def publish(partial: Path, target: Path, say: Callable[[str], None]) -> None:
    """Give a finished file its name: whoever sees `target`, even after a power cut, sees all of it.

    What bore the name before is renamed: it was no use here, but may be somebody's only copy.
    """
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    if os.path.lexists(target):
        names = (target.with_name(f"{target.name}.damaged{number}") for number in count(1))
        kept = next(name for name in names if not os.path.lexists(name))
        target.rename(kept)
        say(f"{target} could not be used; it is kept as {kept.name}")
    os.replace(partial, target)


@dataclass
class _Download:
    """The partial file, and how it is completed from one mirror."""

    name: str
    partial: Path
    md5: str
    size: int
    stall_seconds: float
    grace_seconds: float
    say: Callable[[str], None]

    def length(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def is_complete(self) -> bool:
        """Whether all bytes are there and right; all there and wrong, they are deleted."""
        if self.length() < self.size:
            return False
        with self.partial.open("rb") as file:
            right = hashlib.file_digest(file, "md5").hexdigest() == self.md5
        if not right:
            self.partial.unlink()
        return right

    def run(self, url: str, minimum: float) -> None:
        """Complete the file from `url` at `minimum` bytes a second or more, or raise _Failed."""
        resumes, afresh = RESUMES, False
        while True:
            before = self.length()
            try:
                whole = self.transfer(url, minimum)
            except _BrokenOff as failure:
                if not resumes or self.length() <= before:
                    raise
                resumes -= 1
                self.say(f"{self.name}: {url} {failure}; asking it for the rest")
                continue
            if self.is_complete():
                return
            if whole or afresh:
                raise _Failed("delivers wrong bytes (their MD5 is not the published one)")
            # The wrong bytes may be another mirror's, or an earlier day's.
            afresh = True
            self.say(f"{self.name}: the pieces do not fit together; starting anew with {url}")

    def transfer(self, url: str, minimum: float) -> bool:
        """Append what is missing, in one response; returns whether that response was the whole file."""
        start = self.length()
        response = _request(url, start, self.stall_seconds)
        fits = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if start and (response.status_code == 416 or (response.status_code == 206 and not fits)):
            response.close()
            start = 0
            response = _request(url, start, self.stall_seconds)
        with response:
            if response.status_code == 200:
                start = 0
            elif response.status_code != 206 or not start:
                raise _Failed(f"answers {response.status_code} {response.reason}")
            # A login page sent as 200 is told by its length, before it costs us the partial file.
            if response.headers.get("Content-Length") not in (None, str(self.size - start)):
                raise _Failed(f"offers a file of another size than {self.size:,} bytes")
            mode = "ab" if start else "wb"
            with self.partial.open(mode) as file, _progress(self.name, start, self.size, self.say) as show:
                done = mark = start
                since = time.monotonic()
                while done < self.size:  # and no further, whatever a server sends
                    block = _read(response, min(BLOCK, self.size - done), self.stall_seconds)
                    file.write(block)
                    done += len(block)
                    show(done)
                    if (elapsed := time.monotonic() - since) >= self.grace_seconds:
                        if (rate := (done - mark) / elapsed) < minimum and done < self.size:
                            raise _TooSlow(rate)
                        since, mark = time.monotonic(), done
        return start == 0


def _request(url: str, start: int, stall: float) -> requests.Response:
    # Without "identity", a server may wrap the archive in a second gzip of its own.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return requests.get(url, headers=headers, stream=True, timeout=stall)
    except requests.Timeout:
        raise _Failed(f"does not answer within {stall:g} s") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Failed(f"cannot be reached ({type(error).__name__})") from error


def _read(response: requests.Response, most: int, stall: float) -> bytes:
    """At least one byte, as soon as it is there: a full block of a trickle would take hours to be judged."""
    try:
        block: bytes = response.raw.read1(most, decode_content=False)
    except urllib3.exceptions.ReadTimeoutError:
        raise _Failed(f"sent nothing for {stall:g} s") from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _BrokenOff("broke off") from error
    if not block:
        raise _BrokenOff("broke off")
    return block


@contextmanager
def _progress(name: str, done: int, size: int, say: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the bytes that are there."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bar:
            task = bar.add_task(name, total=size, completed=done)
            yield lambda done: bar.update(task, completed=done)
        return

    start, since, tenths = done, time.monotonic(), 10 * done // size

    def line(done: int) -> None:
        nonlocal tenths
        if 10 * done // size > tenths:
            tenths = 10 * done // size
            rate = (done - start) / max(time.monotonic() - since, 1e-3)
            say(
                f"{name}: {10 * tenths} % ({done / 1e6:.0f} of {size / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s, "
                f"{(size - done) / rate:.0f} s left)"
            )

    yield line
