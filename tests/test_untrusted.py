"""Files that a stranger may have made are refused before they can cost anything."""

import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from cifarlab.errors import UserError
from cifarlab.untrusted import (
    FILES,
    FOLDERS,
    LARGEST_TEXT,
    Refused,
    check_archive,
    check_run_folder,
    clean,
    read_text,
    read_yaml,
)


def test_text_of_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("größe\n".encode())
    assert read_text(path) == "größe\n"
    path.write_bytes(b"x" * LARGEST_TEXT)
    assert len(read_text(path)) == LARGEST_TEXT


@pytest.mark.parametrize("kind", ["large", "binary", "folder", "pipe", "device"])
def test_other_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.txt"
    if kind == "large":
        with open(path, "wb") as file:
            file.truncate(10**12)  # sparse: it takes no room
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(Refused):
        read_text(path)


def test_yaml_of_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: [1, 2.5, null]\nb: {c: text}\n")
    assert read_yaml(path) == {"a": [1, 2.5, None], "b": {"c": "text"}}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "a: &a\n  b: *a\n",
        "a: !!python/object/apply:os.system [echo]\n",
        "a: [1\n",
        "a: " + "[" * 50_000 + "]" * 50_000,
        "? [1, 2]\n: x\n",
        "a: 2020-99-99\n",
        "a: \x00\n",
    ],
    ids=["aliases", "circle", "object", "unfinished", "deep", "key", "date", "control"],
)
def test_yaml_that_would_cost_or_run_something_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(Refused):
        read_yaml(path)


def test_archives_of_torch_pass(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"weights": torch.ones(1000)}, path)
    check_archive(path)


def test_archives_that_unpack_to_more_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/0", b"\0" * 10_000_000)
    with pytest.raises(Refused, match="compressed"):
        check_archive(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/../../b", b"x")
    with pytest.raises(Refused, match="outside"):
        check_archive(path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(Refused, match="no archive"):
        check_archive(path)


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/0", b"x" * 10_000)
        first = archive.infolist()[0]
        for number in range(1, 50):  # entries of the directory that all point at the first one's bytes
            twin = zipfile.ZipInfo(f"data/{number}")
            twin.header_offset, twin.CRC = first.header_offset, first.CRC
            twin.file_size = twin.compress_size = first.file_size
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
    with pytest.raises(Refused, match="claim more bytes"):
        check_archive(path)


def test_an_archive_of_too_many_entries_is_not_read(tmp_path: Path) -> None:
    """Its directory claims 2 GB, which are a hole in the file, and which zipfile would read at once."""
    size, path = 2 * 10**9, tmp_path / "a.ckpt"
    end = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 10**8, 10**8, size, 0)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, size, 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    with open(path, "wb") as file:
        file.seek(size)
        file.write(end)
    with pytest.raises(Refused, match="100,000 entries"):
        check_archive(path)


@pytest.mark.parametrize("name", [*FILES, *FOLDERS, "events.out.tfevents.1"])
def test_a_runs_folder_holds_files_and_folders_alone(tmp_path: Path, name: str) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (other, run / "checkpoints", run / "evaluation"):
        folder.mkdir(parents=True)
    (other / "file").touch()
    kinds = {
        "a link": lambda path: path.symlink_to(other / "file"),
        "a link to a folder": lambda path: path.symlink_to(other),
        "a link to nothing": lambda path: path.symlink_to(other / "new"),
        "a pipe": os.mkfifo,
        "another": Path.touch if name in FOLDERS else Path.mkdir,
    }
    path = run / name
    for make in kinds.values():
        check_run_folder(run)
        if path.is_dir():
            path.rmdir()
        make(path)
        (tmp_path / "linked").unlink(missing_ok=True)
        (tmp_path / "linked").symlink_to(run)
        with pytest.raises(UserError, match=f"{name} is a link or no (plain file|folder)"):
            check_run_folder(tmp_path / "linked")
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_texts_are_made_safe_to_print() -> None:
    assert clean("a\x1b[31mb\n\u202ec\ud800 größe") == "a [31mb c  größe"
