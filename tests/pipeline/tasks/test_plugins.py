"""Tasks of other packages are found by their entry point; one that cannot be used is refused with the package's name."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.recipe import parse_recipe
from pipeline.tasks import registry

GROUP = "pseudolabel.tasks"
TASK = """
from pipeline.tasks.rotation import Rotation

class Turned(Rotation):
    name = "turned"
    source = "a test"
"""


def test_a_task_of_an_installed_package_is_one_that_recipes_can_name(install) -> None:
    assert "turned" not in registry()
    install("someones_tasks", TASK, {GROUP: {"turned": "someones_tasks:Turned"}})
    recipe = parse_recipe({"name": "a", "seed": 1, "corpus": {"shards": "x"}, "tasks": {"turned": {}}})
    assert type(recipe.tasks["turned"]).__module__ == "someones_tasks"


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ({"jigsaw": "their_tasks:Turned"}, "their_tasks adds 'jigsaw' to pseudolabel.tasks .*pseudolabel has one of that name"),
        ({"turned": "their_tasks:Absent"}, "their_tasks adds 'turned' .*which cannot be imported: AttributeError: .*Absent"),
        ({"turned": "their_tasks.deep:Turned"}, "which cannot be imported: ModuleNotFoundError"),
        ({"turned": "their_tasks:Draws"}, "which is no subclass of pipeline.tasks.base.Task"),
        ({"twisted": "their_tasks:Turned"}, "a class whose `name` is 'turned': give both the same name"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_package_and_the_cause(install, points: dict[str, str], words: str) -> None:
    install("their_tasks", f"{TASK}\nfrom pipeline.draws import Draws\n", {GROUP: points})
    with pytest.raises(UserError, match=words):
        registry()


def test_a_module_that_fails_as_it_is_imported_is_refused_in_one_line(install) -> None:
    install("failing_tasks", "raise RuntimeError('no licence\\nfound')", {GROUP: {"turned": "failing_tasks:Turned"}})
    with pytest.raises(UserError, match=r"cannot be imported: RuntimeError: no licence found; repair or uninstall the package$"):
        registry()


def test_two_packages_that_add_one_name_are_both_named(install) -> None:
    for name in ("first_tasks", "second_tasks"):
        install(name, TASK, {GROUP: {"turned": f"{name}:Turned"}})
    with pytest.raises(
        UserError, match=r"the package (first|second)_tasks adds 'turned' .*so does the package (first|second)_tasks"
    ):
        registry()
