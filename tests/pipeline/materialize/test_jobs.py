"""A job that is no render, exactly once as renders are: resumed, verified, and refused where it does not belong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.materialize.commit import CommitRecord, write_json
from pipeline.materialize.driver import materialize
from pipeline.materialize.job import Job, OnChunk, known_sums, writing
from pipeline.materialize.opened import open_materialized
from pipeline.materialize.rendered import open_rendered
from pipeline.materialize.run import corpus_of, render
from pipeline.materialize.shard import chunks_of
from pipeline.materialize.verify import verify
from pipeline.materialize.writers import TableWriter
from pipeline.recipe import Recipe
from pipeline.storage import write_atomic

MakeRecipe = Callable[..., Recipe]
Tree = Callable[[Path], dict[str, bytes]]
SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("row", pa.int64()), pa.field("bytes", pa.int64())])


@dataclass(frozen=True)
class SizeJob(Job):
    """The size of every image's file."""

    command = "weigh"
    past = "weighed"
    makes = "sizes"

    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> Callable[[int], CommitRecord]:
        return self._weigh

    def described(self) -> dict[str, Any]:
        return {"unit": "bytes"}

    def prepare(self) -> None:
        write_json(self.url("unit.json"), "bytes")

    def finish(self, outputs: Iterable[str]) -> tuple[str, ...]:
        write_json(self.url("tables.json"), sorted(outputs))
        return "unit.json", "tables.json"

    def _weigh(self, i: int) -> CommitRecord:
        samples, name = int(self.corpus.counts[i]), f"{self.stem(i)}.parquet"
        with writing(self.out), write_atomic(self.url(name)) as file, TableWriter(file, SCHEMA, 4) as table:
            for first, chunk, _ in chunks_of(self, i, samples):
                rows = [{"key": one.key, "row": first + n, "bytes": len(one.encoded)} for n, (one, _) in enumerate(chunk)]
                table.write(pa.Table.from_pylist(rows, SCHEMA))
            table.finish()
        return CommitRecord(self.shard(i), int(self.corpus.sizes[i]), samples, [table.output(name)], [])


@pytest.fixture
def weigh(spec: MakeRecipe) -> Callable[..., SizeJob]:
    """`weigh(out)`: the job on the tiles."""

    def make(out: Path, chunk: int = 64, unit: str = "bytes") -> SizeJob:
        recipe = spec()
        corpus = corpus_of(recipe)
        return SizeJob(recipe, corpus, str(out), {"makes": "sizes", "unit": unit}, known_sums(corpus), chunk)

    return make


def test_what_it_makes_is_verified_and_does_not_depend_on_the_chunk(
    weigh: Callable[..., SizeJob], tmp_path: Path, tree: Tree
) -> None:
    report = materialize(weigh(tmp_path / "out"), here=True)
    assert (report.shards, report.made, report.samples, report.rows, report.failed) == (8, 8, 72, 72, {})
    verdict = verify(str(tmp_path / "out"))
    assert (verdict.problems, verdict.holds, verdict.files) == ([], "sizes", 8)
    materialize(weigh(tmp_path / "other", chunk=3), here=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "other")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["unit"], {"unit.json", "tables.json"} <= manifest["sha256"].keys()) == ("bytes", True)
    assert len(json.loads((tmp_path / "out" / "tables.json").read_text())) == 8
    (tmp_path / "out" / "tables.json").write_text("[]")
    assert [problem.file for problem in verify(str(tmp_path / "out")).problems] == ["tables.json"]


@pytest.mark.parametrize("shards", [0, 1, 5, 7])
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(
    weigh: Callable[..., SizeJob], tmp_path: Path, tree: Tree, shards: int
) -> None:
    materialize(weigh(tmp_path / "calm"), here=True)

    def interrupt(at: Any) -> None:
        if at.shards_done == shards:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        materialize(weigh(out), progress=interrupt, here=True)
    assert (out / "weigh.unfinished").exists()
    with pytest.raises(UserError, match="no finished"):
        open_materialized(str(out))
    assert materialize(weigh(out), here=True).made == 8 - shards
    assert tree(out) == tree(tmp_path / "calm")


def test_folders_of_different_jobs_are_not_mixed_up(weigh: Callable[..., SizeJob], spec: MakeRecipe, tmp_path: Path) -> None:
    materialize(weigh(tmp_path / "sizes"), here=True)
    render(spec(), str(tmp_path / "pairs"), here=True)
    with pytest.raises(UserError, match=r"(?s)holds sizes of another recipe.*unit: bytes in the folder, miles now"):
        materialize(weigh(tmp_path / "sizes", unit="miles"), here=True)
    with pytest.raises(UserError, match="holds sizes of another recipe"):
        render(spec(), str(tmp_path / "sizes"), here=True)
    with pytest.raises(UserError, match="holds pairs of another recipe"):
        materialize(weigh(tmp_path / "pairs"), here=True)
    with pytest.raises(UserError, match="holds sizes, not pairs; `pseudolabel render` makes these"):
        open_rendered(str(tmp_path / "sizes"))
    with pytest.raises(UserError, match="holds sizes: only pairs can be made again"):
        verify(str(tmp_path / "sizes"), deep=0.5)
