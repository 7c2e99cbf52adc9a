"""A run's folder compares recipes: which keys differ, and which of them change the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from pipeline.recipe import Recipe
from pipeline.rendering.engine import settled
from trainers.running.runs import Difference, RunFolder, decisive, differences


def test_differences_are_dotted_keys_with_both_values(run_recipe: Callable[..., Recipe]) -> None:
    was = run_recipe().model_dump(mode="json")
    now = run_recipe({"tasks": {"rotation": {"weight": 2}, "occlusion": {}}, "image": {"size": 48}}, epochs=6).model_dump(
        mode="json"
    )
    assert differences(was, was) == []
    found = {difference.key: difference for difference in differences(was, now)}
    assert list(found) == ["image.size", "tasks.rotation.weight", "tasks.jigsaw", "tasks.occlusion", "training.epochs"]
    assert found["training.epochs"] == Difference("training.epochs", 3, 6)
    assert str(found["training.epochs"]) == "training.epochs (was 3, now 6)"
    assert (found["tasks.jigsaw"].now, found["tasks.occlusion"].was) == (None, None)
    assert str(found["tasks.occlusion"]).startswith("tasks.occlusion (was not set, now {")
    assert max(len(str(difference)) for difference in found.values()) < 120


def test_what_decides_a_stage_leaves_out_circumstances_and_names_it_as_ever(run_recipe: Callable[..., Recipe]) -> None:
    calm = run_recipe({"downstream": {"train": "a", "test": "b"}})
    other = run_recipe({"downstream": {"train": "a", "test": "c"}, "placement": {"actors": 2}}, log_steps=7, keep=9)
    one, two = (recipe.model_dump(mode="json") for recipe in (calm, other))
    assert decisive(one, "pretrain") == decisive(two, "pretrain")
    assert [found.key for found in differences(decisive(one, "finetune"), decisive(two, "finetune"))] == ["downstream.test"]
    left_out: dict[str, Any] = {
        **dict.fromkeys(("placement", "failures", "render", "storage", "tracking", "downstream"), True),
        "training": {"workers", "resize_seconds", "cpus", "gpus", "threads", "keep", "log_steps", "checkpoint_epochs"},
    }
    content = settled(calm).model_dump(mode="json", exclude=left_out)
    named = hashlib.sha256(json.dumps(["pretrain", content], sort_keys=True).encode()).hexdigest()[:12]
    assert RunFolder(calm).identity("pretrain") == RunFolder(other).identity("pretrain") == named
