"""A server on this machine that stands in for a mirror of the data, and misbehaves as a test wishes."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror:
    """Serves `body`, unless told otherwise; keeps what it was asked and how many bytes it sent."""

    def __init__(self, body: bytes) -> None:
        self.ranges: list[str | None] = []  # of each request
        self.sent = 0
        self.body = body
        self.status = 200
        self.cuts: list[int | None] = []  # for each request in turn, the byte of the body it ends before
        self.takes_ranges = True
        self.range_shift = 0  # answers another range than was asked for
        self.length: bool | int = True  # whether, or which, Content-Length is sent
        self.pause: Callable[[int], None] = lambda done: None  # called before each 64 KiB
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.ranges.append(asked)
        cut = self.cuts.pop(0) if self.cuts else None
        start = 0
        if self.status != 200:
            return handler.send_error(self.status)
        if asked and self.takes_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + self.range_shift
            if start >= len(self.body):
                return handler.send_error(416)
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        else:
            handler.send_response(200)
        if self.length:
            length = len(self.body) - start if self.length is True else self.length
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        for at in range(start, len(self.body) if cut is None else cut, 1 << 16):
            self.pause(at)
            block = self.body[at : min(at + (1 << 16), len(self.body) if cut is None else cut)]
            self.sent += len(block)  # before it goes: who has it may look at once
            handler.wfile.write(block)


@contextmanager
def serving(mirror: Mirror) -> Iterator[Mirror]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):
                mirror.answer(self)

        def log_message(self, *args: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads, http.block_on_close = True, False
    mirror.url = f"http://127.0.0.1:{http.server_address[1]}/file"
    thread = threading.Thread(target=partial(http.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    yield mirror
    http.shutdown()
    http.server_close()
