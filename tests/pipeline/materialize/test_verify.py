"""`verify` finds what is wrong with a rendered corpus, and only that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.materialize.run import render
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe
from pipeline.shards.members import scan

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
    """The tables are forged, with right checksums: only the sums can tell."""
    import hashlib

    out = tmp_path / "out"
    render(spec(), str(out), here=True)
    rows = pq.read_table(out / "shards.parquet")
    forged = rows.to_pylist()
    forged[2]["samples"] += 1
    pq.write_table(type(rows).from_pylist(forged, schema=rows.schema), out / "shards.parquet")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["sha256"]["shards.parquet"] = hashlib.sha256((out / "shards.parquet").read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    (problem,) = verify(str(out)).problems
    assert problem.file == forged[2]["shard"]
    assert f"are not the {forged[2]['samples']} samples" in problem.reason


def test_deep_finds_that_the_source_is_no_longer_what_was_rendered(spec: MakeRecipe, corpus: Path, tmp_path: Path) -> None:
    for path in corpus.glob("*.parquet"):
        path.unlink()  # so that only the bytes know
    render(spec(corpus), str(tmp_path / "out"), here=True)
    shards = sorted(corpus.glob("*.tar"))
    alike = {path: (path.stat().st_size, len(scan(str(path)))) for path in shards}
    twin, other = next((a, b) for a in shards for b in shards if a < b and alike[a] == alike[b])
    twin.write_bytes(other.read_bytes())
    twin.with_suffix(".members.parquet").unlink()
    problems = verify(str(tmp_path / "out"), deep=1.0).problems
    assert [problem.reason for problem in problems] == ["rendered again it has other bytes"]
    assert problems[0].file.startswith(twin.stem)


def test_an_unfinished_render_is_refused(spec: MakeRecipe, tmp_path: Path) -> None:
    render(spec(), str(tmp_path / "out"), here=True)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(UserError, match="no finished rendered corpus is there"):
        verify(str(tmp_path / "out"))
