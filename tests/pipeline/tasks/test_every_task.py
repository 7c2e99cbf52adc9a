"""What every task promises, the ones to come included: they are found by being there."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.draws import Draws, sample_id
from pipeline.engines.cpu import CpuOps
from pipeline.labels import Classes, Pixels
from pipeline.tasks import Task, registry
from tests.pipeline.children import run_python
from tests.pipeline.images import photo
from tests.pipeline.test_draws import KEYS, chi_squared, chi_squared_bound

IDS = np.array([sample_id(f"k/{n}") for n in range(KEYS)], np.uint64)

every_task = pytest.mark.parametrize("task", [cls() for cls in registry().values()], ids=list(registry()))


def test_the_four_tasks_are_there_under_their_names() -> None:
    assert {"colorization", "jigsaw", "occlusion", "rotation"} <= set(registry())
    for name, cls in registry().items():
        assert cls.name == name
        assert cls.source
        assert cls.__doc__
        for field in cls.model_fields.values():
            assert field.description


@every_task
def test_class_labels_are_in_range_and_balanced_over_ten_thousand_keys(task: Task) -> None:
    kind = task.label_kind()
    drawn = task.draw(Draws(1, 0, IDS).stream(task.name), 96)
    if not isinstance(kind, Classes):
        assert "label" not in drawn
        return
    label = drawn["label"]
    assert label.dtype == np.int64
    assert label.shape == (KEYS,)
    assert 0 <= label.min() <= label.max() < kind.count
    assert chi_squared(label, kind.count) < chi_squared_bound(kind.count)


@every_task
@pytest.mark.parametrize("size", [32, 47, 224])
def test_shapes_and_types_are_as_declared(task: Task, size: int) -> None:
    task.check(size)
    count = 5
    drawn = task.draw(Draws(1, 0, IDS[:count]).stream(task.name), size)
    assert all(len(values) == count for values in drawn.values())
    kind = task.label_kind()
    if isinstance(kind, Pixels) and kind.masked:
        assert drawn["mask"].dtype == np.uint8
        assert drawn["mask"].shape == (count, size, size)
        assert set(np.unique(drawn["mask"])) <= {0, 1}
    image = np.stack([np.asarray(photo().resize((size, size)))] * count)
    before = image.copy()

    def spread(work) -> None:
        for row in range(count):
            work(row, 0)

    found = task.render(CpuOps(size, spread), image, drawn)
    assert found.dtype == np.uint8
    assert found.shape == (count, *task.input_shape(size))
    assert np.array_equal(image, before)


@every_task
def test_a_sample_s_drawing_depends_on_itself_alone(task: Task) -> None:
    whole = task.draw(Draws(1, 0, IDS[:40]).stream(task.name), 64)
    part = task.draw(Draws(1, 0, IDS[[31, 7]]).stream(task.name), 64)
    for name, values in whole.items():
        assert np.array_equal(values[[31, 7]], part[name])


@every_task
def test_a_task_can_say_what_it_did(task: Task) -> None:
    drawn = task.draw(Draws(1, 0, IDS[:3]).stream(task.name), 64)
    caption = task.caption({name: values[0] for name, values in drawn.items()})
    assert isinstance(caption, str)


def test_a_recipe_and_the_tasks_load_nothing_heavy() -> None:
    """`pseudolabel --help` and a refused recipe must answer at once."""
    script = """
        import sys
        import pipeline
        tasks = {name: {} for name in pipeline.registry()}
        pipeline.parse_recipe({"name": "a", "seed": 1, "corpus": {"shards": "x"}, "tasks": tasks})
        heavy = ("torch", "ray", "cv2", "nvidia", "pyarrow", "fsspec", "PIL")
        print([name for name in heavy if name in sys.modules])
    """
    done = run_python(script)
    assert done.stdout.strip() == "[]", done.stderr
