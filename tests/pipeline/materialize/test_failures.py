"""Bad shards, bad samples and bad storage are reported and counted, and nothing that is committed is harmed."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import BudgetExceeded, RunError, UserError
from pipeline.materialize.rendered import for_training
from pipeline.materialize.run import Progress, render
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe
from tests.pipeline.children import run_python
from tests.pipeline.materialize.storm import settle
from tests.pipeline.rendering.test_crash_safe import blind, killer

__all__ = ["blind"]  # a fixture

MakeRecipe = Callable[..., Recipe]
MakeTar = Callable[..., Path]
Tree = Callable[[Path], dict[str, bytes]]


def photo(colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 40), (colour, 100, 50)).save(buffer, "jpeg")
    return buffer.getvalue()


def quarantine(out: Path) -> list[dict]:
    return pq.read_table(out / "quarantine.parquet").to_pylist()


def test_damaged_shards_fail_with_a_reason_and_the_others_go_on(spec: MakeRecipe, corpus: Path, tmp_path: Path) -> None:
    shards = sorted(corpus.glob("*.tar"))
    whole = [path.read_bytes() for path in shards]
    shards[1].write_bytes(whole[1][: len(whole[1]) // 2])
    with tarfile.open(shards[4]) as archive:
        middle = archive.getmembers()[4].offset
    shards[4].write_bytes(whole[4][:middle] + b"\xff" * 512 + whole[4][middle + 512 :])
    for path in corpus.glob("*.parquet"):
        path.unlink()  # an index would be believed of the damaged shard, whose size is right
    out = tmp_path / "out"
    report = render(spec(corpus), str(out), here=True)
    assert sorted(report.failed) == [shards[1].name, shards[4].name]
    assert "truncated" in report.failed[shards[1].name]
    assert "damaged" in report.failed[shards[4].name]
    assert report.rendered == 6
    assert {problem.file for problem in verify(str(out)).problems} == {shards[1].name, shards[4].name}

    with pytest.raises(UserError, match="2 shards failed; complete it"):
        for_training(spec(out))

    assert render(spec(corpus), str(out), here=True).rendered == 0, "failed shards are not tried again unless that is asked for"
    assert sorted(render(spec(corpus), str(out), retry_failed=True, here=True).failed) == sorted(report.failed)
    for i in (1, 4):
        shards[i].write_bytes(whole[i])
    report = render(spec(corpus), str(out), retry_failed=True, here=True)
    assert (report.rendered, report.failed, report.pairs) == (2, {}, 72)
    assert verify(str(out)).problems == []
    assert not list((out / "failed").iterdir())


@pytest.mark.usefixtures("local_ray")
def test_a_shard_that_vanishes_or_is_cut_under_way_fails_alone(
    spec: MakeRecipe, corpus: Path, tmp_path: Path, tree: Tree
) -> None:
    render(spec(corpus), str(tmp_path / "calm"), here=True)
    shards = sorted(corpus.glob("*.tar"))

    def at_the_start(progress: Progress) -> None:
        if progress.shards_done == 0:
            shutil.move(shards[6], tmp_path / "elsewhere.tar")
            shards[7].write_bytes(shards[7].read_bytes()[:2000])

    report = render(spec(corpus), str(tmp_path / "out"), progress=at_the_start)
    assert sorted(report.failed) == [shards[6].name, shards[7].name]
    assert "is gone since the corpus was opened" in report.failed[shards[6].name]
    assert "2000 bytes" in report.failed[shards[7].name]
    assert report.rendered == 6
    calm, found = tree(tmp_path / "calm"), tree(tmp_path / "out")
    done = {name for name in calm if name.startswith(("shard-", "commits/")) and not re.search("shard-00000[67]", name)}
    assert {name: found.get(name) for name in done} == {name: calm[name] for name in done}


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_every_kind_of_bad_sample_is_a_quarantine_row(spec: MakeRecipe, tmp_path: Path, make_tar: MakeTar, form: str) -> None:
    good = [(f"good/{n}.jpg", photo(n)) for n in range(3)]
    bad = [
        ("bad/text.jpg", b"not an image"),
        ("bad/empty.jpg", b""),
        ("bad/two.jpg", photo(9)),
        ("bad/two.jpg", photo(10)),
        ("bad/none.txt", b"no image here"),
        ("good/0.jpg", photo(11)),
    ]
    make_tar(tmp_path / "in" / "mixed.tar", good + bad)
    make_tar(tmp_path / "in" / "empty.tar", [])
    make_tar(tmp_path / "in" / "only-bad.tar", [(f"x/{n}.jpg", b"nothing") for n in range(4)])
    out = tmp_path / "out"
    report = render(spec(tmp_path / "in", {"failures": {"budget": 20}}, format=form, keep_bad=True), str(out), here=True)
    assert (report.shards, report.samples, report.pairs, report.quarantined, report.failed) == (3, 12, 3, 9, {})
    rows = quarantine(out)
    reasons = {(row["shard"], row["key"], row["row"]): row["reason"] for row in rows}
    assert "not a decodable image" in reasons["mixed.tar", "bad/text", 3]
    assert "empty file" in reasons["mixed.tar", "bad/empty", 4]
    assert "two members with extension jpg" in reasons["mixed.tar", "bad/two", 5]
    assert "no image member" in reasons["mixed.tar", "bad/none", 6]
    assert "came before" in reasons["mixed.tar", "good/0", 7]
    assert len([key for key in reasons if key[0] == "only-bad.tar"]) == 4
    (text,) = [row for row in rows if row["key"] == "bad/text"]
    assert text["bytes"] == 12
    assert text["sha256"] == hashlib.sha256(b"not an image").hexdigest()
    with tarfile.open(next((out / "quarantine").glob("mixed-*.tar"))) as kept:
        assert kept.extractfile("bad/text.jpg").read() == b"not an image"  # type: ignore[union-attr]
    assert verify(str(out)).problems == []


def test_files_that_could_not_be_decoded_are_all_kept_where_they_have_one_key(
    spec: MakeRecipe, tmp_path: Path, make_tar: MakeTar
) -> None:
    bodies = [b"first", b"second", b"third"]
    pieces = [("twin.jpg", bodies[0]), ("a.jpg", photo(1)), ("twin.jpg", bodies[1]), ("b.jpg", photo(2)), ("twin.jpg", bodies[2])]
    make_tar(tmp_path / "in" / "one.tar", pieces)
    out = tmp_path / "out"
    report = render(spec(tmp_path / "in", {"failures": {"budget": 3}}, keep_bad=True), str(out), here=True)
    assert report.quarantined == 3
    assert [(row["key"], row["row"]) for row in quarantine(out)] == [("twin", 0), ("twin", 2), ("twin", 4)]
    with tarfile.open(next((out / "quarantine").glob("one-*.tar"))) as kept:
        assert {name: kept.extractfile(name).read() for name in kept.getnames()} == dict(  # type: ignore[union-attr]
            zip(("twin.jpg", "twin-row2.jpg", "twin-row4.jpg"), bodies)
        )
    assert verify(str(out)).problems == []


def test_too_many_bad_samples_stop_the_run_and_a_higher_budget_completes_it(
    spec: MakeRecipe, tmp_path: Path, make_tar: MakeTar
) -> None:
    for shard in range(4):
        make_tar(tmp_path / "in" / f"{shard}.tar", [(f"{shard}-{n}.jpg", photo(n) if n else b"nothing") for n in range(4)])
    out = tmp_path / "out"
    with pytest.raises(BudgetExceeded, match=r"(?s)3 of 12 samples.*failures.budget of 2.*not a decodable image"):
        render(spec(tmp_path / "in", {"failures": {"budget": 2}}), str(out), here=True)
    assert not (out / "manifest.json").exists()
    report = render(spec(tmp_path / "in", {"failures": {"budget": 4}}), str(out), here=True)
    assert (report.rendered, report.pairs, report.quarantined) == (1, 12, 4)


@pytest.mark.usefixtures("local_ray")
def test_a_run_that_is_stopped_leaves_no_actor_behind(spec: MakeRecipe, tmp_path: Path, make_tar: MakeTar) -> None:
    for shard in range(30):
        make_tar(tmp_path / "in" / f"{shard}.tar", [(f"{shard}-{n}.jpg", b"nothing") for n in range(4)])
    place = {"actors": 1, "cpus": 0.5}
    with pytest.raises(BudgetExceeded):
        render(spec(tmp_path / "in", {"failures": {"budget": 2}, "placement": place}), str(tmp_path / "out"))
    settle()

    def gone(progress: Progress) -> None:
        shutil.rmtree(tmp_path / "other", ignore_errors=True)

    with pytest.raises(RunError, match=r"(?s)other cannot be written: .*the same command goes on"):
        render(spec(sections={"placement": place}), str(tmp_path / "other"), progress=gone)
    settle()


def test_the_budget_holds_for_all_runs_on_a_folder_together(spec: MakeRecipe, tmp_path: Path, make_tar: MakeTar) -> None:
    for shard in range(4):
        make_tar(tmp_path / "in" / f"{shard}.tar", [(f"{shard}-{n}.jpg", photo(n) if n else b"nothing") for n in range(4)])
    recipe = spec(tmp_path / "in", {"failures": {"budget": 2}})
    for _ in range(2):
        with pytest.raises(BudgetExceeded):
            render(recipe, str(tmp_path / "out"), here=True)
    assert not (tmp_path / "out" / "manifest.json").exists()


ON_A_SMALL_DISK = """
    import subprocess, sys
    from pathlib import Path
    from pipeline.errors import RunError, UserError
    from pipeline.materialize.run import render
    from pipeline.recipe import load_recipe

    recipe, disk, calm = load_recipe(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    out = disk / "out"

    def mount(*words):
        done = subprocess.run(["mount", *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit("no mount: " + done.stderr)

    def refused():
        try:
            return str(render(recipe, str(out), here=True))
        except (RunError, UserError) as error:
            return f"{type(error).__name__} {error}"

    def tree(root):
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    wanted = tree(calm)
    mount("-t", "tmpfs", "-o", f"size={sum(map(len, wanted.values())) // 2}", "none", str(disk))
    print(refused())
    left = tree(out)
    assert "manifest.json" not in left
    assert {name for name in left if left[name] != wanted.get(name)} == {"render.unfinished"}, "a name that holds only a part"
    committed = [name for name in left if name.startswith("commits/")]
    print(f"{len(committed)} committed")
    mount("-o", "remount,ro", str(disk))
    print(refused())
    mount("-o", "remount,rw,size=64m", str(disk))
    assert tree(out) == left
    print(refused())
    assert tree(out) == wanted
    assert all((out / name).read_bytes() == left[name] for name in committed)
"""


def test_a_full_and_a_read_only_disk_are_named_and_harm_nothing(spec: MakeRecipe, tmp_path: Path) -> None:
    """The disk has half of the space that is needed; it is mounted in namespaces of its own."""
    recipe, disk = spec(image="npy"), tmp_path / "disk"
    disk.mkdir()
    render(recipe, str(tmp_path / "calm"), here=True)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    arguments = (str(tmp_path / "recipe.json"), str(disk), str(tmp_path / "calm"))
    done = run_python(ON_A_SMALL_DISK, *arguments, inside=("unshare", "--user", "--map-root-user", "--mount"))
    if "unshare: " in done.stderr or "no mount: " in done.stderr:
        pytest.skip(f"this machine lends nobody a disk: {done.stderr}")
    assert done.returncode == 0, done.stderr
    full, kept, count, read_only, whole = done.stdout.splitlines()
    assert re.fullmatch(rf"RunError {disk}/out cannot be written: .*No space left on device.*", full)
    assert kept.startswith("What is committed stays (")
    assert 0 < int(count.split()[0]) < 8
    assert re.fullmatch(rf"UserError {disk}/out cannot be written: .*read-only file system.*", read_only)
    assert "failed={}" in whole


@pytest.mark.slow
def test_an_image_that_kills_the_decoder_costs_itself_alone(
    spec: MakeRecipe, corpus: Path, tmp_path: Path, make_tar: MakeTar, blind: dict[str, str], tree: Tree
) -> None:
    """Ray's actor crashes, is restarted, and continues."""
    make_tar(corpus / "a-killer.tar", [("x/1.jpg", photo(1)), ("x/2.jpg", killer()), ("x/3.jpg", photo(3))])
    recipe = spec(corpus, {"placement": {"actors": 1, "cpus": 0.5}}).model_dump_json()
    (tmp_path / "recipe.json").write_text(recipe)
    words = [sys.executable, "-m", "pseudolabel", "render", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "out")]
    environment = {**os.environ, **blind, "RAY_TMPDIR": tempfile.gettempdir()}  # whose path must be short
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "constructor arguments in the object store" not in done.stderr  # a harmless error that Ray prints
    (row,) = quarantine(tmp_path / "out")
    assert (row["shard"], row["key"]) == ("a-killer.tar", "x/2")
    assert row["reason"] == "the decoder's process died on this image (SIGFPE)"
    assert verify(str(tmp_path / "out")).problems == []
    render(spec(), str(tmp_path / "calm"), here=True)
    calm, found = tree(tmp_path / "calm"), tree(tmp_path / "out")
    pairs = [name for name in calm if name.endswith("-e0.tar")]
    assert len(pairs) == 8
    assert [name for name in pairs if calm[name] != found[name]] == []


def test_records_that_others_wrote_elsewhere_are_missed_in_words(spec: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def lose(progress: Progress) -> None:
        if progress.shards_done == progress.shards:
            next((out / "commits").iterdir()).unlink()

    with pytest.raises(RunError, match=r"commit record .* is not there; is .*out a folder that all machines share\?"):
        render(spec(), str(out), here=True, progress=lose)
    assert not (out / "manifest.json").exists()


def test_a_recipe_without_tasks_and_a_place_that_cannot_be_written_are_refused_at_once(spec: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no tasks"):
        render(spec(sections={"tasks": {}}), str(tmp_path / "out"), here=True)
    with pytest.raises(UserError, match="http storage cannot be written"):
        render(spec(), "http://127.0.0.1/out", here=True)
