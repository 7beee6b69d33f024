"""Eight processes started together on one data folder: one download, one preparation, eight right sets."""

import os
import random
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from commands import QUICK
from imitation import Imitation, pretend
from mirror import Mirror, serving
from processes import ended, server, start

from cifarlab.data import files
from cifarlab.data.files import CIFAR10, Archive
from cifarlab.errors import UserError
from cifarlab.runs import record as records

NOBODY = 65534


class Resetting(Mirror):
    """Sends slowly, and of some requests resets the connection before the end."""

    def __init__(self, body: bytes, chance: random.Random, resets: int) -> None:
        super().__init__(body)
        self.chance, self.resets = chance, resets
        self.pause = lambda done: time.sleep(0.003)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        begun = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        resets, cut = self.resets > 0, begun + self.chance.randrange(100_000, 200_000)
        if not resets or cut > len(self.body):
            return super().answer(handler)
        self.resets -= 1
        self.cuts = [cut]
        super().answer(handler)
        time.sleep(0.02)  # a reset takes with it what was not read yet
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()


class Loader:
    """A process that loads the data; what it said, and the fingerprint of what it got, or why it got none."""

    def __init__(self, archive: Archive, root: Path, *mirrors: str, reader: bool = False) -> None:
        self.said: list[str] = []
        self.got = ""
        self.hears, tells = server.Pipe(duplex=False)
        self.process: BaseProcess = server.Process(target=load, args=(archive, root, mirrors, reader, tells))
        self.process.start()
        tells.close()


def load(archive: Archive, root: Path, mirrors: tuple[str, ...], reader: bool, tells: Connection) -> None:
    """What a loader's process does, as one who may read the folder and no more if it is a `reader`."""
    if reader and os.geteuid() == 0:
        os.setuid(NOBODY)
    try:
        data = files.load(archive, root, mirrors, say=lambda line: tells.send(("said", line)))
        # not what the data set says of itself, but what is in it
        tells.send(("got", files.fingerprint(data.tensors(), data.names())))
    except UserError as error:
        tells.send(("got", str(error)))


def follow(loaders: list[Loader], hear: Callable[[Loader], None] = lambda loader: None) -> None:
    """Hear them all to their ends, calling `hear` whenever one has said something."""
    open_ends = {loader.hears: loader for loader in loaders}
    while open_ends:
        ready = wait(list(open_ends), timeout=60)
        assert ready, "nobody has said a word for 60 s"
        for end in ready:
            loader = open_ends[end]
            try:
                kind, text = end.recv()
            except EOFError:
                del open_ends[end]
                continue
            if kind == "got":
                loader.got = text
            else:
                loader.said.append(text)
            hear(loader)
    for loader in loaders:
        loader.process.join(60)


def lines(loaders: list[Loader], words: str) -> int:
    return sum(words in line for loader in loaders for line in loader.said)


@pytest.fixture(scope="module")
def made() -> Imitation:
    """0.5 MB to download: eight steps of the mirror's."""
    return Imitation(CIFAR10, images=30)


def clean(root: Path) -> bool:
    """Whether the folder holds what it should after a download and nothing else."""
    held = sorted(path.name for path in root.iterdir())
    return held == [".cifar10.lock", "cifar-10-python.tar.gz", "cifar10.safetensors"]


def test_one_downloads_and_prepares(
    made: Imitation, tmp_path: Path, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    chance, rounds = random.Random(0), tries(2, 100)
    for number in range(rounds):
        root = tmp_path / str(number)
        with serving(Resetting(made.packed, chance, resets=number % 4)) as mirror:
            loaders = [Loader(made.archive, root, mirror.url) for _ in range(8)]
            follow(loaders)
        assert [loader.got for loader in loaders] == [made.archive.fingerprint] * 8
        assert mirror.ranges.count(None) == 1  # any other request went on from where the last had ended
        assert len(mirror.ranges) == 1 + number % 4 - mirror.resets
        assert lines(loaders, "writing") == 1
        assert clean(root)
    survived("processes of eight at once on an empty data.root", 8 * rounds)


class Killer:
    """Kills who downloads or prepares, when that many of their words were heard and a while has passed."""

    def __init__(self, moments: list[int], seconds: float) -> None:
        self.moments, self.seconds = moments, seconds
        self.heard = 0
        self.victims: list[Loader] = []

    def hear(self, loader: Loader) -> None:
        if loader.got or loader in self.victims or "waiting" in loader.said[-1]:
            return
        self.heard += 1
        if self.heard in self.moments:
            time.sleep(self.seconds)
            loader.process.kill()
            self.victims.append(loader)


def test_the_one_at_work_is_killed(
    made: Imitation, tmp_path: Path, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """In the midst of the download or behind it, and so perhaps the one that takes over."""
    chance, rounds, killed = random.Random(1), tries(2, 100), 0
    for number in range(rounds):
        root = tmp_path / str(number)
        killer = Killer([chance.randrange(1, 5), chance.randrange(5, 10)], chance.random() * 0.02)
        with serving(Resetting(made.packed, chance, resets=0)) as mirror:
            loaders = [Loader(made.archive, root, mirror.url) for _ in range(8)]
            follow(loaders, killer.hear)
        killed += len(killer.victims)
        others = [loader for loader in loaders if loader not in killer.victims]
        assert [loader.got for loader in others] == [made.archive.fingerprint] * len(others)
        assert mirror.ranges.count(None) == 1
        assert len(mirror.ranges) <= 1 + len(killer.victims)
        assert {path.name for path in root.iterdir()} - {"cifar10.safetensors.partial"} == {
            ".cifar10.lock",
            "cifar-10-python.tar.gz",
            "cifar10.safetensors",
        }
    assert killed >= rounds
    survived("kills of the one of eight that downloads or prepares", killed)


def test_a_damaged_prepared_file_is_made_again_once(
    made: Imitation, tmp_path: Path, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    rounds = tries(1, 30)
    for number in range(rounds):
        root = tmp_path / str(number)
        made.pack(root)
        (root / "cifar10.safetensors").write_bytes(b"x" * 1000)
        loaders = [Loader(made.archive, root) for _ in range(8)]
        follow(loaders)
        assert [loader.got for loader in loaders] == [made.archive.fingerprint] * 8
        assert lines(loaders, "writing") == lines(loaders, "is kept as") == 1
    survived("processes of eight at once on a damaged prepared file", 8 * rounds)


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that everybody may read; what pytest gives is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name) / "data"


@pytest.mark.parametrize("holds", ["the prepared file", "the archive", "nothing"])
def test_a_folder_that_may_only_be_read(
    made: Imitation, readable: Path, holds: str, survived: Callable[[str, int], None]
) -> None:
    readable.mkdir()
    if holds != "nothing":
        packed = made.pack(readable)
    if holds == "the prepared file":
        files.load(made.archive, readable, [], say=lambda line: None)
        packed.unlink()
        (readable / ".cifar10.lock").unlink()
    held = {path.name: path.read_bytes() for path in readable.iterdir()}
    readable.chmod(0o555)
    try:
        loaders = [Loader(made.archive, readable, "http://127.0.0.1:9/", reader=True) for _ in range(8)]
        follow(loaders)
    finally:
        readable.chmod(0o755)
    if holds == "nothing":
        sentence = f"data.root={readable} is read-only and holds no usable CIFAR-10"
        assert [loader.got for loader in loaders] == [sentence] * 8
    else:
        assert [loader.got for loader in loaders] == [made.archive.fingerprint] * 8
    assert {path.name: path.read_bytes() for path in readable.iterdir()} == held
    survived("processes of eight at once on a read-only data.root", 8)


def test_eight_trainings(made: Imitation, workplace: Path, survived: Callable[[str, int], None]) -> None:
    """The whole command, eight times with the same seed: the same result from one download."""
    with serving(Resetting(made.packed, random.Random(2), resets=2)) as mirror:
        options = ["data=cifar10", "data.root=data", f"data.mirrors=[{mirror.url}]", "trainer.max_epochs=1"]
        runs = [
            start(
                workplace,
                *QUICK,
                *options,
                f"hydra.run.dir=logs/{number}",
                output=workplace / f"{number}.txt",
                before=partial(pretend, made.archive),
            )
            for number in range(8)
        ]
        assert [ended(run) for run in runs] == [0] * 8
    assert mirror.ranges.count(None) == 1
    assert len(mirror.ranges) == 3
    texts = [(workplace / f"{number}.txt").read_text() for number in range(8)]
    assert sum("writing data/cifar10.safetensors" in text for text in texts) == 1
    assert clean(workplace / "data")
    results = [records.read(workplace / "logs" / str(number)) for number in range(8)]
    assert [result["status"] for result in results] == ["done"] * 8
    assert len({result["data"]["fingerprint"] for result in results}) == 1
    assert len({result["test"]["loss"] for result in results}) == 1
    survived("trainings of eight at once on an empty data.root", 8)
