"""The downloader against servers on this machine that misbehave in one way each."""

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from mirror import Mirror, serving

from cifarlab.data import download
from cifarlab.errors import UserError

BODY = bytes(range(256)) * 4096  # 1 MiB
MD5 = hashlib.md5(BODY).hexdigest()
SIZE = len(BODY)
HALF = SIZE // 2


@pytest.fixture
def first() -> Iterator[Mirror]:
    with serving(Mirror(BODY)) as server:
        yield server


@pytest.fixture
def second() -> Iterator[Mirror]:
    with serving(Mirror(BODY)) as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file"


def fetch(target: Path, *servers: Mirror, **options: float) -> list[str]:
    """Download from the servers in this order; what was said."""
    said: list[str] = []
    urls = [server.url for server in servers]
    download.fetch("thing", urls, target, MD5, size=SIZE, say=said.append, **options)
    return said


def is_good(target: Path) -> bool:
    return target.read_bytes() == BODY and [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_good_mirror_is_enough(first: Mirror, second: Mirror, target: Path) -> None:
    said = fetch(target, first, second)
    assert is_good(target)
    assert (first.ranges, first.sent, second.ranges) == ([None], SIZE, [])
    assert [int(re.match(r"thing: (\d+) %", line)[1]) for line in said][-1] == 100
    assert len(said) <= 10


def test_without_a_content_length(first: Mirror, target: Path) -> None:
    first.length = False
    fetch(target, first)
    assert is_good(target)


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_gives_way(first: Mirror, second: Mirror, target: Path, status: int) -> None:
    first.status = status
    said = fetch(target, first, second)
    assert is_good(target)
    assert re.fullmatch(rf"thing: {first.url} answers {status} [\w ]+; trying {second.url}", said[0])


def test_a_mirror_that_is_down_gives_way(first: Mirror, target: Path) -> None:
    gone = Mirror(BODY)
    with serving(gone):
        pass
    assert "cannot be reached" in fetch(target, gone, first)[0]
    assert is_good(target)


def test_what_is_no_address_gives_way(first: Mirror, target: Path) -> None:
    odd = Mirror(BODY)
    for odd.url in (
        "",
        "nonsense",
        "http://",
        "http://[::1",
        "ftp://127.0.0.1/file",
        "http://127.0.0.1:1\x00/",
    ):
        assert "cannot be reached" in fetch(target, odd, first)[0]


def test_a_stall_gives_way_and_the_next_goes_on(first: Mirror, second: Mirror, target: Path) -> None:
    release = threading.Event()
    first.pause = lambda done: release.wait(10) and None if done >= HALF else None
    said = fetch(target, first, second, stall_seconds=0.3)
    release.set()
    assert is_good(target)
    assert second.ranges == [f"bytes={HALF}-"]
    assert second.sent == HALF
    assert any("sent nothing for 0.3 s" in line for line in said)


def test_a_trickle_is_too_slow(first: Mirror, second: Mirror, target: Path) -> None:
    """Each pause is far below the stall, the rate far below the minimum."""
    stop = threading.Event()

    def trickle(server: Mirror, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.01):
            handler.wfile.write(b"x")

    first.answer = partial(trickle, first)  # type: ignore[method-assign]
    said = fetch(target, first, second, stall_seconds=5, grace_seconds=0.2, min_bytes_per_second=100_000)
    stop.set()
    assert "sends only 0 kB/s" in said[0]
    assert any("the pieces do not fit together" in line for line in said)  # the x were not the file's bytes
    assert second.ranges[1:] == [None]
    assert is_good(target)


def test_the_fastest_of_slow_mirrors_is_taken_patiently(first: Mirror, second: Mirror, target: Path) -> None:
    first.pause = lambda done: time.sleep(0.1)  # 0.6 MB/s
    second.pause = lambda done: time.sleep(0.03)  # 2 MB/s
    said = fetch(target, first, second, grace_seconds=0.15, min_bytes_per_second=1e9)
    assert is_good(target)
    assert [len(first.ranges), len(second.ranges)] == [1, 2]
    assert sum(f"no faster mirror works; going on with {second.url}" in line for line in said) == 1


def test_a_broken_transfer_is_resumed(first: Mirror, second: Mirror, target: Path) -> None:
    first.cuts = [HALF, HALF + 1000]
    fetch(target, first, second)
    assert is_good(target)
    assert first.ranges == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert first.sent == SIZE
    assert second.ranges == []


def test_a_mirror_that_breaks_off_without_progress_gives_way(
    first: Mirror, second: Mirror, target: Path
) -> None:
    first.cuts = [HALF, HALF]
    fetch(target, first, second)
    assert len(first.ranges) == 2
    assert (second.ranges, second.sent) == ([f"bytes={HALF}-"], HALF)
    assert is_good(target)


def test_a_mirror_that_keeps_breaking_off_gives_way(first: Mirror, second: Mirror, target: Path) -> None:
    first.cuts = [1000 * n for n in range(1, 99)]
    fetch(target, first, second)
    assert len(first.ranges) == 1 + download.RESUMES
    assert second.ranges == [f"bytes={1000 * (1 + download.RESUMES)}-"]
    assert is_good(target)


def test_an_interrupted_download_goes_on_in_the_next_run(first: Mirror, target: Path) -> None:
    target.with_name("file.partial").write_bytes(BODY[:HALF])
    said = fetch(target, first)
    assert (first.ranges, first.sent) == ([f"bytes={HALF}-"], HALF)
    assert int(re.match(r"thing: (\d+) %", said[0])[1]) > 50
    assert is_good(target)


@pytest.mark.parametrize("quirk", ["takes no ranges", "answers another range", "416"])
def test_a_server_that_cannot_continue_starts_anew(first: Mirror, target: Path, quirk: str) -> None:
    target.with_name("file.partial").write_bytes(BODY[:HALF])
    if quirk == "takes no ranges":
        first.takes_ranges = False
    else:
        first.range_shift = -10 if quirk == "answers another range" else SIZE
    fetch(target, first)
    assert first.ranges == [f"bytes={HALF}-"] + ([] if quirk == "takes no ranges" else [None])
    assert is_good(target)


def test_a_foreign_partial_file_costs_one_more_request(first: Mirror, target: Path) -> None:
    target.with_name("file.partial").write_bytes(b"x" * HALF)
    fetch(target, first)
    assert first.ranges == [f"bytes={HALF}-", None]
    assert is_good(target)


@pytest.mark.parametrize("content", [b"x" * SIZE, BODY + b"x"])
def test_a_wrong_partial_file_of_full_length_is_dropped(first: Mirror, target: Path, content: bytes) -> None:
    target.with_name("file.partial").write_bytes(content)
    fetch(target, first)
    assert first.ranges == [None]
    assert is_good(target)


def test_a_complete_partial_file_needs_no_request(first: Mirror, target: Path) -> None:
    target.with_name("file.partial").write_bytes(BODY)
    fetch(target, first)
    assert first.ranges == []
    assert is_good(target)


def test_wrong_bytes_give_way(first: Mirror, second: Mirror, target: Path) -> None:
    first.body = BODY[:-1] + b"x"
    said = fetch(target, first, second)
    assert any("wrong bytes" in line for line in said)
    assert first.ranges == second.ranges == [None]
    assert is_good(target)


def test_a_page_in_place_of_the_file_spares_the_partial_file(
    first: Mirror, second: Mirror, target: Path
) -> None:
    target.with_name("file.partial").write_bytes(BODY[:HALF])
    first.body, first.takes_ranges = b"<html>please log in</html>", False
    assert "another size" in fetch(target, first, second)[0]
    assert second.ranges == [f"bytes={HALF}-"]
    assert is_good(target)


def test_an_endless_body_is_not_read_on(first: Mirror, second: Mirror, target: Path) -> None:
    first.body, first.length = b"x" * (20 * SIZE), False
    fetch(target, first, second)
    assert first.sent < 20 * SIZE
    assert is_good(target)


def test_all_wrong_is_one_sentence_and_no_file(first: Mirror, second: Mirror, target: Path) -> None:
    first.body, second.status = b"x" * SIZE, 404
    with pytest.raises(UserError) as caught:
        fetch(target, first, second)
    said = str(caught.value)
    assert first.url in said
    assert f"{second.url} answers 404" in said
    assert f"put the file at {target} yourself" in said
    assert list(target.parent.iterdir()) == []


def test_no_mirror_is_said(target: Path) -> None:
    with pytest.raises(UserError, match=r"could not be downloaded \(no mirror is named\)"):
        fetch(target)


def test_a_full_disk_names_the_folder(first: Mirror, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(UserError, match=f"data.root={re.escape(str(target.parent))} .*No space left"):
        fetch(target, first)
    assert not target.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_fills_up_meanwhile_names_the_folder(first: Mirror, target: Path) -> None:
    target.with_name("file.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        fetch(target, first)
    assert first.ranges == [None]  # the next mirror would not help


def test_a_missing_folder_is_named(first: Mirror, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*nowhere"):
        fetch(tmp_path / "nowhere" / "file", first)
