"""What every registered task promises; new tasks are found and tested without a change here."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from pipeline.draws import Draws, sample_id
from pipeline.labels import Classes, Colours, Direction, Order, Pixels, Region, Views
from pipeline.tasks import Drawn, Task, registry
from pipeline.tasks.assigned import Assigned
from pipeline.tasks.supervised import Supervised
from tests.pipeline.children import run_python
from tests.pipeline.made_images import FRAMES, by_cpu_ops, encode, engine, photo, request
from tests.pipeline.test_draws import KEYS, chi_squared, chi_squared_bound

IDS = np.array([sample_id(f"k/{n}") for n in range(KEYS)], np.uint64)
SIZE, COUNT = 48, 24

every_task = pytest.mark.parametrize("task", [cls() for cls in registry().values()], ids=list(registry()))


def draw(task: Task, count: int, size: int = SIZE) -> Drawn:
    return task.draw(Draws(1, 0, IDS[:count]).stream(task.name), size)


def class_labels(task: Task, drawn: Drawn) -> list[tuple[np.ndarray, int]]:
    """Each label that is one of several classes, int (n,), and of how many."""
    kind = task.label_kind()
    if isinstance(kind, Classes | Region):
        return [(drawn["label"], kind.count if isinstance(kind, Classes) else kind.grid**2)]
    if isinstance(kind, Order):
        return [(drawn["label"][:, place], kind.items) for place in range(kind.items)]
    if isinstance(kind, Direction):  # eight parts of the circle
        return [((np.arctan2(*drawn["label"].T) / (2 * np.pi) * 8 // 1 % 8).astype(np.int64), 8)]
    return []


@cache
def rendered() -> dict[str, dict[str, np.ndarray]]:
    """All tasks on the same clips, by engine. The frames have the crop's size, so that both engines start from equal pixels."""
    tasks = {name: cls() for name, cls in registry().items()}
    whole = photo(SIZE + COUNT, SIZE + COUNT)
    places = [(i, COUNT - (i + 5 * frame) % COUNT) for i in range(COUNT) for frame in range(FRAMES)]
    files = [encode(whole.crop((x, y, x + SIZE, y + SIZE)), "PNG") for x, y in places]
    drawn = {name: draw(task, COUNT) for name, task in tasks.items()}
    asked = request(files, drawn=drawn, frames=FRAMES, views=tasks, size=SIZE)
    return {name: engine(name, tasks, SIZE, frames=FRAMES).run(asked)[0] for name in ("cpu", "dali")}


def test_tasks_are_there_under_their_names_and_described() -> None:
    assert {"colorization", "jigsaw", "occlusion", "rotation"} <= set(registry())
    for name, cls in registry().items():
        assert cls.name == name
        assert cls.source
        assert cls.__doc__
        for field in cls.model_fields.values():
            assert field.description


@every_task
def test_labels_are_in_range_and_balanced_over_ten_thousand_keys(task: Task) -> None:
    kind = task.label_kind()
    drawn = draw(task, KEYS, 32)
    assert ("label" in drawn) == (not isinstance(kind, Pixels | Colours | Views))
    assert ("mask" in drawn) == getattr(kind, "masked", False)
    if isinstance(kind, Order):
        assert np.array_equal(np.sort(drawn["label"], axis=1), np.tile(np.arange(kind.items), (KEYS, 1)))
    if isinstance(kind, Direction):
        assert drawn["label"].dtype == np.float32
        assert np.abs(np.hypot(*drawn["label"].T) - 1).max() < 1e-6
    for label, count in class_labels(task, drawn):
        assert label.dtype == np.int64
        assert label.shape == (KEYS,)
        if isinstance(task, Assigned | Supervised):  # given, not drawn
            assert (label == -1).all()
            continue
        assert 0 <= label.min() <= label.max() < count
        assert chi_squared(label, count) < chi_squared_bound(count)


@every_task
@pytest.mark.parametrize("size", [32, 47, 224])
def test_shapes_and_types_are_as_declared(task: Task, size: int) -> None:
    try:
        task.check(size)
    except ValueError:
        assert size == 47, "every task's defaults work on the usual sizes"
        return
    count = 5
    drawn = draw(task, count, size)
    assert all(len(values) == count for values in drawn.values())
    kind = task.label_kind()
    if "mask" in drawn:
        assert drawn["mask"].dtype == np.uint8
        side = kind.side if isinstance(kind, Colours) else size
        assert drawn["mask"].shape == (count, side, side)
        assert set(np.unique(drawn["mask"])) <= {0, 1}
    views = [side for number, side in task.view_columns(size).values() for _ in range(number)]
    for view, side in enumerate(views or [size]):
        image = np.stack([np.tile(np.asarray(photo().resize((side, side))), (task.frames, 1, 1))] * count)
        before = image.copy()
        of_view = {name: values[:, view] for name, values in drawn.items()} if views else drawn
        found = by_cpu_ops(task, image, of_view)
        assert found.dtype == np.uint8
        assert found.shape == (image.shape if views else (count, *task.input_shape(size)))
        assert np.array_equal(image, before), "a task changed the crop, which others share"


@every_task
def test_a_sample_s_drawing_depends_on_itself_alone(task: Task) -> None:
    whole = task.draw(Draws(1, 0, IDS[:40]).stream(task.name), 64)
    part = task.draw(Draws(1, 0, IDS[[31, 7]]).stream(task.name), 64)
    for name, values in whole.items():
        assert np.array_equal(values[[31, 7]], part[name])


@every_task
def test_engines_agree_within_a_level(task: Task) -> None:
    """Views are resized, and each engine does that its own way; what both do with the same pixels is held in their contract."""
    assert np.array_equal(rendered()["cpu"]["image"], rendered()["dali"]["image"])
    views = task.view_columns(SIZE)
    for column in views or ["input"]:
        one, other = (rendered()[name][f"{task.name}.{column}"].astype(int) for name in ("cpu", "dali"))
        difference = np.abs(one - other)
        assert views or difference.max() <= 1
        assert difference.mean() < (1.5 if views else 0.1)


@every_task
def test_what_is_asked_for_is_not_given_already(task: Task) -> None:
    kind = task.label_kind()
    if not isinstance(kind, Pixels) or kind.code is not None:  # a bottleneck is asked for the very pixels that go into it
        return
    columns = rendered()["cpu"]
    given, target = columns[f"{task.name}.input"].astype(int), columns["image"].astype(int)
    where = draw(task, COUNT)["mask"].astype(bool) if kind.masked else np.ones(given.shape[:3], bool)
    for one, wanted, asked in zip(given, target, where):
        if one.shape == wanted.shape:
            assert np.abs(one - wanted)[asked].mean() > 1
        else:
            assert one.size < wanted.size


@every_task
def test_a_task_can_say_what_it_did(task: Task) -> None:
    drawn = draw(task, 3, 64)
    caption = task.caption({name: values[0] for name, values in drawn.items()})
    assert isinstance(caption, str)


def test_a_recipe_and_the_tasks_load_nothing_heavy() -> None:
    """`pseudolabel --help` and a refused recipe must answer at once."""
    script = """
        import sys
        import pipeline
        tasks = {name: {} for name in pipeline.registry()}
        corpus = {"shards": "x", "frames": 3, "annotations": {"labels": "y"}}
        pipeline.parse_recipe({"name": "a", "seed": 1, "corpus": corpus, "tasks": tasks})
        heavy = ("torch", "ray", "cv2", "nvidia", "pyarrow", "fsspec", "PIL")
        print([name for name in heavy if name in sys.modules])
    """
    done = run_python(script)
    assert done.stdout.strip() == "[]", done.stderr
