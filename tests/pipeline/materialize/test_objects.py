"""Rendering to and from an object store over HTTP, with the faults that such stores have."""

from __future__ import annotations

import gc
import http.client
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import s3fs

from pipeline import storage
from pipeline.errors import UserError
from pipeline.materialize.run import render
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe
from tests.tiles import recipe_on
from tests.trainers.labelling.conftest import random_weights
from trainers.labelling.cluster import cluster
from trainers.labelling.embed import embed

MakeRecipe = Callable[..., Recipe]
Fault = Callable[[str, str], str | None]
_REFUSALS = {"503": "SlowDown", "403": "AccessDenied"}
_SOURCE = {"recipe.json", "manifest.json"}
"""The recipe names the source, and the manifest holds its checksum."""


def in_bucket(url: str) -> dict[str, bytes]:
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    root = url.removeprefix("s3://") + "/"
    return {path.removeprefix(root): fs.cat_file(path) for path in fs.find(root)}


def upload(folder: Path, url: str) -> None:
    for path in folder.iterdir():
        with storage.write_atomic(f"{url}/{path.name}") as file:
            file.write(path.read_bytes())


@pytest.fixture
def faulty(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Fault]]:
    """A proxy before the S3 server; a fault appended to the list says of (method, path) `drop`, `cut`, `503`, `403`, or None."""
    faults: list[Fault] = []
    target = urlsplit(s3_server)

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            fault = next((found for fault in faults if (found := fault(self.command, self.path))), None)
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if fault == "drop":
                self.close_connection = True
                return
            if fault in _REFUSALS:
                body = f"<Error><Code>{_REFUSALS[fault]}</Code></Error>".encode()
                self.answer(int(fault), [("Content-Type", "application/xml")], body)
                return
            connection = http.client.HTTPConnection(target.hostname or "", target.port)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            content = response.read()
            headers = [(k, v) for k, v in response.getheaders() if k.lower() not in ("transfer-encoding", "connection")]
            if fault == "cut":
                self.send_response(response.status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return
            self.answer(response.status, headers, content)

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    s3fs.S3FileSystem.clear_instance_cache()
    yield faults
    server.shutdown()
    server.server_close()
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


def times(n: int, fault: str, method: str, part: str) -> tuple[Fault, list[str]]:
    """A fault for the first n requests of a method whose path contains a text, and the list of those it hit."""
    hit: list[str] = []

    def judge(command: str, path: str) -> str | None:
        if command == method and part in path and len(hit) < n:
            hit.append(path)
            return fault
        return None

    return judge, hit


def test_from_bucket_to_bucket_gives_the_bytes_of_a_local_render(
    spec: MakeRecipe, tiles: Path, tmp_path: Path, bucket: str, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    upload(tiles, f"{bucket}/in")
    render(spec(epochs=2), str(tmp_path / "out"), here=True)
    assert render(spec(f"{bucket}/in", epochs=2), f"{bucket}/out", here=True).pairs == 144
    local, remote = tree(tmp_path / "out"), in_bucket(f"{bucket}/out")
    assert remote.keys() == local.keys()
    assert {name for name in local if local[name] != remote[name]} == _SOURCE
    assert verify(f"{bucket}/out", deep=0.2, seed=0).problems == []
    assert render(spec(f"{bucket}/in", epochs=2), f"{bucket}/out", here=True).rendered == 0


@pytest.fixture(scope="module")
def calm_bucket(s3_server: str, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bucket with three shards, `in/`, and an undisturbed render of them, `calm/`. Read-only but for `stormy-*/`."""
    url, few = "s3://test-bursts", tmp_path_factory.mktemp("few")
    s3fs.S3FileSystem().mkdir(url)
    for shard in sorted(tiles.glob("*.tar"))[:3]:
        shutil.copy(shard, few)
    upload(few, f"{url}/in")
    render(in_calm_bucket(url), f"{url}/calm", here=True)
    return url


def in_calm_bucket(url: str) -> Recipe:
    """Two tasks on its shards."""
    return recipe_on(f"{url}/in", Path("unused"), {}, {})


@pytest.mark.parametrize(
    ("fault", "method", "part"),
    [
        pytest.param("503", "PUT", "shard-", marks=pytest.mark.slow),
        ("503", "GET", "shard-"),
        ("drop", "PUT", "-e0.tar"),
        pytest.param("drop", "GET", ".tar", marks=pytest.mark.slow),
        ("cut", "GET", ".tar"),
    ],
)
def test_bursts_of_503_and_dropped_connections_are_outlived(
    calm_bucket: str, faulty: list[Fault], fault: str, method: str, part: str
) -> None:
    judge, hit = times(3, fault, method, part)
    faulty.append(judge)
    stormy = f"{calm_bucket}/stormy-{fault}-{method}"
    report = render(in_calm_bucket(calm_bucket), stormy, here=True)
    assert len(hit) == 3
    assert report.failed == {}
    assert in_bucket(stormy) == in_bucket(f"{calm_bucket}/calm")


@pytest.mark.slow
def test_features_and_clusters_from_bucket_to_bucket_outlive_the_same_faults(
    calm_bucket: str, faulty: list[Fault], tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    recipe = in_calm_bucket(calm_bucket)
    weights = random_weights(recipe, tmp_path)
    with storage.write_atomic(f"{calm_bucket}/weights/weights.pt") as file:
        file.write(Path(weights).read_bytes())
    embed(recipe, str(tmp_path / "features"), weights=weights, here=True)
    cluster(str(tmp_path / "features"), 4, str(tmp_path / "clusters"))
    judges = [times(3, "503", "GET", "in%2F"), times(2, "cut", "GET", ".tar"), times(2, "drop", "PUT", ".parquet")]
    judges += [times(2, "503", "PUT", "commits"), times(1, "cut", "GET", "weights.pt"), times(1, "503", "GET", "centroids.npy")]
    faulty.extend(judge for judge, _ in judges)
    features, clusters = f"{calm_bucket}/stormy-features", f"{calm_bucket}/stormy-clusters"
    assert embed(recipe, features, weights=f"{calm_bucket}/weights/weights.pt", here=True).failed == {}
    assert cluster(features, 4, clusters)[0].failed == {}
    assert all(hit for _, hit in judges)
    for url, folder in ((features, "features"), (clusters, "clusters")):
        local, remote = tree(tmp_path / folder), in_bucket(url)
        assert {name for name in local.keys() | remote if local.get(name) != remote.get(name)} <= _SOURCE
        assert verify(url).problems == []


def test_an_upload_that_was_never_completed_is_invisible_and_goes_away(spec: MakeRecipe, tiles: Path, bucket: str) -> None:
    recipe = spec()
    render(recipe, f"{bucket}/calm", here=True)
    calm = in_bucket(f"{bucket}/calm")
    first = next(name for name in sorted(calm) if name.endswith("-e0.tar"))
    fs, name = s3fs.S3FileSystem(), bucket.removeprefix("s3://")

    def uploads() -> list:
        return fs.call_s3("list_multipart_uploads", Bucket=name).get("Uploads", [])

    upload_id = fs.call_s3("create_multipart_upload", Bucket=name, Key=f"stormy/{first}")["UploadId"]
    fs.call_s3("upload_part", Bucket=name, Key=f"stormy/{first}", UploadId=upload_id, PartNumber=1, Body=calm[first][:20_000])
    other = fs.call_s3("create_multipart_upload", Bucket=name, Key="somebody/else")["UploadId"]
    assert in_bucket(f"{bucket}/stormy") == {}
    assert len(uploads()) == 2
    render(recipe, f"{bucket}/stormy", here=True)
    assert in_bucket(f"{bucket}/stormy") == calm
    assert [upload["UploadId"] for upload in uploads()] == [other]


def test_an_upload_that_cannot_be_taken_back_never_becomes_an_object(bucket: str, faulty: list[Fault]) -> None:
    def write() -> None:
        with storage.write_atomic(f"{bucket}/half") as file:
            file.write(bytes(17 * 2**20))  # more than a part
            raise KeyboardInterrupt("the user")

    judge, hit = times(1, "403", "DELETE", "half")
    faulty.append(judge)
    with pytest.raises(KeyboardInterrupt, match="the user"):
        write()
    gc.collect()
    assert len(hit) == 1
    assert in_bucket(bucket) == {}
    fs, name = s3fs.S3FileSystem(), bucket.removeprefix("s3://")
    assert len(fs.call_s3("list_multipart_uploads", Bucket=name)["Uploads"]) == 1
    storage.discard_unfinished(bucket, finished=True)
    assert "Uploads" not in fs.call_s3("list_multipart_uploads", Bucket=name)


@pytest.mark.parametrize(
    ("method", "part", "words"),
    [
        ("PUT", "/out/", "out cannot be written: .*access denied"),
        ("DELETE", "/out/", "out cannot be written: .*access denied"),
        ("GET", "identity.json", "out cannot be read: .*access denied"),
        ("GET", "in%2F", "shards cannot be listed: .*access denied"),
    ],
)
def test_a_denied_key_is_one_line_before_anything_is_read(
    spec: MakeRecipe, tiles: Path, bucket: str, faulty: list[Fault], method: str, part: str, words: str
) -> None:
    upload(tiles, f"{bucket}/in")
    storage.remove(f"{bucket}/in/index.parquet")  # so that there is something to read first
    judge, hit = times(1000, "403", method, part)
    faulty.append(judge)
    read: list[int] = []
    with pytest.raises(UserError, match=words) as refused:
        render(spec(f"{bucket}/in"), f"{bucket}/out", here=True, indexing=lambda done, total: read.append(done))
    assert hit
    assert read == []
    assert "\n" not in str(refused.value)
    assert not [name for name in in_bucket(f"{bucket}/out") if not name.startswith(".")]


@pytest.mark.slow
def test_a_render_by_ray_actors_that_is_told_to_stop_goes_on_where_it_was(
    spec: MakeRecipe, tiles: Path, tmp_path: Path, bucket: str, faulty: list[Fault], tree: Callable[[Path], dict[str, bytes]]
) -> None:
    """The actors get keys and endpoint from the environment; the signal comes while a shard is being committed."""
    upload(tiles, f"{bucket}/in")
    place = {"placement": {"actors": 2, "cpus": 0.5}}
    recipe = spec(f"{bucket}/in", place, epochs=2)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    words = [sys.executable, "-m", "pseudolabel", "render", str(tmp_path / "recipe.json"), "--out", f"{bucket}/out"]
    begun: list[str] = []
    reached, told = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> None:
        if method == "PUT" and "/commits/" in path and not told.is_set():
            begun.append(path)
            if len(begun) >= 3:
                reached.set()
                told.wait(180)

    faulty.append(hold)
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert reached.wait(180)
    driver.send_signal(signal.SIGTERM)
    told.set()
    _, said = driver.communicate(timeout=180)
    assert driver.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted: committed shards are kept, and the same command goes on from there"
    left = in_bucket(f"{bucket}/out")
    assert "manifest.json" not in left
    assert len([name for name in left if name.startswith("commits/")]) < 8

    again = render(recipe, f"{bucket}/out", here=True)
    assert (again.shards, again.rendered < 8) == (8, True)
    render(spec(epochs=2), str(tmp_path / "out"), here=True)
    local, remote = tree(tmp_path / "out"), in_bucket(f"{bucket}/out")
    assert {name for name in local.keys() | remote if local.get(name) != remote.get(name)} == _SOURCE
    for name in left.keys() - {"render.unfinished"}:
        assert remote[name] == left[name], "what is committed stays as it was"


def test_google_storage_gives_the_bytes_of_a_local_render(
    spec: MakeRecipe, tiles: Path, tmp_path: Path, gs_bucket: str, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    upload(tiles, f"{gs_bucket}/in")
    render(spec(), str(tmp_path / "out"), here=True)
    assert render(spec(f"{gs_bucket}/in"), f"{gs_bucket}/out", here=True).pairs == 72
    there = {name: storage.read_all(f"{gs_bucket}/out/{name}") for name, _ in storage.walk(f"{gs_bucket}/out")}
    local = tree(tmp_path / "out")
    assert {name for name in local.keys() | there if local.get(name) != there.get(name)} == _SOURCE
    assert verify(f"{gs_bucket}/out").problems == []
    with pytest.raises(UserError, match=r"gs://nobody-has-this/out cannot be"):
        render(spec(), "gs://nobody-has-this/out", here=True)


def test_a_missing_bucket_and_an_unknown_scheme_are_one_line_at_the_start(spec: MakeRecipe, s3_server: str) -> None:
    with pytest.raises(UserError, match=r"s3://nobody-has-this/out cannot be"):
        render(spec(), "s3://nobody-has-this/out", here=True)
    with pytest.raises(UserError, match="unknown kind of storage"):
        render(spec(), "nowhere://x/out", here=True)
