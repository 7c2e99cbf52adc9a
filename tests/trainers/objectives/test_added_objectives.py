"""Objectives of other packages are found by their entry point and chosen by a task's `objective`."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.tasks import registry as tasks
from trainers.objectives import objective_class, registry

GROUP = "pseudolabel.objectives"
OBJECTIVE = """
from trainers.objectives.classes import ClassesObjective

class Smoothed(ClassesObjective):
    name = "smoothed"
"""


def test_an_objective_of_an_installed_package_is_one_that_tasks_can_name(install) -> None:
    task = tasks()["rotation"].model_validate({"objective": "smoothed"})
    with pytest.raises(UserError, match="unknown objective 'smoothed'"):
        objective_class(task)
    install("someones_objectives", OBJECTIVE, {GROUP: {"smoothed": "someones_objectives:Smoothed"}})
    assert objective_class(task).__module__ == "someones_objectives"


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ({"classes": "their_objectives:Smoothed"}, f"adds 'classes' to {GROUP} .*pseudolabel has one of that name"),
        ({"smoothed": "their_objectives:Absent"}, "their_objectives adds 'smoothed' .*which cannot be imported"),
        ({"smoothed": "their_objectives:OBJECT"}, "which is no subclass of trainers.objectives.base.Objective"),
    ],
)
def test_what_cannot_be_used_is_refused(install, points: dict[str, str], words: str) -> None:
    install("their_objectives", f"{OBJECTIVE}\nOBJECT = object()\n", {GROUP: points})
    with pytest.raises(UserError, match=words):
        registry()
