"""A step on pixels that stay on the device that rendered them: nothing takes one of their tensors for an array."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.renderer import Columns, Renderer
from pipeline.rendering.units import chosen_task
from pipeline.shards.corpus import Sample
from pipeline.tasks import registry
from tests.trainers.device import OnDevice
from trainers.learning.gradients import accumulate
from trainers.learning.loop import _StepTally
from trainers.learning.pretext import PretextModel

_DRAWN = {name: task for name, task in registry().items() if task.frames == 1 and not task.learns_classes}
TASKS = sorted({type(task().label_kind()): name for name, task in _DRAWN.items()}.values())
"""A task of each kind of label that is drawn, so that every sample has one."""


@pytest.fixture
def staying(on_device: None, crops: Callable[[int, int], np.ndarray]) -> Callable[[Recipe], Columns]:
    """The columns of eight photos, one of them damaged, in a mixture of two corpora."""

    def png(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    def make(recipe: Recipe) -> Columns:
        files = [png(crop) for crop in crops(8, 40)]
        files[3] = files[3][:60]
        samples = [Sample(f"{n}", n, data, "png", -1, None) for n, data in enumerate(files)]
        columns = Renderer(recipe)(samples, 0).columns
        return {**columns, **chosen_task(recipe, 0, columns["id"]), "corpus": np.arange(8) % 2}

    return make


def spec(tasks: list[str], **training: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "device",
            "seed": 1,
            "corpus": {"shards": "unused"},
            "image": {"size": 32},
            "engine": "dali",
            "tasks": {name: {} for name in tasks},
            "training": {"backbone": {"name": "shufflenet_v2_x0_5", "stem": "standard"}, **training},
        }
    )


@pytest.mark.parametrize(("share", "tasks"), [("all", TASKS), ("one", ["rotation", "occlusion"])], ids=["all", "one"])
def test_every_kind_of_label_is_learnt_and_counted_from_a_devices_tensors(
    staying: Callable[[Recipe], Columns], share: str, tasks: list[str]
) -> None:
    recipe = spec(tasks, tasks_per_sample=share)
    columns, model = staying(recipe), PretextModel(recipe, seed=0)
    assert isinstance(columns["image"], OnDevice)
    assert sum(columns["weight"]) == 7
    outcomes = accumulate(model, tasks, columns, 8, "float32")
    tally = _StepTally(tuple(tasks), torch.device("cpu"))
    tally.add(outcomes, columns)
    assert tally.corpora.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert tally.values[0] == 8
    assert sum(outcome.count for outcome in outcomes.values()) == 7 * (len(tasks) if share == "all" else 1)
    assert all(weight.grad is not None for weight in model.parameters())
