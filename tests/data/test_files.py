"""From official files, good and bad, to the prepared file: on small imitations of the official archives."""

import errno
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from imitation import Imitation, is_right, md5, tar
from mirror import Mirror, serving

from cifarlab.data import download, files
from cifarlab.data.files import CIFAR10, CIFAR100, DataSet
from cifarlab.errors import UserError


def load(made: Imitation, root: Path, *mirrors: str) -> tuple[DataSet, list[str]]:
    said: list[str] = []
    return files.load(made.archive, root, mirrors, say=said.append), said


@pytest.fixture(scope="module")
def ten() -> Imitation:
    return Imitation(CIFAR10)


@pytest.fixture(scope="module")
def hundred() -> Imitation:
    return Imitation(CIFAR100)


@pytest.fixture(params=["truncated", "emptied", "flipped", "missing"])
def spoil(request: pytest.FixtureRequest):
    def change(path: Path) -> None:
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(
            {"truncated": content[:-1], "emptied": b"", "flipped": flipped}.get(request.param, b"")
        )
        if request.param == "missing":
            path.unlink()

    return change


@pytest.fixture
def mirror(ten: Imitation) -> Iterator[Mirror]:
    with serving(Mirror(ten.packed)) as mirror:
        yield mirror


@pytest.mark.parametrize("source", ["unpack", "pack"])
def test_prepares_once_then_needs_only_the_prepared_file(ten: Imitation, tmp_path: Path, source: str) -> None:
    getattr(ten, source)(tmp_path / "data")
    assert is_right(load(ten, tmp_path / "data")[0], ten)
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    (tmp_path / "data/cifar10.safetensors").rename(alone / "cifar10.safetensors")
    data, said = load(ten, alone)
    assert is_right(data, ten)
    assert said == []
    assert [path.name for path in alone.iterdir()] == ["cifar10.safetensors"]  # not even a lock


def test_superclasses(hundred: Imitation, tmp_path: Path) -> None:
    hundred.pack(tmp_path)
    for _ in range(2):
        data = load(hundred, tmp_path)[0]
        assert is_right(data, hundred)
        assert data.train_coarse is not None
        assert data.train_coarse.dtype == torch.int64
        assert data.train_coarse.tolist() == [label // 2 for label in hundred.labels["train"]]
        assert data.superclasses == ["insect", "mammal"]
    coarse = data.with_coarse_labels()
    assert coarse.classes == ["insect", "mammal"]
    assert coarse.train_labels is data.train_coarse
    assert coarse.fingerprint != data.fingerprint


def test_downloads_into_a_folder_that_is_not_there_yet(
    ten: Imitation, tmp_path: Path, mirror: Mirror
) -> None:
    root = tmp_path / "a" / "b"
    assert is_right(load(ten, root, mirror.url)[0], ten)
    assert is_right(load(ten, root, mirror.url)[0], ten)
    assert len(mirror.ranges) == 1
    assert sorted(path.name for path in root.iterdir() if path.suffix != ".lock") == [
        "cifar-10-python.tar.gz",
        "cifar10.safetensors",
    ]


def test_runs_at_once_download_once(ten: Imitation, tmp_path: Path, mirror: Mirror) -> None:
    start, results = threading.Barrier(6), []

    def run() -> None:
        start.wait()
        results.append(is_right(load(ten, tmp_path, mirror.url)[0], ten))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6
    assert len(mirror.ranges) == 1


def test_a_run_waits_for_another_process(ten: Imitation, tmp_path: Path, mirror: Mirror) -> None:
    """The other process holds the lock until it is told to go on; then it leaves the prepared file."""
    ten.pack(tmp_path / "other")
    load(ten, tmp_path / "other")
    code = (
        "import os, sys; from filelock import FileLock\n"
        "with FileLock('.cifar10.lock'):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
        "    os.replace('other/cifar10.safetensors', 'cifar10.safetensors')"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=pipe, stdout=pipe) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            other.stdin.write(b"go on\n")
            other.stdin.flush()

        data = files.load(ten.archive, tmp_path, [mirror.url], say=say)
    assert is_right(data, ten)
    assert said == ["CIFAR-10: another run is preparing it; waiting"]
    assert len(mirror.ranges) == 0


def test_images_are_mapped_not_read(ten: Imitation, tmp_path: Path) -> None:
    ten.pack(tmp_path)
    data = load(ten, tmp_path)[0]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc/self/maps on this system")
    mine = [line.split()[0] for line in maps.read_text().splitlines() if str(tmp_path) in line]
    ranges = [[int(end, 16) for end in line.split("-")] for line in mine]
    for tensor in data.train_images, data.train_labels, data.test_images, data.test_labels:
        assert any(low <= tensor.data_ptr() < high for low, high in ranges)


def test_a_damaged_prepared_file_is_made_again(ten: Imitation, tmp_path: Path, spoil) -> None:
    ten.pack(tmp_path)
    prepared = tmp_path / "cifar10.safetensors"
    load(ten, tmp_path)
    good = prepared.read_bytes()
    spoil(prepared)
    was_there = prepared.exists()
    data, said = load(ten, tmp_path)
    assert is_right(data, ten)
    assert sum(str(prepared) in line and "looking for another copy" in line for line in said) == was_there
    assert prepared.read_bytes() == good


def test_every_byte_of_the_prepared_file_matters(hundred: Imitation, tmp_path: Path) -> None:
    """One bit flipped anywhere: refused, or (in the header's padding) still the same data."""
    hundred.pack(tmp_path)
    load(hundred, tmp_path)
    path = tmp_path / "cifar100.safetensors"
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    refused = 0
    places = [*range(header), *range(header, len(good), 97)]
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            assert is_right(files._read_prepared(hundred.archive, path), hundred)
        except files._Damaged:
            refused += 1
    assert refused > len(places) - 16


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors | {"train_labels": tensors["train_labels"] + 7},
        lambda tensors: tensors | {"train_labels": tensors["train_labels"].int()},
        lambda tensors: tensors | {"train_images": tensors["train_images"].flip(0)},
        lambda tensors: tensors | {"train_images": tensors["train_images"].view(-1, 32, 32, 3)},
        lambda tensors: tensors | {"test_images": tensors["test_images"][:-1].clone()},
        lambda tensors: tensors | {"more": torch.zeros(1)},
        lambda tensors: {key: value for key, value in tensors.items() if key != "test_labels"},
        lambda tensors: {},
    ],
)
@pytest.mark.parametrize("names", [True, False])
def test_a_well_formed_file_with_other_content_is_refused(
    ten: Imitation, tmp_path: Path, change, names: bool
) -> None:
    ten.pack(tmp_path)
    data = load(ten, tmp_path)[0]
    path = tmp_path / "cifar10.safetensors"
    metadata = {"names": data.names()} if names else None
    safetensors.torch.save_file(change(data.tensors()), tmp_path / "new", metadata=metadata)
    (tmp_path / "new").replace(path)
    with pytest.raises(files._Damaged, match=r"cifar10\.safetensors is damaged"):
        files._read_prepared(ten.archive, path)
    assert is_right(load(ten, tmp_path)[0], ten)


def test_other_class_names_are_refused(ten: Imitation, tmp_path: Path) -> None:
    ten.pack(tmp_path)
    data = load(ten, tmp_path)[0]
    data.classes = ["bee", "ant", "cat"]
    files._write_prepared(tmp_path / "cifar10.safetensors", data, print)
    data, said = load(ten, tmp_path)
    assert data.classes == ["ant", "bee", "cat"]
    assert "SHA-256" in said[0]


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_damaged_source_file_is_named(ten: Imitation, tmp_path: Path, spoil, name: str) -> None:
    path = ten.unpack(tmp_path) / name
    spoil(path)
    with pytest.raises(UserError, match=f"{path} is (damaged|missing).*no mirror is named"):
        load(ten, tmp_path)
    assert not (tmp_path / "cifar10.safetensors").exists()


def test_another_good_source_makes_up_for_a_damaged_one(
    ten: Imitation, tmp_path: Path, spoil, mirror: Mirror
) -> None:
    folder, packed = ten.unpack(tmp_path), ten.pack(tmp_path)
    spoil(folder / "data_batch_1")
    data, said = load(ten, tmp_path, mirror.url)
    assert is_right(data, ten)
    assert "data_batch_1" in said[0]
    assert len(mirror.ranges) == 0
    (tmp_path / "cifar10.safetensors").unlink()
    spoil(packed)
    assert is_right(load(ten, tmp_path, mirror.url)[0], ten)
    assert len(mirror.ranges) == 1
    assert packed.read_bytes() == ten.packed


def test_swapped_files_are_refused(ten: Imitation, tmp_path: Path) -> None:
    folder = ten.unpack(tmp_path)
    (folder / "data_batch_1").write_bytes(ten.contents["data_batch_2"])
    with pytest.raises(UserError, match="data_batch_1 is damaged"):
        load(ten, tmp_path)


class Bomb:
    """A pickle that leaves a trace when it is opened."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", [*CIFAR10.members])
def test_nothing_is_opened_before_all_is_verified(ten: Imitation, tmp_path: Path, name: str) -> None:
    trace = tmp_path / "trace"
    bomb = pickle.dumps(Bomb(trace))
    contents = ten.contents | {name: bomb}
    (ten.unpack(tmp_path) / name).write_bytes(bomb)
    (tmp_path / ten.archive.file).write_bytes(
        tar({f"{ten.archive.folder}/{n}": c for n, c in contents.items()})
    )
    with pytest.raises(UserError, match=name):
        load(ten, tmp_path)
    # An archive whose own MD5 is right does not vouch for what is in it.
    packed = (tmp_path / ten.archive.file).read_bytes()
    trusted = replace(ten.archive, md5=md5(packed), size=len(packed))
    with pytest.raises(UserError, match=f"{name} is damaged"):
        files.load(trusted, tmp_path, [], say=lambda line: None)
    assert not trace.exists()
    pickle.loads(bomb)
    assert trace.exists()  # the bomb was live


@pytest.mark.parametrize("kind", ["link", "path", "absent", "large"])
def test_odd_entries_of_an_archive_are_not_taken(
    ten: Imitation, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ten.archive.folder
    entries: dict[str, bytes | str] = {f"{folder}/{name}": content for name, content in ten.contents.items()}
    content = entries.pop(f"{folder}/test_batch")
    outside = tmp_path / "outside"
    outside.write_bytes(ten.contents["test_batch"])
    if kind == "link":
        entries[f"{folder}/test_batch"] = str(outside)
    elif kind == "path":
        entries[f"{folder}/../{folder}/test_batch"] = entries["../../evil"] = content
    elif kind == "large":
        entries[f"{folder}/test_batch"] = content
        monkeypatch.setattr(files, "LARGEST_FILE", len(content) - 1)
    packed = tar(entries)
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    (root / ten.archive.file).write_bytes(packed)
    archive = replace(ten.archive, md5=md5(packed), size=len(packed))
    with pytest.raises(UserError, match=r"no plain file \S+ in it"):
        files.load(archive, root, [], say=lambda line: None)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".cifar10.lock",
        ten.archive.file,
        "outside",
    ]


@pytest.mark.parametrize(
    "packed", [b"no gzip", tar({"a": b"b"})[:-20], b""], ids=["no gzip", "cut off", "empty"]
)
def test_what_is_no_archive_is_named(ten: Imitation, tmp_path: Path, packed: bytes) -> None:
    (tmp_path / ten.archive.file).write_bytes(packed)
    archive = replace(ten.archive, md5=md5(packed), size=len(packed))
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz (is damaged|cannot be read)"):
        files.load(archive, tmp_path, [], say=lambda line: None)


def test_a_failed_download_names_the_damage_too(ten: Imitation, tmp_path: Path) -> None:
    (ten.unpack(tmp_path) / "test_batch").unlink()
    with pytest.raises(UserError) as caught:
        load(ten, tmp_path, "http://127.0.0.1:9/archive")
    assert (
        "test_batch is missing or no plain file; CIFAR-10 could not be downloaded (http://127.0.0.1"
        in str(caught.value)
    )
    assert str(tmp_path / "cifar-10-python.tar.gz") in str(caught.value)


def refuse(number: int):
    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    return refuse


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_root_will_do(
    ten: Imitation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    ten.unpack(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files.FileLock, "acquire", refuse(number))
        data, said = load(ten, tmp_path)
        assert is_right(data, ten)
        assert len(said) == 1
        assert "read-only" in said[0]
        assert not (tmp_path / "cifar10.safetensors").exists()
        with pytest.raises(UserError, match=r"data\.root=\S+ is read-only and holds no usable CIFAR-10"):
            load(ten, tmp_path / "empty", "http://127.0.0.1:9/")


def test_a_root_without_permissions(ten: Imitation, tmp_path: Path) -> None:
    root = tmp_path / "data"
    ten.unpack(root)
    try:
        root.chmod(stat.S_IRUSR | stat.S_IXUSR)
        if os.access(root, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert is_right(load(ten, root)[0], ten)
        with pytest.raises(UserError, match=r"data\.root="):
            load(ten, root / "new")
        root.chmod(0)
        with pytest.raises(UserError, match=r"data\.root="):
            load(ten, root)
    finally:
        root.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_root_that_is_a_file_is_named(ten: Imitation, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / below
    with pytest.raises(
        UserError, match=rf"data\.root={root} cannot be used \((File exists|Not a directory)\)"
    ):
        load(ten, root)


@pytest.mark.parametrize("where", ["mkdir", "fsync"])
def test_a_full_disk_is_said_and_leaves_nothing(
    ten: Imitation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    root = tmp_path / "data"
    if where == "mkdir":
        monkeypatch.setattr(Path, "mkdir", refuse(errno.ENOSPC))
    else:
        ten.unpack(root)
        monkeypatch.setattr(download.os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(UserError, match=rf"data\.root={root} cannot be used \(No space left on device\)"):
        load(ten, root)
    assert where == "mkdir" or {path.name for path in root.iterdir()} == {".cifar10.lock", ten.archive.folder}
