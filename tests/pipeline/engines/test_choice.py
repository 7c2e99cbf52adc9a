"""Which engine a recipe means: on a cluster the recipe itself decides, so that every machine renders with the same one."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.recipe import parse_recipe
from pipeline.rendering.engine import settled


@pytest.mark.parametrize(
    ("sections", "engine"),
    [
        ({}, "cpu"),
        ({"placement": {"gpus": 0.5}}, "dali"),
        ({"training": {"gpus": 1}}, "cpu"),
        ({"training": {"gpus": 1}, "placement": {"render": "trainer"}}, "dali"),
        ({"placement": {"gpus": 0.5, "render": "trainer"}}, "cpu"),
        ({"engine": "cpu", "placement": {"gpus": 1}}, "cpu"),
        ({"engine": "dali"}, "dali"),
    ],
)
def test_auto_is_dali_where_the_rendering_processes_are_given_gpus(sections: dict[str, Any], engine: str) -> None:
    recipe = parse_recipe({"name": "a", "seed": 0, "corpus": {"shards": "x"}, **sections})
    assert settled(recipe).engine == engine
