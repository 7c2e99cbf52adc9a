"""Views come out of one decode: each is its own window of the upright photo, and nobody else's pixels change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.draws import Draws, sample_id
from pipeline.engines.cpu import CpuEngine
from pipeline.engines.decoding import WindowDecoder
from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.renderer import Renderer
from pipeline.shards.corpus import Sample
from pipeline.tasks.views import ViewTask
from tests.pipeline.made_images import encode, good, photo, seen_by_pil, sixteen_bits, turned

ENGINES = ["cpu", "dali"]
SIZE = 32
PLAIN = {"jitter": 0, "grey": 0, "blur": 0, "small_views": 2}
OTHERS: dict[str, Any] = {"rotation": {}, "colorization": {}}


def recipe(tasks: Any, engine: str = "cpu", **image: Any) -> Recipe:
    document = {"name": "a", "seed": 5, "corpus": {"shards": "x"}, "image": {"size": SIZE, **image}, "engine": engine}
    return parse_recipe({**document, "tasks": tasks})


def samples(files: dict[str, bytes]) -> list[Sample]:
    return [Sample(name, sample_id(name), data, "jpg", -1, None) for name, data in files.items()]


@pytest.mark.parametrize("engine", ENGINES)
def test_each_view_is_the_window_that_was_drawn_of_the_upright_photo(engine: str) -> None:
    """PIL, given the same windows, gives the same pictures, however the photo was stored."""
    files = {f"turned {n}": turned("PNG", n) for n in range(1, 9)} | {"16 bits": encode(sixteen_bits(), "PNG")}
    made = recipe({"simclr": PLAIN}, engine)
    columns = Renderer(made)(samples(files), 2).columns
    task = made.tasks["simclr"]
    assert isinstance(task, ViewTask)
    for row, (name, encoded) in enumerate(files.items()):
        upright = seen_by_pil(encoded)
        rng = Draws(5, 2, np.array([sample_id(name)], np.uint64)).stream("simclr")
        windows = task.windows(rng, np.array([upright.height]), np.array([upright.width]), SIZE)
        views = [*columns["simclr.input"][row], *columns["simclr.small"][row]]
        assert len(views) == 4
        for view, (top, left, height, width), mirrored in zip(views, windows.boxes[0].tolist(), windows.mirror[0]):
            crop = upright.crop((left, top, left + width, top + height)).resize(view.shape[:2], Image.Resampling.BILINEAR)
            expected = np.asarray(crop)[:, ::-1] if mirrored else np.asarray(crop)
            difference = np.abs(view.astype(int) - expected)
            assert engine == "dali" or difference.max() <= 2, (name, height, width)
            assert difference.mean() < 1, "DALI's filter is another; a window that is a pixel off is further away"


@pytest.mark.parametrize("engine", ENGINES)
def test_views_and_other_tasks_have_the_bytes_that_each_has_alone(engine: str) -> None:
    files = samples({**good(), **{str(n): turned("JPEG", n) for n in range(1, 9)}, "text": b"no image"})
    views = {"simclr": {"small_views": 2}, "byol": {}}
    together = Renderer(recipe(OTHERS | views, engine))(files, 1)
    assert set(together.failures) == {len(files) - 1}
    for tasks, image in ((OTHERS, True), (views, True), (views, False), ({"byol": {}}, False)):
        alone = Renderer(recipe(tasks, engine), image=image)(files, 1).columns
        assert ("image" in alone) == image
        for name, column in alone.items():
            np.testing.assert_array_equal(together.columns[name], column, err_msg=name)
    for name in ("simclr.input", "simclr.small", "byol.input"):
        assert not together.columns[name][-1].any(), "what could not be decoded is black"


def test_each_photo_is_decoded_once_and_no_more_of_it_than_its_windows_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[list[int]] = []
    plain = WindowDecoder.__call__

    def noted(self: WindowDecoder, stream: object, window: list[int]) -> np.ndarray:
        windows.append(list(window))
        return plain(self, stream, window)

    monkeypatch.setattr(WindowDecoder, "__call__", noted)
    small = {"scale": [0.05, 0.05], "small_views": 4, "small_scale": [0.05, 0.05]}
    files = samples({str(n): good()["jpeg"] for n in range(20)})
    Renderer(recipe({"simclr": small, "byol": {"scale": [0.05, 0.05]}}), image=False)(files, 0)
    assert len(windows) == len(files)
    areas = np.array([height * width for _, _, height, width in windows]) / (photo().width * photo().height)
    assert areas.min() < 0.8
    assert areas.max() <= 1


@pytest.mark.parametrize("engine", ENGINES)
def test_tiny_windows_of_tiny_photos_grey_and_deep_ones_become_views(engine: str) -> None:
    small = photo().resize((32, 32))
    files = {
        "rgb": encode(small, "JPEG"),
        "grey": encode(small.convert("L"), "PNG"),
        "grey jpeg": encode(small.convert("L"), "JPEG"),
        "16 bits": encode(Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257), "PNG"),
        "one pixel": good()["one pixel"],
        "narrow": encode(photo(180, 3), "PNG"),
    }
    tasks = {"simclr": {"scale": [0.05, 0.05], "blur": 1, "sigma": [9, 9], "jitter": 1, "small_views": 2, "small_size": 8}}
    pairs = Renderer(recipe(tasks, engine))(samples(files), 0)
    assert not pairs.failures
    assert pairs.columns["simclr.input"].shape == (6, 2, SIZE, SIZE, 3)
    assert pairs.columns["simclr.small"].shape == (6, 2, 8, 8, 3)
    grey = pairs.columns["simclr.input"][1:4].astype(int)
    assert (grey.max(axis=-1) - grey.min(axis=-1)).max() <= 1, "a grey photo has no colour to turn"


def test_photos_are_reduced_by_no_more_than_their_narrowest_window_allows() -> None:
    """Large windows of a large photo are decoded at a quarter; a small one among them forbids it."""
    large = encode(photo().resize((720, 528)), "JPEG", quality=92)
    plain = {"jitter": 0, "grey": 0, "blur": 0, "scale": [0.9, 1.0]}
    for parameters, same in ((plain, False), ({**plain, "small_views": 1, "small_scale": [0.0005, 0.0005]}, True)):
        full, reduced = (
            Renderer(recipe({"simclr": parameters}, reduced=reduced, scale=[0.9, 1.0]))(samples({"a": large}), 0).columns
            for reduced in (False, True)
        )
        assert np.array_equal(full["simclr.input"], reduced["simclr.input"]) == same
        assert np.abs(full["simclr.input"].astype(int) - reduced["simclr.input"]).mean() < 6


def test_two_tasks_of_one_kind_have_chance_of_their_own_and_a_new_one_changes_neither() -> None:
    files = samples({str(n): good()["jpeg"] for n in range(12)})
    tasks = {"simclr": {}, "second": {"task": "simclr"}, "half": {"task": "rotation", "turns": [0, 2]}}
    both = Renderer(recipe(tasks))(files, 0).columns
    assert not np.array_equal(both["simclr.input"], both["second.input"])
    assert set(both["half.label"]) == {0, 1}
    alone = Renderer(recipe({"simclr": {}}))(files, 0).columns
    np.testing.assert_array_equal(alone["simclr.input"], both["simclr.input"])


def test_threads_change_nothing() -> None:
    made = recipe({"swav": {}})
    files = samples({f"{name} {n}": file for n in range(2) for name, file in good().items()})
    one, four = (Renderer(made, threads)(files, 0).columns for threads in (1, 4))
    for name, column in one.items():
        np.testing.assert_array_equal(four[name], column)


def test_the_engine_makes_no_crop_that_nobody_asked_for() -> None:
    assert isinstance(Renderer(recipe({"simclr": {}}), image=False).engine, CpuEngine)
    assert "image" in Renderer(recipe({"simclr": {}, **OTHERS}), image=False)(samples({"a": good()["png"]}), 0).columns
