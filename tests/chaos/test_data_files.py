"""The data sets' files damaged in every way: found before training, and made up for or refused."""

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import QUICK
from imitation import Imitation, is_right, pretend
from mirror import Mirror, serving
from processes import finish

from cifarlab.data import files
from cifarlab.data.files import CIFAR10, CIFAR100, DataSet
from cifarlab.errors import UserError
from cifarlab.runs import record as records

DATA = Path(__file__).parents[2] / "data"
PLACES = {"prepared": ".safetensors", "archive": ".tar.gz", "folder": ""}  # how names end there


class Official(NamedTuple):
    """One of the sets in miniature: what can lie in a data folder, and a mirror of it."""

    made: Imitation
    contents: dict[str, bytes]  # by path below the folder
    mirror: Mirror

    def paths(self, kind: str) -> list[str]:
        """The prepared file, the archive, or the files of the folder."""
        if kind == "folder":
            return [path for path in self.contents if "/" in path]
        return [path for path in self.contents if path.endswith(PLACES[kind])]

    def put(self, root: Path, *kinds: str) -> None:
        for path in (path for kind in kinds if kind in PLACES for path in self.paths(kind)):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(self.contents[path])

    def mirrors(self, source: str) -> list[str]:
        return [self.mirror.url] if source == "mirror" else []

    def load(self, root: Path, source: str) -> tuple[DataSet, str]:
        """The data, and what was said meanwhile."""
        said: list[str] = []
        return files.load(self.made.archive, root, self.mirrors(source), say=said.append), "\n".join(said)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Official]]:
    sets = {}
    # ten-class images enough to train on; the hundred-class ones as few as can be
    for like, images in (CIFAR10, 8), (CIFAR100, 4):
        made, root = Imitation(like, images), tmp_path_factory.mktemp(like.name)
        made.pack(root)
        made.unpack(root)
        files.load(made.archive, root, [], say=lambda line: None)
        held = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
        contents = {str(path.relative_to(root)): path.read_bytes() for path in held}
        sets[like.name] = Official(made, contents, Mirror(made.packed))
    with serving(sets["cifar10"].mirror), serving(sets["cifar100"].mirror):
        yield sets


def flipped(content: bytes, place: int, chance: random.Random) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def label_flipped(content: bytes, chance: random.Random) -> bytes:
    """In a prepared file, where the labels follow the header; in others anywhere."""
    labels = 8 + int.from_bytes(content[:8], "little")
    return flipped(content, chance.randrange(labels, labels + 64) % len(content), chance)


# what the content of a file may become,
CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": lambda content, chance: content[: chance.randrange(1, len(content))],
    "flipped": lambda content, chance: flipped(content, chance.randrange(len(content)), chance),
    "label flipped": label_flipped,
    "last byte flipped": lambda content, chance: flipped(content, len(content) - 1, chance),
    "emptied": lambda content, chance: b"",
    "longer": lambda content, chance: content + chance.randbytes(chance.randrange(1, 1000)),
    "half zeros": lambda content, chance: content[: len(content) // 2].ljust(len(content), b"\0"),
}
# what may be there in place of a file,
REPLACEMENTS: dict[str, Callable[[Path], None]] = {
    "folder": lambda path: (path / "deeper").mkdir(parents=True),
    "pipe": os.mkfifo,
    "circle of links": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
}
# or a file that is good in its own place
SWAPS = ["another file of the set", "the other set's file"]
DAMAGES = [*CHANGES, *REPLACEMENTS, *SWAPS]


def damage(path: Path, how: str, swapped: bytes, chance: random.Random) -> None:
    content = path.read_bytes()
    path.unlink()  # never written into: it may be a second name of a file that somebody needs
    if how in REPLACEMENTS:
        REPLACEMENTS[how](path)
    else:
        path.write_bytes(CHANGES[how](content, chance) if how in CHANGES else swapped)


def damage_one(
    official: dict[str, Official], name: str, victim: str, root: Path, how: str, chance: random.Random
) -> None:
    """Damage that file of a set's, which lies in `root`."""
    own = official[name]
    (other,) = (each for each in official if each != name)
    kind = next(kind for kind in PLACES if victim in own.paths(kind))
    sibling = next(path for path in own.contents if path != victim)
    alien = official[other].paths(kind)[-1]
    swapped = own.contents[sibling] if how == SWAPS[0] else official[other].contents[alien]
    damage(root / victim, how, swapped, chance)


def seen(root: Path) -> dict[str, object]:
    """All that lies in a folder but the lock: files' content, where links lead, the type of the rest."""

    def what(path: Path) -> object:
        if path.is_symlink():
            return path.readlink()
        return path.read_bytes() if path.is_file() else path.stat().st_mode

    return {str(path.relative_to(root)): what(path) for path in root.rglob("*") if path.suffix != ".lock"}


SOURCES = ("folder", "archive", "mirror", "nothing")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    "kind, source", [(kind, source) for kind in PLACES for source in SOURCES if source != kind]
)
def test_damage_is_found_and_made_up_for_or_refused(
    official: dict[str, Official],
    name: str,
    kind: str,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tries: Callable[[int, int], int],
    survived: Callable[[str, int], None],
) -> None:
    """Each file damaged in each way, beside a good source and without one."""
    own, chance = official[name], random.Random(f"{name} {kind} {source}")
    monkeypatch.setattr(os, "fsync", lambda file: None)  # no power is cut here, and it takes most of the time
    (prepared,) = own.paths("prepared")
    cases = [(victim, how) for victim in own.paths(kind) for how in DAMAGES] * tries(1, 20)
    for number, (victim, how) in enumerate(cases):
        root = tmp_path / str(number)
        own.put(root, kind, source)
        damage_one(official, name, victim, root, how, chance)
        before = seen(root)
        error, data, said = None, None, ""
        try:
            data, said = own.load(root, source)
        except UserError as raised:
            error = str(raised)
        after = seen(root)
        if (kind, how) == ("prepared", "flipped") and data and not said:  # in the padding of its header
            assert is_right(data, own.made)
        elif source == "nothing":
            assert re.fullmatch(rf"{root / victim} (is|cannot be) .+", error), how
            assert after == before
        else:
            assert is_right(data, own.made)
            assert after[prepared] == own.contents[prepared]
            # an archive beside a good folder is not looked at
            assert (str(root / victim) in said) == ((kind, source) != ("archive", "folder"))
            for path, content in before.items():
                if after.get(path) != content:  # the name was needed for a good file
                    assert path.startswith(victim)
                    assert after[path.replace(victim, f"{victim}.damaged1", 1)] == content
                    assert f"{root / victim} could not be used; it is kept as {victim}.damaged1" in said
        shutil.rmtree(root)
    survived("damaged files of data, made up for or refused, never trained on", len(cases))


# what is damaged, how, and which good source there is
CHAIN = [
    ("prepared", "label flipped", "archive"),
    ("archive", "truncated", "mirror"),
    ("folder", "another file of the set", "nothing"),
    *[("prepared", how, source) for how in DAMAGES for source in ("folder", "nothing")],
    *[("archive", how, source) for how in DAMAGES for source in ("mirror", "nothing")],
    *[("folder", how, source) for how in DAMAGES for source in ("archive", "nothing")],
]
TRAIN = ["data=cifar10", "data.root=data", "data.validation=none", "trainer.max_epochs=1"]


def test_training_starts_with_good_data_or_not_at_all(
    official: dict[str, Official],
    workplace: Path,
    tries: Callable[[int, int], int],
    survived: Callable[[str, int], None],
) -> None:
    """The same through the command: it trains on the very data, or ends with one sentence and code 2."""
    own, chance = official["cifar10"], random.Random(0)
    fingerprints = set()
    for number, (kind, how, source) in enumerate(CHAIN[: tries(3, len(CHAIN))]):
        root = workplace / "data"
        own.put(root, kind, source)
        victim = chance.choice(own.paths(kind))
        damage_one(official, "cifar10", victim, root, how, chance)
        mirrors = f"data.mirrors={own.mirrors(source)}".replace("'", "")
        options = [*QUICK, *TRAIN, mirrors, f"hydra.run.dir=logs/{number}"]
        code = finish(workplace, *options, before=partial(pretend, own.made.archive))
        output = workplace / "output.txt"
        text = output.read_text()
        output.unlink()
        assert "Traceback" not in text
        if source == "nothing":
            assert code == 2, (kind, how, text)
            assert re.search(rf"\ndata/{victim} (is|cannot be) [^\n]+\n\Z", text), text
            assert not (workplace / "logs" / str(number)).exists()
        else:
            assert code == 0, (kind, how, text)
            assert f"data/{victim} " in text
            fingerprints.add(records.read(workplace / "logs" / str(number))["data"]["fingerprint"])
        shutil.rmtree(root)
    assert len(fingerprints) == 1
    survived("trainings started on damaged data", number + 1)


def test_a_file_that_takes_the_name_of_one_in_use_changes_nothing(
    official: dict[str, Official], tmp_path: Path
) -> None:
    """What was verified is what is used, and it is not to be written into."""
    own = official["cifar10"]
    own.put(tmp_path, "archive")
    data, _ = own.load(tmp_path, "nothing")
    prepared = tmp_path / "cifar10.safetensors"
    assert not prepared.stat().st_mode & 0o222
    (tmp_path / "new").write_bytes(bytes(prepared.stat().st_size))
    (tmp_path / "new").replace(prepared)
    assert is_right(data, own.made)


REAL = {
    "cifar10": (CIFAR10, ["batches.meta", *CIFAR10.train, *CIFAR10.test]),
    "cifar100": (CIFAR100, ["meta", "train", "test"]),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_files(
    name: str, workplace: Path, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """One bit of each of the official files, and of the prepared one, under the command."""
    like, members = REAL[name]
    prepared = f"{name}.safetensors"
    originals = [f"{like.folder}/{member}" for member in members]
    if missing := [path for path in (prepared, *originals) if not (DATA / path).is_file()]:
        pytest.skip(f"{DATA / missing[0]} is missing")
    chance = random.Random(name)
    root = workplace / "data"
    (root / like.folder).mkdir(parents=True)

    def put(path: str, spoilt: bool = False) -> None:
        (root / path).unlink(missing_ok=True)
        if spoilt:
            content = bytearray((DATA / path).read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            (root / path).write_bytes(content)
        else:
            (root / path).symlink_to(DATA / path)

    def trains(number: int) -> int:
        limits = [f"trainer.limit_{part}_batches=1" for part in ("val", "test")]
        options = [f"data={name}", "data.root=data", "data.mirrors=[]", "trainer.max_epochs=1", *limits]
        return finish(workplace, *QUICK, *options, f"hydra.run.dir=logs/{number}")

    for path in originals:
        put(path)
    victims = [prepared, *chance.sample(originals, len(originals))][: tries(1, 99)]
    for number, victim in enumerate(victims):
        (root / prepared).unlink(missing_ok=True)
        put(victim, spoilt=True)
        code = trains(number)
        text = (workplace / "output.txt").read_text()
        assert f"data/{victim} " in text
        assert "Traceback" not in text
        assert code == (0 if victim == prepared else 2)
        if victim == prepared:
            found = files.load(like, root, [], say=lambda line: None)
            assert found.fingerprint == like.fingerprint
            (root / f"{prepared}.damaged1").unlink()
            assert files._read_prepared(like, DATA / prepared).fingerprint == like.fingerprint
        else:
            assert text.endswith("\n")
            assert f"\ndata/{victim} is damaged" in text
            put(victim)
    survived("trainings started on damaged data", len(victims))
