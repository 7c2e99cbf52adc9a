"""Web servers on this machine, as storage to read from: with ranges or without, failing, or blocked."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Serve = Callable[..., str]


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; answers ranges if asked to, fails the first `failures` GETs with 503, and waits until answers flow."""

    def __init__(self, *args, ranges: bool, failures: list[int], log: list[str], flowing: threading.Event, **kwargs) -> None:
        self.ranges, self.failures, self.log, self.flowing = ranges, failures, log, flowing
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.log.append(f"GET {self.path} {self.headers.get('Range')}")
        self.flowing.wait()
        if self.failures[0] > 0:
            self.failures[0] -= 1
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not (self.ranges and wanted and path.is_file()):
            super().do_GET()
            return
        content = path.read_bytes()
        body = content[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {wanted[1]}-{int(wanted[1]) + len(body) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(folder, ranges=True, failures=0, log=[], flowing=event)` gives the folder's URL while the test runs.

    Answers are held back while `flowing` is not set, like storage that does not answer; at the end it is set.
    """
    running: list[tuple[http.server.ThreadingHTTPServer, threading.Event]] = []

    def start(
        folder: Path,
        ranges: bool = True,
        failures: int = 0,
        log: list[str] | None = None,
        flowing: threading.Event | None = None,
    ) -> str:
        flowing = flowing or threading.Event()
        flowing.set()
        settings = {"ranges": ranges, "failures": [failures], "log": [] if log is None else log, "flowing": flowing}
        handler = functools.partial(_Handler, directory=str(folder), **settings)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append((server, flowing))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, flowing in running:
        flowing.set()
        server.shutdown()
        server.server_close()
