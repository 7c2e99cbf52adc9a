"""Fixtures for storage: servers on this machine that answer as S3 and Google Cloud Storage do."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import pytest


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
    """A new, empty bucket for one test: `s3://...`."""
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
