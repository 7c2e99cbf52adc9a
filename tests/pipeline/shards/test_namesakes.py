"""Shards whose samples have the same keys: opening them warns, and `corpus.keys` tells their samples apart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import pairs
from pipeline.draws import sample_id
from pipeline.errors import UserError
from pipeline.materialize.job import identity_of
from pipeline.materialize.rendered import RenderedSource, open_rendered
from pipeline.materialize.run import render
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe, parse_recipe
from pipeline.recipe.corpus import CorpusSection as Spec
from pipeline.shards.inspect import inspect
from pipeline.shards.opening import names_of, open_corpus, open_training_corpus
from tests.pipeline.made_images import good

MakeTar = Callable[..., Path]
SHARDS, EACH = 6, 5


@pytest.fixture
def numbered_alike(tmp_path: Path, make_tar: MakeTar) -> Path:
    """A folder of six shards, each with `0.jpg` to `4.jpg`, the last of which is damaged, and one key of its own."""
    for shard in range(SHARDS):
        keys = [*map(str, range(EACH)), f"own-{shard}"]
        members = [(f"{key}.jpg", b"damaged" if key == "4" else good()["jpeg"]) for key in keys]
        make_tar(tmp_path / "in" / f"{shard}.tar", members)
    return tmp_path / "in"


def recipe(shards: Any, **corpus: Any) -> Recipe:
    document = {"name": "alike", "seed": 3, "image": {"size": 32}, "engine": "cpu", "tasks": {"rotation": {}, "occlusion": {}}}
    return parse_recipe({**document, "corpus": {"shards": str(shards), **corpus}, "training": {"batch": 6}})


def ids(recipe: Recipe) -> np.ndarray:
    return np.concatenate([batch["id"] for batch in pairs(recipe)])


def test_an_id_leads_back_to_the_file_in_its_shard(numbered_alike: Path) -> None:
    told_apart = recipe(numbered_alike, keys="shard")
    found = names_of(told_apart, [sample_id("3.tar/2"), sample_id("0.tar/own-0"), sample_id("3.tar/2")])
    assert found == [
        (str(numbered_alike / f"{shard}.tar"), name) for shard, name in ((3, "2.jpg"), (0, "own-0.jpg"), (3, "2.jpg"))
    ]
    batch = ids(told_apart)
    assert [
        sample_id(f"{Path(shard).name}/{name.removesuffix('.jpg')}") for shard, name in names_of(told_apart, batch)
    ] == batch.tolist()
    mixed = parse_recipe({**told_apart.model_dump(), "corpus": {"mix": {"a": {"shards": str(numbered_alike)}}}})
    assert names_of(mixed, [sample_id("a/own-5")]) == [(str(numbered_alike / "5.tar"), "own-5.jpg")]
    with pytest.raises(UserError, match="no sample of this corpus has the id 7: are these ids of other shards"):
        names_of(told_apart, [7])


def test_namesakes_are_told_apart_by_their_shard_where_the_recipe_says_so(numbered_alike: Path) -> None:
    good_ones = SHARDS * EACH
    assert len(set(ids(recipe(numbered_alike)).tolist())) == 4 + SHARDS
    found = ids(recipe(numbered_alike, keys="shard"))
    assert len(found) == len(set(found.tolist())) == good_ones
    assert sample_id("3.tar/2") in found
    labels = {
        keys: np.concatenate([b["rotation.label"] for b in pairs(recipe(numbered_alike, keys=keys))])
        for keys in ("name", "shard")
    }
    assert labels["name"].tolist() != labels["shard"].tolist()


def test_an_id_depends_neither_on_where_the_corpus_lies_nor_on_the_other_corpora_of_a_mixture(
    numbered_alike: Path, tmp_path: Path
) -> None:
    before = open_corpus(str(numbered_alike), keys="shard").read(2, [1])[0].id
    numbered_alike.rename(tmp_path / "moved")
    assert open_corpus(str(tmp_path / "moved"), keys="shard").read(2, [1])[0].id == before == sample_id("2.tar/1")
    parts = {"a": {"shards": str(tmp_path / "moved/[01].tar")}, "b": {"shards": str(tmp_path / "moved/[2345].tar")}}
    mixed = open_training_corpus(Spec.model_validate({"mix": parts, "keys": "shard"}))
    assert mixed.read(0, [1])[0].id == sample_id("a/0.tar/1")
    assert mixed.read(2, [1])[0].id == sample_id("b/2.tar/1")


def test_it_is_said_once_with_the_number_when_such_a_corpus_is_opened(
    numbered_alike: Path, tmp_path: Path, make_tar: MakeTar, caplog: pytest.LogCaptureFixture
) -> None:
    def said(spec: dict[str, Any]) -> list[str]:
        caplog.clear()
        open_training_corpus(Spec.model_validate(spec))
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    (words,) = said({"shards": str(numbered_alike)})
    assert words.startswith("20 of 24 samples looked at in the first 4 of 6 shards have the key of a sample in another shard")
    assert "corpus.keys: shard" in words
    assert said({"shards": str(numbered_alike), "keys": "shard"}) == []
    make_tar(tmp_path / "other" / "0.tar", [(f"{n}.jpg", good()["jpeg"]) for n in range(3)])
    make_tar(tmp_path / "other" / "1.tar", [(f"{n}.jpg", good()["jpeg"]) for n in range(3, 6)])
    assert said({"shards": str(tmp_path / "other")}) == []
    parts = {"a": {"shards": str(tmp_path / "other/0.tar")}, "b": {"shards": str(numbered_alike / "0.tar")}}
    assert said({"mix": parts}) == [], "the corpora of a mixture are told apart in any case"


def test_they_are_counted_by_inspect(numbered_alike: Path) -> None:
    report = inspect(open_corpus(str(numbered_alike)))
    assert (report.duplicate_keys, report.namesakes) == (EACH, SHARDS * EACH)


def test_the_choice_is_part_of_what_a_run_is_and_its_default_changes_no_recipe() -> None:
    plain, named, apart = recipe("x"), recipe("x", keys="name"), recipe("x", keys="shard")
    assert "keys" not in plain.canonical()
    assert plain.digest() == named.digest() != apart.digest()
    assert identity_of(plain, {}) == identity_of(named, {}) != identity_of(apart, {})


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_rendered_corpus_gives_the_pairs_of_its_namesakes(numbered_alike: Path, tmp_path: Path, form: str) -> None:
    spec = recipe(numbered_alike, keys="shard").model_copy(
        update={"failures": recipe("x").failures.model_copy(update={"budget": 6})}
    )
    spec = spec.model_copy(update={"render": spec.render.model_copy(update={"format": form})})
    wanted = {sample: label for b in pairs(spec) for sample, label in zip(b["id"].tolist(), b["rotation.label"].tolist())}
    out = str(tmp_path / "out")
    assert render(spec, out, here=True).pairs == SHARDS * EACH
    rendered = open_rendered(out)
    corpus = rendered.corpus()
    schedule = Schedule(corpus.counts, Geometry(6, 6, 1, 6), spec.seed, 1)
    unit = RenderedSource(spec, corpus, schedule, rendered=rendered).maker(1, lambda stage, unit: None)(0)
    good_ones = unit["weight"] > 0
    assert dict(zip(unit["id"][good_ones].tolist(), unit["rotation.label"][good_ones].tolist())) == wanted
    assert set(unit["id"][~good_ones].tolist()) == {sample_id(f"{shard}.tar/4") for shard in range(SHARDS)}
