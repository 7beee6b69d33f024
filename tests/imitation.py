"""Small imitations of the official archives, for tests of all that happens to files."""

import hashlib
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cifarlab.data import files
from cifarlab.data.files import Archive, DataSet


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def tar(entries: dict[str, bytes | str]) -> bytes:
    """A .tar.gz of files (bytes) and symbolic links (str)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


class Imitation:
    """A small archive in the official format, `images` in each file, and what Archive would publish of it."""

    def __init__(self, like: Archive, images: int = 4) -> None:
        random = np.random.default_rng(0)
        names = like.train | like.test
        self.pixels = {name: random.integers(0, 256, (images, 3072), np.uint8) for name in names}
        self.labels = {name: random.integers(0, 3, images).tolist() for name in names}
        self.names = ["ant", "bee", "cat"]
        self.contents = {}
        for name, pixels in self.pixels.items():
            batch = {b"data": pixels, like.labels.encode(): self.labels[name]}
            if like.coarse:
                batch[b"coarse_labels"] = [label // 2 for label in self.labels[name]]
            self.contents[name] = pickle.dumps(batch)
        meta = {f"{like.labels[:-1]}_names".encode(): [name.encode() for name in self.names]}
        if like.coarse:
            meta[b"coarse_label_names"] = [b"insect", b"mammal"]
        self.contents[next(iter(like.meta))] = pickle.dumps(meta)
        self.packed = tar({f"{like.folder}/{name}": content for name, content in self.contents.items()})
        self.archive = replace(
            like,
            md5=md5(self.packed),
            size=len(self.packed),
            meta={name: md5(self.contents[name]) for name in like.meta},
            train={name: md5(self.contents[name]) for name in like.train},
            test={name: md5(self.contents[name]) for name in like.test},
            train_count=images * len(like.train),
            test_count=images * len(like.test),
            fingerprint=self.fingerprint(like),
        )

    def fingerprint(self, like: Archive) -> str:
        """Independently: bytes in the order test, train; coarse labels, images, labels; then the names."""
        digest = hashlib.sha256()
        for part in list(like.test), list(like.train):
            labels = np.array([label for name in part for label in self.labels[name]], dtype="<i8")
            if like.coarse:
                digest.update((labels // 2).tobytes())
            digest.update(b"".join(self.pixels[name].tobytes() for name in part))
            digest.update(labels.tobytes())
        superclasses = ["insect", "mammal"] if like.coarse else None
        digest.update(json.dumps({"classes": self.names, "superclasses": superclasses}).encode())
        return digest.hexdigest()

    def unpack(self, root: Path) -> Path:
        folder = root / self.archive.folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        return folder

    def pack(self, root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        (root / self.archive.file).write_bytes(self.packed)
        return root / self.archive.file


def is_right(data: DataSet, made: Imitation) -> bool:
    train, test = (list(part) for part in (made.archive.train, made.archive.test))
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.train_images.is_contiguous()
    assert data.fingerprint == made.archive.fingerprint
    images = np.concatenate([made.pixels[name] for name in train]).reshape(-1, 3, 32, 32)
    return (
        np.array_equal(data.train_images.numpy(), images)
        and np.array_equal(data.test_images.numpy().reshape(-1, 3072), made.pixels[test[0]])
        and data.train_labels.tolist() == [label for name in train for label in made.labels[name]]
        and data.test_labels.tolist() == made.labels[test[0]]
        and data.classes == ["ant", "bee", "cat"]
    )


def pretend(archive: Archive) -> None:
    """Have this process take the imitation for the official archive."""
    setattr(files, archive.name.upper(), archive)
