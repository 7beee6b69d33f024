"""The CIFAR sets, from whatever is on the disk (or a mirror) to one verified file that runs share.

The official files are pickles, and a pickle is a program: none is opened before every one has its published
MD5. What they hold is written once as safetensors, which later runs map into memory.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cifarlab.data.download import fetch, publish, usable
from cifarlab.errors import UserError
from cifarlab.untrusted import Refused, check_plain

LARGEST_FILE = 200_000_000  # bytes; the largest, a prepared one, has 185 million


@dataclass(frozen=True)
class Archive:
    """An official CIFAR archive ("python version") and all that is published about it."""

    name: str
    title: str
    file: str
    md5: str
    size: int  # bytes
    folder: str  # inside the archive, and where it unpacks
    meta: Mapping[str, str]  # file: MD5, as in the two below
    train: Mapping[str, str]
    test: Mapping[str, str]
    train_count: int
    test_count: int
    labels: str  # key of the labels; that of their names is without the "s", plus "_names"
    fingerprint: str  # of the data set in it: a prepared file is good if it has the same
    coarse: bool = False  # whether superclasses are in it

    @property
    def members(self) -> dict[str, str]:
        return {**self.meta, **self.train, **self.test}


CIFAR10 = Archive(
    name="cifar10",
    title="CIFAR-10",
    file="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    size=170_498_071,
    folder="cifar-10-batches-py",
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    train_count=50_000,
    test_count=10_000,
    labels="labels",
    fingerprint="5ba22778cc6472943b511e921b175a493e2a86562abef5534aab3548c34fa1da",
)

CIFAR100 = Archive(
    name="cifar100",
    title="CIFAR-100",
    file="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    size=169_001_437,
    folder="cifar-100-python",
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    train_count=50_000,
    test_count=10_000,
    labels="fine_labels",
    fingerprint="e2144103716f1ecc3ee456a462a0eba2decd2e8900cd74ae07e98689df840c2c",
    coarse=True,
)


@dataclass
class DataSet:
    """Images uint8 (N, 3, 32, 32), red, green, blue; labels int64 (N,), each an index into `classes`."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: list[str]
    train_coarse: Tensor | None = None  # as the labels, into `superclasses`
    test_coarse: Tensor | None = None
    superclasses: list[str] | None = None
    fingerprint: str = ""  # `fingerprint` of all the above, worked out unless given

    def __post_init__(self) -> None:
        self.fingerprint = self.fingerprint or fingerprint(self.tensors(), self.names())

    def tensors(self) -> dict[str, Tensor]:
        return {key: value for key, value in vars(self).items() if isinstance(value, Tensor)}

    def names(self) -> str:
        """The classes and superclasses as JSON."""
        return json.dumps({"classes": self.classes, "superclasses": self.superclasses})

    def with_coarse_labels(self) -> DataSet:
        """The same images with their superclasses as the classes."""
        assert self.train_coarse is not None
        assert self.test_coarse is not None
        assert self.superclasses is not None
        return DataSet(
            self.train_images, self.train_coarse, self.test_images, self.test_coarse, self.superclasses
        )


class _Damaged(Exception):
    """A file is not what it should be; the message names it."""


def load(archive: Archive, root: Path, mirrors: Sequence[str], *, say: Callable[[str], None]) -> DataSet:
    """The data set, from the first of these that is there and undamaged: the prepared file
    `<name>.safetensors` in `root`, the unpacked archive, the archive, the archive downloaded from `mirrors`
    (full URLs). Damaged files are told through `say` and passed over; one whose name a good one needs is kept
    under another.

    From any but the first, the prepared file is written, by one run while others wait for it. The images lie
    in the page cache once, however many runs map them. A read-only `root` will do if the data are in it.

    Raises:
        UserError: there is no undamaged source, or `root` cannot be used.
    """
    prepared = root / f"{archive.name}.safetensors"
    problems: list[str] = []

    def note(damage: _Damaged) -> None:
        problems.append(str(damage))
        say(f"{archive.title}: {damage}; looking for another copy")

    with usable(root):
        if os.path.lexists(prepared):
            try:
                return _read_prepared(archive, prepared)
            except _Damaged as damage:
                note(damage)
        root.mkdir(parents=True, exist_ok=True)
        with _alone(archive, root, say) as writable:
            with suppress(_Damaged):  # another run may have made it while this one waited
                return _read_prepared(archive, prepared)
            members = _from_folder(archive, root, note) or _from_archive(archive, root, note)
            if members is None:
                try:
                    if not writable:
                        raise UserError(f"data.root={root} is read-only and holds no usable {archive.title}")
                    fetch(
                        archive.title, mirrors, root / archive.file, archive.md5, size=archive.size, say=say
                    )
                except UserError as error:
                    raise UserError("; ".join([*problems, str(error)])) from error
                members = _from_archive(archive, root, note)
            if members is None:
                raise UserError("; ".join(problems))
            data = _decode(archive, members)
            if not writable:
                say(f"{archive.title}: {root} is read-only, so nothing is kept for a faster start next time")
                return data
            say(f"{archive.title}: writing {prepared}, once")
            _write_prepared(prepared, data, say)
            try:
                return _read_prepared(archive, prepared)
            except _Damaged as damage:
                raise UserError(f"{damage} although it was just written: check the disk") from damage


def fingerprint(tensors: Mapping[str, Tensor], names: str) -> str:
    """SHA-256 of contiguous CPU tensors' bytes, in the order of their keys, and of the text `names`."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].numpy().data)
    digest.update(names.encode())
    return digest.hexdigest()


@contextmanager
def _alone(archive: Archive, root: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Keep other runs from writing; gives False, and no lock, where `root` is read-only."""
    lock = FileLock(root / f".{archive.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{archive.title}: another run is preparing it; waiting")
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _read_prepared(archive: Archive, path: Path) -> DataSet:
    """Map the prepared file and hash all of it (0.12 s for 184 MB): nothing in it is believed before.

    What is hashed is what is used: another file that takes its name meanwhile leaves the mapped one as it is.
    Only writing into the file itself, which its mode forbids, would change the images of the runs at work.
    """
    counts = {"train": archive.train_count, "test": archive.test_count}
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for part, count in counts.items():
        shapes[f"{part}_images"] = torch.uint8, (count, 3, 32, 32)
        shapes[f"{part}_labels"] = torch.int64, (count,)
        if archive.coarse:
            shapes[f"{part}_coarse"] = torch.int64, (count,)
    try:
        check_plain(path, LARGEST_FILE)
        with safe_open(path, framework="pt") as file:
            names = (file.metadata() or {}).get("names", "")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (Refused, SafetensorError, OSError) as error:
        raise _Damaged(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()} != shapes:
        raise _Damaged(f"{path} is damaged (it holds other tensors than {archive.title})")
    if fingerprint(tensors, names) != archive.fingerprint:
        raise _Damaged(f"{path} is damaged (its SHA-256 is not that of {archive.title})")
    return DataSet(**tensors, **json.loads(names), fingerprint=archive.fingerprint)


def _write_prepared(path: Path, data: DataSet, say: Callable[[str], None]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        # Not save_file: what it writes only its owner may read, and a full disk is no OSError to it.
        partial.write_bytes(safetensors.torch.save(data.tensors(), metadata={"names": data.names()}))
        publish(partial, path, say)
        path.chmod(path.stat().st_mode & 0o444)  # for runs map it: nobody is to write into it by mistake
    finally:
        partial.unlink(missing_ok=True)


def _from_folder(archive: Archive, root: Path, note: Callable[[_Damaged], None]) -> dict[str, bytes] | None:
    """The unpacked archive's files, verified; None where there is no good one."""
    folder = root / archive.folder
    if not os.path.lexists(folder):
        return None
    try:
        members = {}
        for name in archive.members:
            if not (folder / name).is_file():
                raise _Damaged(f"{folder / name} is missing or no plain file")
            if (folder / name).stat().st_size > LARGEST_FILE:
                raise _Damaged(f"{folder / name} is damaged (larger than any official file)")
            members[name] = (folder / name).read_bytes()
        return _verified(archive, members, folder)
    except OSError as error:
        note(_Damaged(f"{error.filename} cannot be read ({error.strerror})"))
    except _Damaged as damage:
        note(damage)
    return None


def _from_archive(archive: Archive, root: Path, note: Callable[[_Damaged], None]) -> dict[str, bytes] | None:
    """The archive's files, verified and read in memory by their exact names: nothing is unpacked."""
    path = root / archive.file
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file() or path.stat().st_size != archive.size:
            raise _Damaged(f"{path} is damaged (not a file of {archive.size:,} bytes)")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() != archive.md5:
                raise _Damaged(f"{path} is damaged (its MD5 is not the published one)")
            file.seek(0)
            wanted = {f"{archive.folder}/{name}": name for name in archive.members}
            members = {}
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                for entry in tar:
                    content = tar.extractfile(entry) if entry.isreg() and entry.size <= LARGEST_FILE else None
                    if content and entry.name in wanted:
                        members[wanted[entry.name]] = content.read()
        return _verified(archive, members, path)
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:  # ValueError: a size beyond 2**63
        note(_Damaged(f"{path} is damaged ({error})"))
    except OSError as error:
        note(_Damaged(f"{path} cannot be read ({error.strerror or error})"))
    except _Damaged as damage:
        note(damage)
    return None


def _verified(archive: Archive, members: dict[str, bytes], where: Path) -> dict[str, bytes]:
    for name, md5 in archive.members.items():
        if name not in members:
            raise _Damaged(f"{where} is damaged (no plain file {name} in it)")
        if hashlib.md5(members[name]).hexdigest() != md5:
            raise _Damaged(f"{where / name} is damaged (its MD5 is not the published one)")
    return members


def _decode(archive: Archive, members: dict[str, bytes]) -> DataSet:
    """Unpickle verified files."""

    def unpickled(name: str) -> dict[bytes, Any]:
        return pickle.loads(members.pop(name), encoding="bytes")  # popped: one file's memory at a time

    kinds = {"labels": archive.labels} | ({"coarse": "coarse_labels"} if archive.coarse else {})
    tensors: dict[str, Any] = {}
    for part, files in ("train", archive.train), ("test", archive.test):
        batches = [unpickled(name) for name in files]
        pixels = np.concatenate([batch[b"data"] for batch in batches])
        tensors[f"{part}_images"] = torch.from_numpy(pixels).view(-1, 3, 32, 32)
        for kind, key in kinds.items():
            tensors[f"{part}_{kind}"] = torch.tensor([n for batch in batches for n in batch[key.encode()]])
    meta = {key: value for name in archive.meta for key, value in unpickled(name).items()}

    def names(labels: str) -> list[str]:
        return [name.decode() for name in meta[f"{labels.removesuffix('s')}_names".encode()]]

    superclasses = names("coarse_labels") if archive.coarse else None
    return DataSet(**tensors, classes=names(archive.labels), superclasses=superclasses)
