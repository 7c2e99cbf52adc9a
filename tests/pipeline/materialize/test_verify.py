"""`verify` finds what is wrong with a rendered corpus, and only that."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RunError, UserError
from pipeline.materialize import job as render_job
from pipeline.materialize.rendered import open_rendered
from pipeline.materialize.run import render
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe
from pipeline.shards.corpus import _cached_members
from pipeline.shards.index import Index
from pipeline.shards.members import Members
from pipeline.shards.scanning import scan
from tests.web import Serve

MakeRecipe = Callable[..., Recipe]


@pytest.mark.parametrize("render_section", [{}, {"format": "parquet"}, {"epochs": 2, "image": "webp"}])
def test_a_whole_corpus_passes_rendered_again_too(spec: MakeRecipe, tmp_path: Path, render_section: dict) -> None:
    render(spec(**render_section), str(tmp_path / "out"), here=True)
    verdict = verify(str(tmp_path / "out"), deep=0.5, seed=1)
    assert verdict.problems == []
    assert (verdict.shards, verdict.files, verdict.rendered_again) == (8, 8 * render_section.get("epochs", 1), 4)


def test_a_changed_a_cut_and_a_missing_file_are_named(spec: MakeRecipe, tmp_path: Path) -> None:
    render(spec(), str(tmp_path / "out"), here=True)
    first, second, third, *_ = sorted((tmp_path / "out").glob("*-e0.tar"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-512])
    third.unlink()
    found = {problem.file: problem.reason for problem in verify(str(tmp_path / "out")).problems}
    assert sorted(found) == [first.name, second.name, third.name]
    assert "checksum" in found[first.name]
    assert "by the manifest" in found[second.name]
    assert found[third.name] == "is missing"


def test_a_sample_that_is_neither_pair_nor_quarantined_is_found(spec: MakeRecipe, tmp_path: Path) -> None:
    """The tables are forged, with right checksums: only the counts of samples are wrong."""
    out = tmp_path / "out"
    render(spec(), str(out), here=True)
    forged_shards(out, lambda rows: rows[2].update(samples=rows[2]["samples"] + 1))
    forged = pq.read_table(out / "shards.parquet").to_pylist()
    (problem,) = verify(str(out)).problems
    assert problem.file == forged[2]["shard"]
    assert f"are not the {forged[2]['samples']} samples" in problem.reason


def test_deep_reads_shards_by_the_index_that_the_recipe_names(
    spec: MakeRecipe, corpus: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in corpus.glob("*.parquet"):
        path.unlink()
    shards = [f"{serve(corpus)}/{path.name}" for path in sorted(corpus.glob("*.tar"))]
    recipe = spec(sections={"corpus": {"shards": shards, "index": str(tmp_path / "index")}})
    render(recipe, str(tmp_path / "out"), here=True)
    _cached_members.cache_clear()
    monkeypatch.setattr("pipeline.shards.scanning.scan", lambda url, *_: pytest.fail(f"scanned {url}"))
    verdict = verify(str(tmp_path / "out"), deep=0.5)
    assert (verdict.rendered_again, verdict.problems) == (4, [])


def test_the_version_of_pillow_is_part_of_a_render_and_those_that_began_without_it_go_on(
    spec: MakeRecipe, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(render_job, "_PACKAGES", tuple(package for package in render_job._PACKAGES if package != "pillow"))
        render(spec(), str(tmp_path / "earlier"), here=True)
    before = tree(tmp_path / "earlier")
    assert render(spec(), str(tmp_path / "earlier"), here=True).rendered == 0
    assert tree(tmp_path / "earlier").keys() == before.keys()
    assert verify(str(tmp_path / "earlier"), deep=0.2).problems == []

    render(spec(), str(tmp_path / "now"), here=True)
    monkeypatch.setattr(render_job, "version", lambda package: "0.0" if package == "pillow" else version(package))
    with pytest.raises(UserError, match=rf"engine\.pillow: {version('pillow')} in the folder, 0\.0 now"):
        render(spec(), str(tmp_path / "now"), here=True)
    with pytest.raises(UserError, match=r"nothing can be compared:\n  engine\.pillow"):
        verify(str(tmp_path / "now"), deep=0.2)


def test_deep_finds_that_the_source_is_no_longer_what_was_rendered(spec: MakeRecipe, corpus: Path, tmp_path: Path) -> None:
    for path in corpus.glob("*.parquet"):
        path.unlink()  # so that only the bytes differ
    render(spec(corpus), str(tmp_path / "out"), here=True)
    shards = sorted(corpus.glob("*.tar"))
    alike = {path: (path.stat().st_size, len(scan(str(path)))) for path in shards}
    twin, other = next((a, b) for a in shards for b in shards if a < b and alike[a] == alike[b])
    twin.write_bytes(other.read_bytes())
    twin.with_suffix(".members.parquet").unlink()
    problems = verify(str(tmp_path / "out"), deep=1.0).problems
    assert [problem.reason for problem in problems] == ["the input shard is not the one that was rendered"]
    assert problems[0].file.startswith(twin.stem)


def forge(out: Path, name: str, content: bytes) -> None:
    """Replace a file that describes a rendered corpus, and its checksum with it."""
    (out / name).write_bytes(content)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))


def forged_shards(out: Path, change: Callable[[list[dict]], object]) -> None:
    table = pq.read_table(out / "shards.parquet")
    rows = table.to_pylist()
    change(rows)
    buffer = io.BytesIO()
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), buffer)
    forge(out, "shards.parquet", buffer.getvalue())


def test_what_describes_the_corpus_is_held_against_the_manifest_too(spec: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    render(spec(), str(out), here=True)
    index, identity = Index.load(str(out)), json.loads((out / "identity.json").read_text())
    first = min(index.rows)
    index.rows[first] = replace(index.rows[first], samples=1)
    index.save(str(out))
    (out / "identity.json").write_text(json.dumps({**identity, "seed": 99}))
    members = out / first.replace(".tar", ".members.parquet")
    found = Members.load(str(members))
    labels = pa.array([7] * len(found), pa.int32())
    Members(found.table.set_column(found.table.column_names.index("label"), "label", labels), found.shard_bytes).save(
        str(members)
    )
    other = max(index.rows).replace(".tar", ".members.parquet")
    (out / other).write_bytes(b"PAR1 no more")
    problems = {problem.file: problem.reason for problem in verify(str(out)).problems}
    assert "checksum" in problems.pop("index.parquet")
    assert "checksum" in problems.pop("identity.json")
    assert problems.pop(members.name) == "does not say what lies in its tar"
    assert problems.pop(other).startswith("cannot be read: damaged: ")
    assert not problems
    recipe = json.loads((out / "recipe.json").read_text())
    (out / "recipe.json").write_text(json.dumps({**recipe, "seed": 99}))
    with pytest.raises(UserError, match=r"recipe\.json is not the one that the manifest names"):
        verify(str(out))


def test_a_manifest_of_an_earlier_version_passes_and_what_it_does_not_tell_is_said(spec: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    render(spec(), str(out), here=True)
    manifest = json.loads((out / "manifest.json").read_text())
    for name in ("recipe.json", "identity.json"):
        del manifest["sha256"][name]
    (out / "manifest.json").write_text(json.dumps(manifest))
    verdict = verify(str(out))
    assert verdict.problems == []
    assert verdict.notes == [
        "recipe.json and identity.json: not checked, for the manifest is of a version that kept no checksum of them"
    ]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd.tar", "..", "s3://bucket/x.tar", "a/b.tar", "x.tar\0", ""])
@pytest.mark.parametrize("where", ["outputs", "kept"])
def test_no_name_in_the_manifests_tables_is_followed_out_of_the_folder(
    spec: MakeRecipe, tmp_path: Path, name: str, where: str
) -> None:
    out = tmp_path / "out"
    render(spec(), str(out), here=True)

    def change(rows: list[dict]) -> None:
        file = {**rows[3]["outputs"][0], "name": name}
        rows[3] |= {where: file if where == "kept" else [file]}

    forged_shards(out, change)
    with pytest.raises(UserError, match="which is no file of a render in this folder"):
        verify(str(out))


@pytest.mark.parametrize("damage", [{"samples": None}, {"bytes": -1}, {"outputs": None}, {"outputs": [None]}, {"shard": None}])
def test_tables_that_no_render_writes_are_refused_in_words(spec: MakeRecipe, tmp_path: Path, damage: dict) -> None:
    out = tmp_path / "out"
    render(spec(), str(out), here=True)
    forged_shards(out, lambda rows: rows[0].update(damage))
    with pytest.raises(UserError, match="what its manifest names is damaged"):
        open_rendered(str(out))


@pytest.mark.parametrize(
    "manifest", ["5", "[]", "{}", "[" * 100_000, '{"version": 1}', '{"version": 1, "complete": 1, "totals": {}, "sha256": 7}', ""]
)
def test_a_damaged_manifest_is_refused_in_a_line_that_names_it(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"(manifest\.json is damaged|not a rendered corpus of version 1)") as found:
        open_rendered(str(tmp_path))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"shard": 5}', "null"])
def test_a_damaged_commit_record_is_named(spec: MakeRecipe, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    render(spec(), str(out), here=True)
    record = min((out / "commits").iterdir())
    whole = record.read_text()
    record.write_text(damage)
    with pytest.raises(RunError, match=f"{record.name} is damaged; delete it, and the same command renders its shard again"):
        render(spec(), str(out), here=True)
    record.unlink()
    assert render(spec(), str(out), here=True).rendered == 1
    assert record.read_text() == whole


def test_an_unfinished_render_is_refused(spec: MakeRecipe, tmp_path: Path) -> None:
    render(spec(), str(tmp_path / "out"), here=True)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(UserError, match="no finished rendered corpus is there"):
        verify(str(tmp_path / "out"))
