"""Binary files with other bytes in them: read right, or refused in a sentence, whatever the bytes are."""

import gzip
import io
import json
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation import Imitation, is_right, md5
from torch import nn

from cifarlab.data import files
from cifarlab.data.files import CIFAR100
from cifarlab.data.scaling import make_scaling
from cifarlab.errors import UserError
from cifarlab.models.classifier import Classifier
from cifarlab.runs import export
from cifarlab.runs import record as records
from cifarlab.runs.checkpoints import load_weights, save_weights
from cifarlab.runs.export import load_exported

Edits = list[tuple[float, bytes, bool]]
# where, as a share of the content; what; and whether that replaces what is there or comes in between
EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=20), st.booleans()), min_size=1, max_size=6)


def edited(content: bytes, edits: Edits, cut: float = 1) -> bytes:
    for share, new, replaces in edits:
        at = math.floor(share * len(content))
        content = content[:at] + new + content[at + (len(new) if replaces else 0) :]
    return content[: math.ceil(cut * len(content))]


Test = Callable[..., None]


def often(share: float, **strategies: st.SearchStrategy) -> Callable[[Test], Test]:
    """`given` with that share of the cases: the tests of a reader have all of them together."""

    def often(test: Test) -> Test:
        count = round(share * settings.default.max_examples)
        repeated = settings(max_examples=count)(given(**strategies)(test))
        repeated.cases = count  # type: ignore[attr-defined]
        return repeated

    return often


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest, survived: Callable[[str, int], None]) -> None:
    survived("binary files with other bytes in them", request.function.cases)


# most files whole, some cut off
CUTS = st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1))


@pytest.fixture(scope="module")
def made() -> Imitation:
    return Imitation(CIFAR100, images=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives")


def read_packed(made: Imitation, root: Path, packed: bytes) -> bool:
    """Read that archive as if its MD5 were the published one; whether it was taken."""
    (root / made.archive.file).write_bytes(packed)
    archive = replace(made.archive, md5=md5(packed), size=len(packed))
    damages: list[str] = []
    members = files._from_archive(archive, root, lambda damage: damages.append(str(damage)))
    if members is None:
        (sentence,) = damages
        assert sentence.startswith(f"{root / made.archive.file}")
        assert "\n" not in sentence
        return False
    assert members == made.contents
    return True


@often(1 / 4, edits=EDITS, cut=CUTS)
def test_the_archive(made: Imitation, folder: Path, edits: Edits, cut: float) -> None:
    read_packed(made, folder, edited(made.packed, edits, cut))


@often(1 / 4, edits=EDITS, cut=CUTS, blocks=st.lists(st.integers(0, 30)))
def test_what_the_archive_unpacks_to(
    made: Imitation, folder: Path, edits: Edits, cut: float, blocks: list[int]
) -> None:
    """Behind gzip, whose checksum finds most of the above: tar's blocks, some in another order."""
    content = gzip.decompress(made.packed)
    for number in blocks:
        content += content[512 * number : 512 * (number + 1)]
    read_packed(made, folder, gzip.compress(edited(content, edits, cut), 1))


# a tar header's fields: where they begin and end
FIELDS = {
    "name": slice(0, 100),
    "mode": slice(100, 108),
    "size": slice(124, 136),
    "mtime": slice(136, 148),
    "type": slice(156, 157),
    "link": slice(157, 257),
    "magic": slice(257, 265),
    "owner": slice(265, 297),
    "device": slice(329, 337),
    "prefix": slice(345, 500),
}
CHECKSUM = slice(148, 156)
KINDS = st.sampled_from([b"x", b"g", b"L", b"K", b"S", b"1", b"2", b"3", b"5", b"6", b"7"])
NUMBERS = st.sampled_from([b"77777777777", b"00000000000", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1"])
HEADERS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(sorted(FIELDS)), KINDS | NUMBERS | st.binary(max_size=12)),
    min_size=1,
    max_size=4,
)


@often(1 / 2, headers=HEADERS, edits=st.just([]) | EDITS)
def test_the_archives_headers(
    made: Imitation, folder: Path, headers: list[tuple[int, str, bytes]], edits: Edits
) -> None:
    """Entries of any kind and size, their checksums right: what `tarfile` believes."""
    whole = gzip.decompress(made.packed)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        starts = [entry.offset for entry in tar]
    content = bytearray(edited(whole, edits))
    for number, name, value in headers:
        start, field = starts[number % len(starts)], FIELDS[name]
        header = content[start : start + 512].ljust(512, b"\0")
        size = field.stop - field.start
        header[field] = value[:size].ljust(size, b"\0")
        header[CHECKSUM] = b" " * 8
        header[CHECKSUM] = b"%06o\0 " % sum(header)
        content[start : start + 512] = header
    read_packed(made, folder, gzip.compress(content, 1))


@pytest.fixture(scope="module")
def prepared(made: Imitation, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("prepared")
    made.pack(root)
    files.load(made.archive, root, [], say=lambda line: None)
    return (root / "cifar100.safetensors").read_bytes()


def read_prepared(made: Imitation, root: Path, content: bytes) -> None:
    path = root / "cifar100.safetensors"
    path.write_bytes(content)
    try:
        assert is_right(files._read_prepared(made.archive, path), made)
    except files._Damaged as damage:
        assert str(damage).startswith(f"{path} ")  # noqa: PT017
        assert "\n" not in str(damage)  # noqa: PT017


@often(1 / 2, edits=EDITS, cut=CUTS)
def test_the_prepared_file(made: Imitation, folder: Path, prepared: bytes, edits: Edits, cut: float) -> None:
    read_prepared(made, folder, edited(prepared, edits, cut))


SIZES = st.sampled_from([0, 1, -1, 3, 32, 3072, 2**31, 2**32, 2**63 - 1, 2**64, 1e308])
TYPES = ("U8", "I64", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "BF16", "F32", "C64", "BOOL")
WORDS = st.sampled_from([*TYPES, "data_offsets", "shape"])
SCALARS = SIZES | WORDS | st.none() | st.booleans() | st.text(max_size=5)
JSON = SCALARS | st.lists(SCALARS, max_size=5) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
# which part, counted through; and what it becomes, be it a value or a name
CHANGES = st.lists(st.tuples(st.integers(0, 1000), JSON), min_size=1, max_size=4)


def parts(node: Any) -> Iterator[tuple[Any, Any]]:
    """All places of a JSON value, each as its owner and its index or key."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from parts(node[key])


def changed(content: bytes, changes: list[tuple[int, Any]]) -> bytes:
    """JSON with some of its parts replaced or renamed."""
    node = json.loads(content)
    for number, value in changes:
        places = list(parts(node)) or [(node, 0)]
        owner, key = places[number % len(places)]
        if isinstance(owner, dict) and isinstance(value, str) and number % 2:
            owner[value] = owner.pop(key)
        elif owner:
            owner[key] = value
    return json.dumps(node).encode()


def with_header(content: bytes, changes: list[tuple[int, Any]], claimed: int | None) -> bytes:
    """A safetensors file with other things in its header, and perhaps another length of it claimed."""
    length = int.from_bytes(content[:8], "little")
    header = changed(content[8 : 8 + length], changes)
    return (claimed or len(header)).to_bytes(8, "little") + header + content[8 + length :]


CLAIMS = st.sampled_from([None] * 8 + [1, 10**10, 2**63, 2**64 - 1])


@often(1 / 2, changes=CHANGES, claimed=CLAIMS)
def test_the_prepared_files_header(
    made: Imitation, folder: Path, prepared: bytes, changes: list[tuple[int, Any]], claimed: int | None
) -> None:
    read_prepared(made, folder, with_header(prepared, changes, claimed))


class Small(Classifier):
    """A network whose files are small."""

    def __init__(self) -> None:
        super().__init__(num_classes=3, scaling=make_scaling("unit", torch.zeros(1, 3, 32, 32)))
        self.net = nn.Sequential(nn.Conv2d(3, 2, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(98, 3))
        self.classes = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def network() -> Classifier:
    return Small()


@pytest.fixture(scope="module")
def written(network: Classifier, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that a run keeps its network in."""
    folder = tmp_path_factory.mktemp("run")
    save_weights(network, folder / "weights.safetensors")
    torch.save(
        {"state_dict": network.state_dict(), "callbacks": {}, "classes": network.classes, "epoch": 3},
        folder / "last.ckpt",
    )
    images: Any = SimpleNamespace(
        set=SimpleNamespace(train_images=torch.zeros(9, 3, 32, 32, dtype=torch.uint8))
    )
    assert export.write(folder, network, images, {"export": "pt2"}, records.EMPTY) is not None
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def open_network(network: Classifier, path: Path, content: bytes) -> None:
    """As a run's network is opened: it works, or there is a sentence."""
    path.write_bytes(content)
    try:
        if path.suffix == ".pt2":
            load_exported(path)
        else:
            load_weights(deepcopy(network), path)
    except UserError as error:
        assert str(error).startswith(f"{path} ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


def rezipped(content: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """An archive of torch's with one entry changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as target:
        for entry in archive.infolist():
            held = archive.read(entry)
            target.writestr(entry.filename, change(held) if entry.filename.endswith(name) else held)
    return out.getvalue()


@often(1 / 2, edits=EDITS, cut=CUTS)
@pytest.mark.parametrize("name", ["last.ckpt", "weights.safetensors"])
def test_the_files_of_a_network(
    network: Classifier, written: dict[str, bytes], folder: Path, name: str, edits: Edits, cut: float
) -> None:
    open_network(network, folder / name, edited(written[name], edits, cut))


@often(1 / 20, edits=EDITS, cut=CUTS)
def test_an_exported_network(
    network: Classifier, written: dict[str, bytes], folder: Path, edits: Edits, cut: float
) -> None:
    """This and the next a tenth as often as the others: each takes torch ten times as long."""
    open_network(network, folder / "model.pt2", edited(written["model.pt2"], edits, cut))


@often(1 / 2, changes=CHANGES, claimed=CLAIMS)
def test_the_header_of_weights(
    network: Classifier,
    written: dict[str, bytes],
    folder: Path,
    changes: list[tuple[int, Any]],
    claimed: int | None,
) -> None:
    content = with_header(written["weights.safetensors"], changes, claimed)
    open_network(network, folder / "weights.safetensors", content)


@often(1 / 2, edits=EDITS)
def test_the_pickle_in_a_checkpoint(
    network: Classifier, written: dict[str, bytes], folder: Path, edits: Edits
) -> None:
    """Past the archive's own checksums."""
    content = rezipped(written["last.ckpt"], "data.pkl", lambda held: edited(held, edits))
    open_network(network, folder / "last.ckpt", content)


@often(1 / 20, changes=CHANGES, entry=st.sampled_from(["model.json", "weights_config.json", "meta.json"]))
def test_the_graph_of_an_exported_network(
    network: Classifier, written: dict[str, bytes], folder: Path, changes: list[tuple[int, Any]], entry: str
) -> None:
    content = rezipped(written["model.pt2"], entry, lambda held: changed(held, changes))
    open_network(network, folder / "model.pt2", content)
