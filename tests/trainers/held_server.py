"""A web server that holds its answers back when it is told to, as storage does that stands still."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args, flowing: threading.Event, **kwargs) -> None:
        self.flowing = flowing
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.flowing.wait()
        super().do_GET()

    def log_message(self, *args) -> None:
        pass


@contextmanager
def held_server(folder: Path) -> Iterator[tuple[str, threading.Event]]:
    """The URL of a folder, and the event that answers wait for while it is not set; it is set at first and at the end."""
    flowing = threading.Event()
    flowing.set()
    handler = functools.partial(_Handler, directory=str(folder), flowing=flowing)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", flowing
    finally:
        flowing.set()
        server.shutdown()
        server.server_close()
