"""Images for a student: those of which the teacher is sure, as many of each class, whatever way the corpus is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe
from pipeline.streaming.pairs import pairs
from tests.trainers.labelling.conftest import CLASSES, by_id
from trainers.labelling.label import label
from trainers.labelling.selection import _Ranked, select

MakeRecipe = Callable[..., Recipe]
Tree = Callable[[Path], dict[str, bytes]]


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.25, 0.5, 0.75]), st.integers(0, 9)), min_size=1, max_size=60),
    n=st.integers(1, 8),
    least=st.sampled_from([0.0, 0.5]),
    cut=st.integers(1, 60),
)
@settings(max_examples=50)
def test_the_most_confident_of_each_class_are_those_of_sorting_all(
    rows: list[tuple[int, float, int]], n: int, least: float, cut: int
) -> None:
    """With ties by id, and images of equal ids, which shards that are numbered alike have."""
    wanted = []
    for each in range(4):
        own = sorted((-sure, number, place) for place, (one, sure, number) in enumerate(rows) if one == each and sure >= least)
        wanted += [place for _, _, place in own[:n]]
    columns = [np.array(column) for column in zip(*rows)]
    types = {"label": np.int32, "confidence": np.float32, "id": np.uint64}
    table = pa.table({name: column.astype(dtype) for (name, dtype), column in zip(types.items(), columns)})
    best = _Ranked.empty()
    for start in range(0, len(rows), cut):
        best = _Ranked.joined(best, _Ranked.of(table.slice(start, cut), start, least)).most_confident(n)
    assert best.place.tolist() == wanted
    assert best.cutoffs().column("count").to_pylist() == np.unique(columns[0][wanted], return_counts=True)[1].tolist()


@pytest.mark.usefixtures("classifier")
def test_images_below_a_threshold_and_beyond_a_number_are_left_out_and_small_classes_weigh_more(
    run_recipe: MakeRecipe, tmp_path: Path, tree: Tree
) -> None:
    labels, out = str(tmp_path / "labels"), str(tmp_path / "kept")
    label(run_recipe(), labels, here=True)
    named = by_id(tmp_path / "labels")
    sizes = np.bincount([row["label"] for row in named.values()], minlength=4)
    n, least = int(np.median(sizes[sizes > 0])), float(np.quantile([row["confidence"] for row in named.values()], 0.2))
    done, report = select(labels, out, least, n)
    assert (done.shards, done.rows) == (8, 72)
    wanted = {}
    for each in range(4):
        own = sorted((-row["confidence"], number) for number, row in named.items() if row["label"] == each)
        sure = [number for confidence, number in own if -confidence >= least][:n]
        wanted |= {number: n / len(sure) for number in sure}
        assert report["sizes"][each] == len(sure)
        assert report["below"][each] == sum(-confidence < least for confidence, _ in own)
        assert report["beyond"][each] == len(own) - report["below"][each] - len(sure)
    assert any(report["beyond"])
    assert report["classes"] == CLASSES
    found = by_id(tmp_path / "kept")
    assert {number: row["weight"] for number, row in found.items() if row["keep"]} == pytest.approx(wanted)
    assert all(row["weight"] == 0 for row in found.values() if not row["keep"])
    for name in ("key", "row", "class", "label", "confidence"):
        assert all(found[number][name] == row[name] for number, row in named.items())
    assert verify(out).problems == []
    before = tree(tmp_path / "kept")
    next((tmp_path / "kept" / "commits").iterdir()).unlink()
    assert select(labels, out, least, n)[0].made == 1
    assert tree(tmp_path / "kept") == before
    with pytest.raises(UserError, match=r"(?s)holds selection of another recipe.*per_class: \d+ in the folder, 1 now"):
        select(labels, out, least, 1)
    spec = run_recipe().model_dump(mode="json")
    spec["corpus"] |= {
        "keep": {"table": out, "least": {"keep": 1}},
        "annotations": {"teacher": {"table": out, "weight": "weight"}},
    }
    recipe = Recipe.model_validate({**spec, "tasks": {"assigned": {"annotation": "teacher", "classes": 4}}})
    seen: dict[int, float] = {}
    for columns in pairs(recipe):
        seen |= dict(zip(columns["id"].tolist(), columns["assigned.weight"].tolist()))
    assert seen == pytest.approx(wanted)
    sure, report = select(labels, str(tmp_path / "sure"), least)
    assert sure.rows == 72
    rows = by_id(tmp_path / "sure").values()
    assert all((row["keep"], row["weight"]) == ((1, 1) if row["confidence"] >= np.float32(least) else (0, 0)) for row in rows)
    assert report["images"] == sum(row["keep"] for row in rows)
    assert sum(report["beyond"]) == 0
    with pytest.raises(UserError, match=r"--least 1\.5: a confidence is between 0 and 1"):
        select(labels, str(tmp_path / "no"), 1.5)


def test_clusters_have_no_confidence_to_choose_by(clusters: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no confidences; `pseudolabel label` makes labels that do"):
        select(str(clusters), str(tmp_path / "no"))
