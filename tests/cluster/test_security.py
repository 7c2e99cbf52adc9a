"""Security: no open ports, no code from data, no files outside the output, no secrets in what is written and printed."""

from __future__ import annotations

import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from skimage import data as photos_of_skimage

from pipeline import pairs
from pipeline.errors import RunError, UserError
from pipeline.materialize.run import render
from pipeline.recipe import Recipe, load_recipe, parse_recipe
from pipeline.shards import naming
from pipeline.shards.pack import pack
from pipeline.storage import write_atomic
from tests.cluster.conftest import Call
from trainers.running.runs import RunFolder

_SECRET = "hunter2"


def photo() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(photos_of_skimage.chelsea()[:60, :60]).save(buffer, "jpeg")
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def recipe_on(shards: Path | str, tmp_path: Path, **sections: Any) -> Recipe:
    document = {
        "name": "safe",
        "seed": 1,
        "corpus": {"shards": str(shards)},
        "image": {"size": 32},
        "tasks": {"rotation": {}},
        "engine": "cpu",
        "storage": {"runs": str(tmp_path / "runs")},
    }
    return parse_recipe({**document, **sections})


# Ports

_LISTENERS = """
import json, psutil, sys
from pipeline.recipe import load_recipe
recipe = load_recipe(sys.argv[1])
{start}
import ray
@ray.remote(num_cpus=0)
def work(): return 1
ray.get(work.remote())
found = set()
for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
    try:
        found |= {{c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"}}
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            raise
print(json.dumps([sorted(found), ray.cluster_resources()["CPU"]]))
"""


@pytest.mark.parametrize(
    "start",
    [
        pytest.param("from trainers.running.session import connect; connect(recipe)", id="of a command", marks=pytest.mark.slow),
        pytest.param("import ray; from pipeline import dataset; dataset(recipe)", id="of a user's own Ray Dataset"),
        pytest.param(
            "import ray; from pipeline import dataset; dataset(recipe).take(1)", id="of one that is read", marks=pytest.mark.slow
        ),
    ],
)
def test_a_ray_of_our_own_listens_on_loopback_only_and_has_a_cpu_more_for_ray_data(start: str, recipe_file: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    call = [sys.executable, "-c", _LISTENERS.format(start=start), str(recipe_file)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found, cpus = json.loads(done.stdout)
    assert [line for line in done.stderr.splitlines() if "INFO" in line] == [], "Ray's own lines"
    assert found
    assert set(found) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert cpus == (os.cpu_count() or 1) + 1


# Code from data


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._mark),))


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))  # noqa: S301
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir [{}]", "!!python/name:os.mkdir"]
)
def test_recipes_are_data(tmp_path: Path, tag: str) -> None:
    path, mark = tmp_path / "recipe.yaml", tmp_path / "mark"
    value = tag.format(mark)
    path.write_text(f"name: x\nseed: 0\ncorpus: {{shards: s}}\nstorage: {{runs: {value}}}\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(path)
    path.write_text("name: x\nseed: 0\ncorpus: {shards: s}\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(path, [f"storage.runs={value}"])
    assert not mark.exists()


def test_pickles_in_a_corpus_are_bytes_and_nothing_else(call: Call, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bomb, array, torched = pickle.dumps(Bomb(mark)), io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Bomb(mark)], object), allow_pickle=True)
    torch.save(Bomb(mark), torched)
    others = {"pyd": bomb, "pickle": bomb, "pkl": bomb, "npy": array.getvalue(), "pth": torched.getvalue(), "cls": b"0"}
    (tmp_path / "shards").mkdir()
    members = {f"{key}.{ext}": body for key in ("a", "b") for ext, body in {"jpg": photo(), **others}.items()}
    shard(tmp_path / "shards" / "one.tar", {**members, "only.pyd": bomb})
    spec = recipe_on(tmp_path / "shards", tmp_path, failures={"budget": 1}, training={"batch": 2})
    assert call("inspect", tmp_path / "shards", "--deep").exit_code == 0
    assert sum(len(batch["id"]) for batch in pairs(spec)) == 2
    report = render(spec, str(tmp_path / "out"), here=True)
    assert (report.pairs, report.quarantined) == (2, 1)
    assert call("verify", tmp_path / "out", "--deep", "--share", "1").exit_code == 0
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        kept = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    assert all(kept[f"a.{ext}"] == body for ext, body in others.items())
    assert not mark.exists()


def test_weights_that_hold_code_are_not_run(tmp_path: Path) -> None:
    spec, mark = recipe_on("s", tmp_path), tmp_path / "mark"
    folder = RunFolder(spec)
    folder.make()
    content = io.BytesIO()
    torch.save({"backbone": Bomb(mark)}, content)
    with write_atomic(folder.path("backbone.pt")) as file:
        file.write(content.getvalue())
    with pytest.raises(pickle.UnpicklingError):
        folder.read_weights("backbone.pt")
    assert not mark.exists()


def test_nothing_of_ours_unpickles_or_evaluates_text() -> None:
    """The linter's rules on this are on, and no line of the packages turns them off."""
    root = Path(__file__).parents[2]
    rules = {"S102", "S301", "S307"}
    assert rules <= set((root / "pyproject.toml").read_text().replace('"', " ").replace(",", " ").split())
    sources = [path for plane in ("pipeline", "trainers", "cluster", "pseudolabel") for path in (root / plane).rglob("*.py")]
    assert sources
    assert [path for path in sources if any(f"noqa: {rule}" in path.read_text() for rule in rules)] == []


# Paths

_EVIL = (
    "../../up.jpg",
    "../side.jpg",
    "/etc/root.jpg",
    "a/../../b.jpg",
    "c/./d.jpg",
    "..",
    "....//e.jpg",
    "~/home.jpg",
    "x\\..\\y.jpg",
)


def test_no_name_in_a_corpus_leads_outside_the_output(call: Call, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "er"
    (place / "shards").mkdir(parents=True)
    evil = shard(place / "shards" / "one.tar", {name: photo() for name in _EVIL})
    with tarfile.open(evil, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = set(tmp_path.rglob("*"))
    spec = recipe_on(place / "shards", place, failures={"budget": 10}, render={"keep_bad": True})
    report = render(spec, str(place / "out"), here=True)
    assert report.pairs >= 6
    packed = call("pack", evil, place / "packed")
    assert packed.exit_code in (0, 2), packed.output
    new = [path.relative_to(place).parts[0] for path in set(tmp_path.rglob("*")) - before]
    assert set(new) <= {"out", "packed", "packed.pack.result.json", "shards"}  # an index is made beside the shards
    for path in (place / "out").rglob("*"):
        assert path.resolve().is_relative_to(place / "out")
    assert not Path("/etc/root.jpg").exists()


def test_a_manifest_does_not_lead_outside_its_folder_either(tmp_path: Path) -> None:
    """The names of rendered files are a function of the shards' names, of which the last part counts, made plain."""
    (tmp_path / "shards").mkdir()
    shard(tmp_path / "shards" / "..%2f..%2fone two.tar", {"a.jpg": photo()})
    render(recipe_on(tmp_path / "shards", tmp_path), str(tmp_path / "out"), here=True)
    names = [path.name for path in (tmp_path / "out").glob("*.tar")]
    assert len(names) == 1
    assert set(names[0]) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


_COMMANDS = {"../../\x1b[2Jup.jpg": 1, "/abs\x9b.jpg": 1, "bad\x1b]0;title\x07.jpg": 0, "d\rir/new\nline.jpg": 1}
"""Names with control characters for a terminal, and whether their file is an image."""


def test_names_reach_neither_the_terminal_nor_a_rendered_tar_as_they_are(call: Call, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    evil = shard(tmp_path / "shards" / "one.tar", {name: photo() if good else b"no" for name, good in _COMMANDS.items()})
    (tmp_path / "\x1b[31mred").mkdir()
    for words in (("inspect", evil, "--deep"), ("pack", evil, tmp_path / "packed"), ("inspect", tmp_path / "\x1b[31mred")):
        said = call(*words)
        assert said.output.replace("\n", "").isprintable()
    spec = recipe_on(tmp_path / "shards", tmp_path, failures={"budget": 10}, render={"keep_bad": True})
    render(spec, str(tmp_path / "out"), here=True)
    names = []
    for path in (tmp_path / "out").rglob("*.tar"):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert len({name.partition(".")[0] for name in names}) == len(_COMMANDS)
    assert all(naming.plain(name) == name for name in names)


# Secrets


@pytest.fixture
def served(photos: Path, tmp_path: Path) -> Iterator[str]:
    """Shards behind a password and a signature, on this machine; yields their URL with both."""
    pack(str(photos), str(tmp_path / "served"), shard_size=10**6)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:{_SECRET}@127.0.0.1:{server.server_port}/shard-000000.tar?sig={_SECRET}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "place", ["s3://KEY:{}@bucket/x.tar", "http://me:{}@127.0.0.1:1/x.tar", "http://127.0.0.1:1/x.tar?sig={}"]
)
def test_a_secret_with_slashes_is_neither_printed_nor_in_the_result(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for module in ("files", "listing"):
        monkeypatch.setattr(f"pipeline.storage.{module}.pause", lambda attempt: None)
    url = place.format("hunt/er22/hunter2")
    path = tmp_path / "recipe.yaml"
    document = {"name": "x", "seed": 0, "corpus": {"shards": url}, "tasks": {"rotation": {}}, "storage": {"runs": str(tmp_path)}}
    path.write_text(yaml.safe_dump(document))
    for words in (("pack", url, tmp_path / "o"), ("inspect", url), ("preview", path), ("verify", url)):
        said = call(*words)
        assert said.exit_code, said.output
        assert "er22" not in said.output
        assert "hunter2" not in said.output
    path.unlink()
    assert secrets_below(tmp_path) == []


def secrets_below(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and _SECRET.encode() in path.read_bytes()]


def test_secrets_of_urls_are_neither_printed_nor_written(call: Call, served: str, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    spec = recipe_on(served, tmp_path / "o", training={"backbone": {"name": "resnet10"}})
    report = render(spec, str(tmp_path / "o" / "pairs"), here=True)
    assert report.pairs == 24
    folder = RunFolder(spec)
    folder.make()
    folder.write_json("recipe.json", spec.model_dump(mode="json"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "seed": 0, "corpus": {"shards": served.replace("000000", "000009")}}))
    said = call("preview", path, "-o", tmp_path / "o" / "sheet.png")
    assert said.exit_code == 2, said.output
    assert "127.0.0.1" in said.output
    assert _SECRET not in said.output
    with pytest.raises((UserError, RunError)):
        next(iter(pairs(load_recipe(path))))
    assert secrets_below(tmp_path / "o") == []
    assert json.loads((tmp_path / "o" / "pairs" / "manifest.json").read_text())
