"""`pairs` gives every good sample once, without Ray, and stops with a message when too many are bad."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import pairs
from pipeline.draws import sample_id
from pipeline.errors import BudgetExceeded
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.units import UnitRenderer, UnitSource, row_bytes
from pipeline.shards.opening import open_corpus
from pipeline.streaming.pairs import open_source
from tests.pipeline.children import run_python
from tests.pipeline.made_images import good

KEYS = [f"photo-{n:02d}" for n in range(23)]
BAD = {"photo-03", "photo-17"}

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def made(tmp_path: Path) -> MakeRecipe:
    """Recipes on three shards of 23 samples, two of which are bad."""
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for n, key in enumerate(KEYS):
                if n % 3 == shard:
                    body = b"damaged" if key in BAD else good()["jpeg" if n % 2 else "png"]
                    for name, content in ((f"{key}.jpg", body), (f"{key}.cls", str(n).encode())):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))

    def make(**sections: Any) -> Recipe:
        document = {
            "name": "pairs",
            "seed": 2,
            "corpus": {"shards": str(tmp_path)},
            "image": {"size": 32},
            "tasks": {"rotation": {}, "occlusion": {}},
            "engine": "cpu",
            "training": {"batch": 8},
        }
        return parse_recipe({**document, **sections})

    return make


@pytest.mark.parametrize("batch", [1, 8, 23, 50])
def test_every_good_sample_comes_once_an_epoch(made: MakeRecipe, batch: int) -> None:
    batches = list(pairs(made(training={"batch": batch}), epoch=1))
    found = np.concatenate([columns["id"] for columns in batches])
    assert sorted(found) == sorted(sample_id(key) for key in KEYS if key not in BAD)
    classes = np.concatenate([columns["class"] for columns in batches])
    assert sorted(classes) == [n for n, key in enumerate(KEYS) if key not in BAD]
    for columns in batches:
        count = len(columns["id"])
        assert count <= batch
        assert (columns["weight"] == 1).all()
        assert set(columns) == {"id", "weight", "class", "image"} | {
            "rotation.input",
            "rotation.label",
            "occlusion.input",
            "occlusion.mask",
        }
        assert all(len(column) == count for column in columns.values())
        assert columns["image"].reshape(count, -1).any(axis=1).all()


def test_the_order_and_the_pairs_are_another_each_epoch_and_the_same_again(made: MakeRecipe) -> None:
    first, again, later = (np.concatenate([c["id"] for c in pairs(made(), epoch)]) for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)


@pytest.mark.parametrize("batch", [1, 8, 50])
def test_whole_windows_end_to_end_rendered_step_by_step_are_the_pairs_in_their_order(made: MakeRecipe, batch: int) -> None:
    recipe = made(training={"batch": batch})
    source = open_source(recipe, epoch=1, whole=True)
    render = UnitRenderer(source, threads=1)
    halves = [
        source.read(number, places)
        for number in range(source.schedule.units(source.step))
        for places in (slice(0, 2 * batch), slice(2 * batch, None))
    ]
    parts = [render(part) for half in halves for part in half.parts(batch)]
    expected = list(pairs(recipe, epoch=1))
    for name in expected[0]:
        found = np.concatenate([part[name][part["weight"] > 0] for part in parts])
        assert np.array_equal(found, np.concatenate([columns[name] for columns in expected])), name


@pytest.mark.parametrize("budget", [1, 0.0])
def test_too_many_bad_samples_stop_the_loop_and_are_named(made: MakeRecipe, budget: float) -> None:
    with pytest.raises(BudgetExceeded, match=r"over failures\.budget of") as refused:
        list(pairs(made(failures={"budget": budget})))
    assert any(key in str(refused.value) for key in BAD)
    assert "not a decodable image" in str(refused.value)
    assert ".tar" in str(refused.value)


def test_bad_samples_of_one_key_are_several(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        for key in (
            "twin",
            "a",
            "twin",
            "b",
            "twin",
        ):  # apart from each other, all but the first are none of WebDataset's samples
            info = tarfile.TarInfo(f"{key}.jpg")
            info.size = len(good()["jpeg"])
            archive.addfile(info, io.BytesIO(good()["jpeg"]))
    document = {"name": "twins", "seed": 2, "corpus": {"shards": str(tmp_path)}, "image": {"size": 32}, "engine": "cpu"}
    recipe = parse_recipe({**document, "training": {"batch": 4}, "failures": {"budget": 1}})
    with pytest.raises(BudgetExceeded, match=r"2 of [45] samples"):
        list(pairs(recipe))


def test_no_ray_is_needed(made: MakeRecipe) -> None:
    script = """
        import sys
        from pipeline import Recipe, pairs
        count = sum(len(columns["id"]) for columns in pairs(Recipe.model_validate_json(sys.argv[1])))
        print(count, "ray" in sys.modules)
    """
    done = run_python(script, made().canonical())
    assert done.stdout.split() == [str(len(KEYS) - len(BAD)), "False"], done.stderr


def test_a_unit_says_what_failed_where_and_why_and_nothing_of_empty_places(made: MakeRecipe) -> None:
    recipe = made()
    corpus = open_corpus(recipe.corpus.shards)
    schedule = Schedule(corpus.counts, Geometry(8, lanes=4, groups=2, window=2), recipe.seed, 1, tail="pad")
    source = UnitSource(recipe, corpus, schedule)
    render = UnitRenderer(source, threads=1)
    units = [render(source.read(number)) for number in range(schedule.units())]
    failed = [json.loads(text) for columns in units for text in columns["failure"] if text]
    assert {row["key"] for row in failed} == BAD
    for row in failed:
        assert row["shard"] == corpus.urls[int(row["key"][-2:]) % 3]
        assert row["reason"].startswith("not a decodable image")
        assert corpus.members(corpus.urls.index(row["shard"])).keys[row["row"]] == row["key"]
    assert sum(len(columns["id"]) for columns in units) == 24
    assert sum((columns["weight"] == 0).sum() for columns in units) == 3, "two bad, one empty"
    for number, columns in enumerate(units):
        assert (columns["unit"] == number).all()
        assert columns["seconds"].shape == (len(columns["id"]), 8)
        assert (columns["seconds"][:, [0, 1, 2, 4, 5, 6]] > 0).all()
        assert (columns["seconds"][:, [3, 7]] == 0).all(), "tasks are made in one go with the crop"


def test_the_bytes_of_a_row_are_counted_before_it_is_made(made: MakeRecipe) -> None:
    recipe = made(tasks={name: {} for name in ("rotation", "jigsaw", "occlusion", "colorization")})
    columns = next(pairs(recipe))
    pixels = [column[0].nbytes for column in columns.values() if column.dtype == np.uint8]
    assert row_bytes(recipe) == sum(pixels)


def test_where_each_sample_trains_one_task_it_is_drawn_by_its_key(tiles: Path) -> None:
    tasks = {"rotation": {}, "jigsaw": {"grid": 2, "permutations": 4}, "denoising": {}}
    document = {"name": "one", "seed": 1, "corpus": {"shards": str(tiles)}, "image": {"size": 32}, "tasks": tasks}

    def chosen(epoch: int, batch: int) -> dict[int, int]:
        recipe = parse_recipe({**document, "training": {"batch": batch, "tasks_per_sample": "one"}})
        return {int(key): int(task) for part in pairs(recipe, epoch) for key, task in zip(part["id"], part["task"])}

    first = chosen(0, 8)
    assert first == {**first, **chosen(0, 24)}
    assert first != chosen(1, 8)
    assert set(first.values()) == {0, 1, 2}
