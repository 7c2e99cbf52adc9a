"""Exactly once: a committed shard is not read again; any other is rendered, to the same bytes in every way of running."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.materialize.run import Progress, render
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
Tree = Callable[[Path], dict[str, bytes]]


def commits(out: Path) -> list[Path]:
    return sorted((out / "commits").glob("*.json"))


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("form", "ways"),
    [
        ("webdataset", [(2, 1, 2)]),
        pytest.param("webdataset", [(1, 64, 1), (3, 1, 2)], marks=pytest.mark.slow),
        pytest.param("parquet", [(2, 5, 2)], marks=pytest.mark.slow),
    ],
)
def test_any_number_of_actors_and_any_batch_give_the_same_bytes(
    spec: MakeRecipe, tmp_path: Path, tree: Tree, form: str, ways: list[tuple[int, int, int]]
) -> None:
    render(spec(format=form, epochs=2), str(tmp_path / "alone"), here=True)
    alone = tree(tmp_path / "alone")
    assert len([name for name in alone if name.startswith("shard-") and "-e1." in name and "members" not in name]) == 8
    for actors, chunk, threads in ways:
        place = {"actors": actors, "cpus": 0.5, "threads": threads}
        out = tmp_path / str(actors)
        render(spec(sections={"placement": place}, format=form, epochs=2), str(out), chunk=chunk)
        assert tree(out) == alone


def test_committed_shards_are_never_read_again(spec: MakeRecipe, corpus: Path, tmp_path: Path, tree: Tree) -> None:
    recipe, out = spec(corpus), tmp_path / "out"
    render(recipe, str(out), here=True)
    finished = tree(out)
    lost = commits(out)[3]
    kept = json.loads(lost.read_text())["shard"]
    lost.unlink()
    for shard in corpus.glob("*.tar"):
        if shard.name != kept:
            shard.write_bytes(b"x" * shard.stat().st_size)
    (corpus / "index.parquet").touch()  # an index that is older than a shard is not believed
    seen: list[Progress] = []
    report = render(recipe, str(out), here=True, progress=seen.append)
    assert report.rendered == 1
    assert (seen[0].shards_done, seen[-1].shards_done, seen[-1].samples_done) == (7, 8, 72)
    assert tree(out) == finished


def test_a_finished_render_changes_nothing_and_renders_nothing(spec: MakeRecipe, tmp_path: Path, tree: Tree) -> None:
    render(spec(), str(tmp_path / "out"), here=True)
    before = tree(tmp_path / "out")
    assert render(spec(), str(tmp_path / "out"), here=True).rendered == 0
    assert tree(tmp_path / "out") == before


def test_what_a_killed_process_left_half_written_is_removed(spec: MakeRecipe, tmp_path: Path, tree: Tree) -> None:
    out = tmp_path / "out"
    render(spec(), str(out), here=True)
    finished = tree(out)
    commits(out)[0].unlink()
    (out / ".shard-000000-0123456789abcdef-e0.tar.0a1b2c3d.tmp").write_bytes(b"half a shard")
    (out / "commits" / ".shard-000000.json.0a1b2c3d.tmp").write_bytes(b"{")
    next(out.glob("shard-000000*.tar")).write_bytes(b"what no commit record speaks for")
    render(spec(), str(out), here=True)
    assert tree(out) == finished


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"seed": 4}, "seed: 3 in the folder, 4 now"),
        ({"image": {"size": 40}}, "image.size: 32 in the folder, 40 now"),
        ({"tasks": {"rotation": {}}}, "tasks.jigsaw"),
        ({"tasks": {"rotation": {"turns": [0, 2]}}}, r"tasks.rotation.turns: \[0, 1, 2, 3\] in the folder, \[0, 2\] now"),
        ({"render": {"image": "npy"}}, "render.image: not there in the folder, npy now"),
        ({"engine": "dali"}, "engine.engine: cpu in the folder, dali now"),
    ],
)
def test_another_recipe_is_refused_with_the_difference(
    spec: MakeRecipe, tmp_path: Path, tree: Tree, sections: dict[str, Any], word: str
) -> None:
    out = tmp_path / "out"
    render(spec(), str(out), here=True)
    before = tree(out)
    with pytest.raises(UserError, match=r"(?s)another recipe.*" + word):
        render(spec(sections=sections), str(out), here=True)
    assert tree(out) == before


def test_what_does_not_shape_pairs_may_change(spec: MakeRecipe, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    render(spec(), out, here=True)
    weighted = {"rotation": {"weight": 2}, "jigsaw": {"grid": 2, "permutations": 8}, "occlusion": {}, "colorization": {}}
    other = {"tasks": weighted, "image": {"size": 32, "mean": [0.5, 0.5, 0.5]}, "failures": {"budget": 5}}
    assert render(spec(sections=other), out, here=True).rendered == 0


def test_a_corpus_that_grows_is_rendered_on_and_one_that_shrinks_is_refused(
    spec: MakeRecipe, corpus: Path, tmp_path: Path
) -> None:
    last = sorted(corpus.glob("*.tar"))[-1]
    moved = last.rename(tmp_path / last.name)
    out = str(tmp_path / "out")
    assert render(spec(corpus), out, here=True).rendered == 7
    moved.rename(last)
    report = render(spec(corpus), out, here=True)
    assert (report.rendered, report.shards, report.pairs) == (1, 8, 72)
    assert verify(out).problems == []
    last.unlink()
    with pytest.raises(UserError, match="1 rendered shards that the corpus no longer has"):
        render(spec(corpus), out, here=True)


def test_shards_of_one_name_in_two_folders_do_not_meet(spec: MakeRecipe, tiles: Path, corpus: Path, tmp_path: Path) -> None:
    report = render(spec([str(tiles), str(corpus)]), str(tmp_path / "out"), here=True)
    assert (report.shards, report.pairs) == (16, 144)
    assert verify(str(tmp_path / "out")).problems == []


def test_a_folder_in_other_use_is_left_alone(spec: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("words")
    with pytest.raises(UserError, match=r"is not empty: it holds thesis\.tex"):
        render(spec(), str(tmp_path / "out"), here=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be"):
        render(spec(), str(tmp_path / "file" / "out"), here=True)


def test_neither_secrets_nor_machine_nor_time_are_written(
    spec: MakeRecipe, tiles: Path, tmp_path: Path, serve: Callable[..., str], tree: Tree
) -> None:
    url = serve(tiles)
    names = sorted(path.name for path in tiles.glob("*.tar"))
    render(spec([f"{url}/{name}?X-Amz-Signature=s3cr3t" for name in names]), str(tmp_path / "out"), here=True)
    written = tree(tmp_path / "out")
    assert len([name for name in written if name.endswith("-e0.tar")]) == 8
    assert not [name for name, body in written.items() if b"s3cr3t" in body]
