"""Tasks made of crops that came without them: the pairs that the engine makes in one go, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.draws import sample_id
from pipeline.recipe import parse_recipe
from pipeline.rendering.renderer import Renderer
from pipeline.rendering.tasks_on_crops import CropTaskRenderer
from pipeline.rendering.units import UnitSource, seconds_column
from pipeline.shards.corpus import Sample
from pipeline.streaming.plan import sends_crops
from tests.pipeline.made_images import good, of_one_image

ON_CROPS = [name for name, task in of_one_image().items() if not task().view_columns(48)]

DOCUMENT = {"name": "a", "seed": 5, "corpus": {"shards": "x"}, "image": {"size": 48}, "engine": "cpu"}


def samples() -> list[Sample]:
    """Photos of every kind, and one that cannot be decoded."""
    files = {**good(), "text": b"no image"}
    return [Sample(name, sample_id(name), data, "jpg", -1, None) for name, data in files.items()]


@pytest.mark.parametrize("task", ON_CROPS)
@pytest.mark.parametrize(("epoch", "threads"), [(0, 1), (3, 1), (3, 2), (3, 5)])
def test_a_task_on_crops_is_the_task_of_the_engine(task: str, epoch: int, threads: int) -> None:
    recipe = parse_recipe({**DOCUMENT, "tasks": {task: {}}})
    whole = Renderer(recipe)(samples(), epoch).columns
    crops = Renderer(recipe.model_copy(update={"tasks": {}}))(samples(), epoch).columns
    crops["seconds"] = seconds_column(len(crops["id"]), {"render": (1.0, 2.0)})
    actors = crops["seconds"].copy()
    CropTaskRenderer(recipe, threads)(crops, epoch)
    seconds = crops.pop("seconds")
    assert (seconds[:, [3, 7]] > 0).all()
    assert np.array_equal(np.delete(seconds, [3, 7], axis=1), np.delete(actors, [3, 7], axis=1)), "the actors' own"
    assert crops.keys() == whole.keys()
    for name, column in whole.items():
        np.testing.assert_array_equal(crops[name], column, err_msg=name)


@pytest.mark.parametrize(
    ("sections", "alone"),
    [
        ({}, True),
        ({"engine": "dali"}, False),
        ({"placement": {"render": "trainer"}}, False),
        ({"tasks": {}}, False),
        ({"tasks": {"rotation": {}, "simclr": {}}}, False),
    ],
)
def test_crops_are_sent_alone_where_the_pairs_come_out_the_same(sections: dict[str, Any], alone: bool) -> None:
    recipe = parse_recipe({**DOCUMENT, "tasks": {"rotation": {}}, **sections})
    assert sends_crops(UnitSource(recipe, None, None)) == alone  # type: ignore[arg-type]
