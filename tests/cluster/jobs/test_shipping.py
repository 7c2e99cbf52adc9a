"""What is shipped to a cluster is a copy that does not change, of code and not of data or secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.jobs.shipping import is_checkout, snapshot
from pipeline.errors import UserError
from pipeline.processes.home import HOME


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def shipped(folder: Path) -> set[str]:
    with snapshot(folder) as copy:
        return {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}


def test_code_travels_and_data_secrets_and_what_is_ignored_do_not(tmp_path: Path) -> None:
    write(tmp_path, "recipe.yaml", "pipeline.py", "own/task.py", "own/keep.log", "notes.txt")
    write(tmp_path, ".env", ".git/config", "shards/a.tar", "runs/x/backbone.pt", "own/__pycache__/task.pyc", "key.pem")
    write(tmp_path, "build/out.py", "own/build.py", "own/debug.log", "big/photo.jpg")
    (tmp_path / ".gitignore").write_text("/build/\n")
    (tmp_path / "own" / ".gitignore").write_text("*.log\n!keep.log\n")
    (tmp_path / ".rayignore").write_text("big\n")
    code = {"recipe.yaml", "pipeline.py", "own/task.py", "own/keep.log", "own/build.py", "notes.txt"}
    assert shipped(tmp_path) == code | {".gitignore", "own/.gitignore", ".rayignore"}


def test_links_are_followed_once_and_what_is_no_file_stays(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/code.py", "here/recipe.yaml")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here" / "round").symlink_to(tmp_path / "here")
    (tmp_path / "here" / "nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "here" / "pipe")
    assert shipped(tmp_path / "here") == {"recipe.yaml", "linked/code.py"}


def test_the_copy_stands_still_and_is_gone_afterwards(tmp_path: Path) -> None:
    write(tmp_path, "log.txt")
    with snapshot(tmp_path) as copy:
        with (tmp_path / "log.txt").open("a") as log:
            log.write(" and more")
        (tmp_path / "new.txt").write_text("")
        assert [(path.name, path.read_text()) for path in copy.iterdir()] == [("log.txt", "log.txt")]
    assert not copy.exists()


def test_one_file_alone(tmp_path: Path) -> None:
    write(tmp_path, "recipe.yaml", "other.yaml")
    with snapshot(tmp_path, [str(tmp_path / "recipe.yaml")]) as copy:
        assert [path.name for path in copy.iterdir()] == ["recipe.yaml"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd").symlink_to("/proc/self/mem")
    with (
        pytest.raises(UserError, match=r"odd cannot be shipped \(Input/output error\): name it in .gitignore"),
        snapshot(tmp_path),
    ):
        pass


def test_more_than_a_cluster_takes_is_refused_with_what_is_largest(tmp_path: Path) -> None:
    write(tmp_path, "recipe.yaml", "photos/a.jpg")
    os.truncate(tmp_path / "photos" / "a.jpg", 600 * 2**20)
    with (
        pytest.raises(UserError, match=r"600 MiB to ship, 600 of them in photos, .* accepts 500: name in .gitignore"),
        snapshot(tmp_path),
    ):
        pass


def test_a_checkout_of_this_project_is_known(tmp_path: Path) -> None:
    assert is_checkout(HOME)
    write(tmp_path, "pipeline/__init__.py", "cluster/__init__.py")
    assert not is_checkout(tmp_path)
