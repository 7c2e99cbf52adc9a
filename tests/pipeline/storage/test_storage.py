"""Storage lists, reads and writes in the same way on every kind of URL, and its errors say what is wrong."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from fsspec.registry import _registry
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import UserError
from pipeline.storage import Listed, expand
from tests.pipeline.children import run_python


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())


def interrupted_write(url: str, body: bytes) -> None:
    with storage.write_atomic(url) as file:
        file.write(body)
        raise KeyboardInterrupt


def names_of(found: list[Listed]) -> list[str]:
    return [listed.url.rpartition("/")[2] for listed in found]


def test_a_folder_means_its_tars_in_order_with_their_sizes(tmp_path: Path) -> None:
    write(tmp_path, "b.tar", "a.tar", "notes.txt", "a.members.parquet")
    (tmp_path / "folder.tar").mkdir()
    assert expand(str(tmp_path)) == [Listed(f"{tmp_path}/a.tar", 5), Listed(f"{tmp_path}/b.tar", 5)]


def test_braces_globs_and_lists_keep_the_order_given(tmp_path: Path) -> None:
    write(tmp_path, *(f"s-{n:03d}.tar" for n in range(20)), "z.tar")
    assert names_of(expand(f"{tmp_path}/s-{{003..001}}.tar")) == ["s-003.tar", "s-002.tar", "s-001.tar"]
    assert names_of(expand(f"{tmp_path}/s-{{000..019}}.tar")) == [f"s-{n:03d}.tar" for n in range(20)]
    assert names_of(expand(f"{tmp_path}/s-01?.tar")) == [f"s-{n:03d}.tar" for n in range(10, 20)]
    assert names_of(expand([f"{tmp_path}/z.tar", f"{tmp_path}/s-000.tar", f"{tmp_path}/s-{{001,00[2-3]}}.tar"])) == [
        "z.tar",
        "s-000.tar",
        "s-001.tar",
        "s-002.tar",
        "s-003.tar",
    ]


def test_braces_may_name_folders(tmp_path: Path) -> None:
    write(tmp_path / "a", "1.tar")
    write(tmp_path / "b", "2.tar")
    assert names_of(expand(f"{tmp_path}/{{b,a}}")) == ["2.tar", "1.tar"]


def test_local_names_may_be_relative_or_hold_spaces_home_and_pattern_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = "my {odd} [folder]*"
    write(tmp_path / odd, "a b.tar", "c{1}.tar")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = [Listed(f"{tmp_path}/{odd}/a b.tar", 7)]
    assert expand(f"{odd}/a b.tar") == expected
    assert expand(f"~/{odd}/a b.tar") == expected
    assert expand(f"file://{tmp_path}/{odd}/a b.tar") == expected
    assert expand(f"{odd}/a*.tar") == expected
    assert names_of(expand(odd)) == ["a b.tar", "c{1}.tar"]


def test_a_shard_of_a_pattern_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path, *(f"{n:02d}.tar" for n in range(12) if n != 7))
    with pytest.raises(UserError, match=r"07\.tar: no such shard \(1 of the 12 named are missing\)"):
        expand(f"{tmp_path}/{{00..11}}.tar")
    with pytest.raises(UserError, match=r"07\.tar: no such shard"):
        expand(f"{tmp_path}/{{06..08}}.tar")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "this folder holds no shards"),
        ("/nowhere", "no such shard or folder"),
        ("/*.tar", "nothing matches"),
        ("/{a,b.tar", "braces do not match"),
        ("/zipped", "x.tar.gz is compressed: unpack it first"),
    ],
)
def test_what_matches_nothing_is_refused_in_words(tmp_path: Path, pattern: str, words: str) -> None:
    write(tmp_path / "zipped", "x.tar.gz")
    with pytest.raises(UserError, match=words):
        expand(f"{tmp_path}{pattern}")


def test_a_shard_named_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.tar")
    with pytest.raises(UserError, match=r"a\.tar is named twice"):
        expand([str(tmp_path), f"{tmp_path}/a.tar"])


def test_unknown_and_uninstalled_kinds_of_storage_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown kind of storage 'nosuch://'"):
        expand("nosuch://x/a.tar")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gs", raising=False)  # where it was in use before
    with pytest.raises(UserError, match=r"pip install --constraint constraints.txt --editable '\.\[gcs\]'"):
        expand("gs://bucket/a.tar")


def test_a_hundred_thousand_shards_cost_one_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    calls = {"ls": 0, "info": 0}

    def ls(self: MemoryFileSystem, path: str, detail: bool = True, **kwargs: object) -> list[dict[str, object]]:
        calls["ls"] += 1
        return [{"name": f"{path}/{n:06d}.tar", "size": n, "type": "file"} for n in range(100_000)]

    def info(self: MemoryFileSystem, path: str, **kwargs: object) -> dict[str, object]:
        calls["info"] += 1
        raise FileNotFoundError(path)

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    monkeypatch.setattr(MemoryFileSystem, "info", info)
    found = expand("memory://big/{000000..099999}.tar")
    assert [listed.size for listed in found] == list(range(100_000))
    assert calls == {"ls": 1, "info": 0}


@pytest.mark.parametrize("kind", ["local", "memory", "s3", "http"])
def test_ranges_come_back_in_the_order_asked(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    content = bytes(range(256)) * 40
    url = {
        "local": lambda: f"{tmp_path}/x",
        "memory": lambda: "memory://ranges/x",
        "s3": lambda: request.getfixturevalue("bucket") + "/x",
        "http": lambda: request.getfixturevalue("serve")(tmp_path) + "/x",
    }[kind]()
    with storage.write_atomic(f"{tmp_path}/x" if kind == "http" else url) as file:
        file.write(content)
    assert storage.read_ranges(url, [(5000, 5010), (0, 3), (7, 7), (10_000, 10_240)]) == [
        content[5000:5010],
        content[:3],
        b"",
        content[10_000:],
    ]
    assert storage.read_range(url, 10_200, 99_999) == content[10_200:]
    assert storage.read_all(url) == content
    with storage.open_seekable(url) as opened:
        opened.seek(9000)
        assert opened.read(10) == content[9000:9010]
        opened.seek(0)
        assert opened.read() == content


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=6))
def test_ranges_are_slices(ranges: list[tuple[int, int]]) -> None:
    content = os.urandom(200)
    with storage.write_atomic("memory://slices/x") as file:
        file.write(content)
    assert storage.read_ranges("memory://slices/x", ranges) == [content[start:end] for start, end in ranges]


def test_a_server_that_ignores_ranges_is_read_all_the_same(tmp_path: Path, serve) -> None:
    write(tmp_path, "0123456789.tar")
    (tmp_path / "empty.tar").touch()
    log: list[str] = []
    url = serve(tmp_path, ranges=False, log=log)
    assert storage.read_ranges(f"{url}/0123456789.tar", [(2, 4), (6, 8)]) == [b"23", b"67"]
    log.clear()
    with storage.open_seekable(f"{url}/0123456789.tar") as file:
        for _ in range(3):
            file.seek(3)
            assert file.read(2) == b"34"
    assert len(log) == 1, "fetched once, not once a read"
    with storage.open_seekable(f"{url}/empty.tar") as file:
        assert file.read() == b""


def test_passing_failures_of_a_server_are_tried_again(tmp_path: Path, serve) -> None:
    write(tmp_path, "a.tar")
    log: list[str] = []
    url = serve(tmp_path, failures=2, log=log)
    assert storage.read_range(f"{url}/a.tar", 1, 4) == b".ta"
    assert len(log) == 3


def test_missing_files_are_told_from_other_failures(tmp_path: Path, serve, bucket: str) -> None:
    for url in (f"{tmp_path}/no", "memory://nowhere/no", f"{serve(tmp_path)}/no", f"{bucket}/no"):
        assert not storage.exists(url)
        with pytest.raises(FileNotFoundError, match="no"):
            storage.read_range(url, 0, 1)


def test_shards_over_http_are_sized_by_head(tmp_path: Path, serve) -> None:
    write(tmp_path, *(f"{n}.tar" for n in range(12)))
    log: list[str] = []
    url = serve(tmp_path, log=log)
    assert expand(f"{url}/{{0..11}}.tar")[10:] == [Listed(f"{url}/10.tar", 6), Listed(f"{url}/11.tar", 6)]
    assert log == [], "no body was fetched"
    assert names_of(expand(f"{url}/3.tar?token=a*b")) == ["3.tar?token=a*b"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/{0..2}.tar", r"/2\.tar: no such shard \(1 of the 3"),
        ("/*.tar", "nothing can be listed; write braces"),
        ("/", "this is a web page; over http nothing can be listed"),
    ],
)
def test_what_http_cannot_give_is_refused_in_words(tmp_path: Path, serve, path: str, words: str) -> None:
    write(tmp_path, "0.tar", "1.tar")
    with pytest.raises(UserError, match=words):
        expand(serve(tmp_path) + path)


def test_s3_shards_are_found_by_folder_glob_and_braces(bucket: str) -> None:
    for n in range(12):
        with storage.write_atomic(f"{bucket}/train/{n:02d}.tar") as file:
            file.write(bytes(n))
    everything = [Listed(f"{bucket}/train/{n:02d}.tar", n) for n in range(12)]
    assert expand(f"{bucket}/train/") == everything
    assert expand(f"{bucket}/train/*.tar") == everything
    assert expand(f"{bucket}/train/{{00..11}}.tar") == everything
    assert expand(f"{bucket}/train/03.tar") == everything[3:4]
    with pytest.raises(UserError, match=r"12\.tar: no such shard"):
        expand(f"{bucket}/train/{{00..12}}.tar")
    with storage.write_atomic(f"{bucket}/train/12.tar") as file:
        file.write(b"new")
    assert len(expand(f"{bucket}/train/")) == 13, "listings are not remembered"


def test_a_missing_bucket_is_named_as_such(s3_server: str) -> None:
    with pytest.raises(UserError, match="there is no bucket of that name"):
        expand("s3://no-such-bucket/a.tar")
    with pytest.raises(UserError, match="there is no bucket of that name"):
        expand("s3://no-such-bucket/{00..20}.tar")


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_a_write_that_fails_leaves_nothing_and_keeps_what_was_there(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = {
        "local": lambda: str(tmp_path),
        "memory": lambda: "memory://atomic",
        "s3": lambda: request.getfixturevalue("bucket"),
    }[kind]()
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(f"{folder}/new", b"half")
    assert storage.names(folder) == []
    with storage.write_atomic(f"{folder}/new") as file:
        file.write(b"whole")
        assert not storage.exists(f"{folder}/new")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(f"{folder}/new", b"half again")
    assert storage.names(folder) == ["new"]
    assert storage.read_all(f"{folder}/new") == b"whole"


def test_an_interrupted_multipart_upload_is_aborted(bucket: str) -> None:
    import s3fs

    with pytest.raises(KeyboardInterrupt):
        interrupted_write(f"{bucket}/big", bytes(60 * 2**20))
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    assert fs.list_multipart_uploads(bucket.removeprefix("s3://")) == []
    assert storage.names(bucket) == []


def test_http_storage_is_read_only(tmp_path: Path, serve) -> None:
    with pytest.raises(PermissionError, match="http storage cannot be written"), storage.write_atomic(serve(tmp_path) + "/x"):
        raise AssertionError("the block must not be entered")


def test_a_walk_follows_links_once_and_shows_those_that_lead_nowhere(tmp_path: Path) -> None:
    write(tmp_path / "b", "2.txt")
    write(tmp_path / "a" / "deep", "1.txt")
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    found = dict(storage.walk(str(tmp_path)))
    assert found["a/deep/1.txt"] == found["b/2.txt"] == found["linked/2.txt"] == 5
    assert found["broken"] == -1
    assert list(found) == sorted(found)


def test_removing_what_is_gone_is_no_error(tmp_path: Path, bucket: str) -> None:
    write(tmp_path, "x")
    for url in (f"{tmp_path}/x", f"{tmp_path}/x", f"{bucket}/x"):
        storage.remove(url)
        assert not storage.exists(url)


def test_what_a_dead_writer_left_is_removed_and_a_living_ones_file_is_not(tmp_path: Path) -> None:
    killed = """
        import os, signal, sys
        from pipeline import storage
        with storage.write_atomic(sys.argv[1]) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_python(killed, str(tmp_path / "dead.tar")).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with storage.write_atomic(f"{tmp_path}/alive.tar") as file:
        file.write(b"first half, ")
        for finished in (False, True):
            storage.discard_unfinished(str(tmp_path), finished)
            assert not left.exists()
            assert len(list(tmp_path.iterdir())) == 1
        file.write(b"second half")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("alive.tar", b"first half, second half")]


def test_whether_a_folder_can_be_written_is_seen_without_a_trace(tmp_path: Path) -> None:
    storage.check_writable(f"{tmp_path}/not/made/yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        storage.check_writable(f"{tmp_path}/file/out")
    with pytest.raises(OSError, match="http storage cannot be written"):
        storage.check_writable("http://127.0.0.1/out")
