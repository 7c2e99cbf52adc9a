"""Storage to test on: web servers on this machine, and an S3 server in a thread."""

from __future__ import annotations

import functools
import http.server
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Serve = Callable[..., str]


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; answers ranges if asked to, and fails the first `failures` GETs with 503."""

    def __init__(self, *args, ranges: bool, failures: list[int], log: list[str], **kwargs) -> None:
        self.ranges, self.failures, self.log = ranges, failures, log
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.log.append(f"GET {self.path} {self.headers.get('Range')}")
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
    """`serve(folder, ranges=True, failures=0, log=[])` gives the folder's URL while the test runs."""
    running: list[http.server.ThreadingHTTPServer] = []

    def start(folder: Path, ranges: bool = True, failures: int = 0, log: list[str] | None = None) -> str:
        handler = functools.partial(
            _Handler, directory=str(folder), ranges=ranges, failures=[failures], log=[] if log is None else log
        )
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 server on this machine, which s3fs finds by the environment."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield endpoint
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(s3_server: str, request: pytest.FixtureRequest) -> str:
    """An empty bucket of this test's own: `s3://...`."""
    import s3fs

    plain = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    name = f"test-{plain[:40].strip('-')}-{zlib.crc32(request.node.name.encode()):08x}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def gs_server() -> Iterator[None]:
    """A server that answers as Google Cloud Storage does, on this machine, which gcsfs finds by the environment."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    gcsfs = pytest.importorskip("gcsfs")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_address[1]}")
        environment.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would look for credentials
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield
        gcsfs.GCSFileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def gs_bucket(gs_server: None) -> str:
    """An empty bucket: `gs://...`."""
    import gcsfs

    gcsfs.GCSFileSystem().mkdir("test-render")
    return "gs://test-render"
