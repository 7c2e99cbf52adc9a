"""Frame order: three frames of a clip in a drawn order, which is the label, or whether time runs through it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.shortcuts import blind_scores
from pipeline.draws import Draws
from pipeline.errors import UserError
from pipeline.recipe import parse_recipe
from pipeline.tasks.frame_order import FrameOrder
from tests.pipeline.made_images import clip, engine, request
from tests.pipeline.tasks.test_shortcuts import BOUND
from tests.pipeline.test_draws import chi_squared, chi_squared_bound

SIZE, COUNT = 48, 40


def shown(task: FrameOrder, count: int = COUNT, size: int = SIZE) -> dict[str, np.ndarray]:
    return task.draw(Draws(5, 0, np.arange(count, dtype=np.uint64)).stream("frame_order"), size)


def test_a_clip_is_in_order_forwards_and_backwards_and_half_of_them_are() -> None:
    drawn = shown(FrameOrder(answer="verification"), 12_000)
    inside = drawn["order"][:, 1] == 1
    assert np.array_equal(drawn["label"], inside)
    for label, orders in ((1, 2), (0, 4)):
        found, times = np.unique(drawn["order"][drawn["label"] == label], axis=0, return_counts=True)
        assert len(found) == orders
        assert chi_squared(np.repeat(np.arange(orders), times), orders) < chi_squared_bound(orders)


def test_every_order_is_as_likely_where_the_order_is_asked_for() -> None:
    drawn = shown(FrameOrder(), 12_000)
    assert np.array_equal(drawn["label"], drawn["order"])
    which = np.unique(drawn["label"], axis=0, return_inverse=True)[1].reshape(-1)
    assert chi_squared(which, 6) < chi_squared_bound(6)


@pytest.mark.parametrize("name", ["cpu", "dali"])
@pytest.mark.parametrize("answer", ["verification", "order"])
def test_what_is_shown_is_the_frames_in_the_order_that_was_drawn(name: str, answer: str) -> None:
    task = FrameOrder(answer=answer)  # type: ignore[arg-type]
    drawn = shown(task)
    asked = request(clip() * COUNT, drawn={"frame_order": drawn}, frames=3)
    pixels, failures = engine(name, {"frame_order": task}, SIZE, frames=3).run(asked)
    assert not failures
    frames = pixels["frames"].reshape(COUNT, 3, SIZE, SIZE, 3)
    assert np.array_equal(pixels["image"], frames[:, 0])
    assert not np.array_equal(frames[0, 0], frames[0, 1])
    for i, order in enumerate(drawn["order"]):
        assert np.array_equal(pixels["frame_order.input"][i], frames[i, order])


def test_of_more_frames_the_first_three_are_shown() -> None:
    task, drawn = FrameOrder(), shown(FrameOrder())
    asked = request(clip(frames=5) * COUNT, drawn={"frame_order": drawn}, frames=5)
    one, other = (engine(name, {"frame_order": task}, SIZE, frames=5).run(asked)[0] for name in ("cpu", "dali"))
    for name in ("image", "frames", "frame_order.input"):
        assert np.array_equal(one[name].shape, other[name].shape)
        assert np.abs(one[name].astype(int) - other[name]).mean() < 0.5
    frames = one["frames"].reshape(COUNT, 5, SIZE, SIZE, 3)
    assert all(np.array_equal(one["frame_order.input"][i], frames[i, order]) for i, order in enumerate(drawn["order"]))


def test_nor_can_verification_be_learnt_on_pixel_noise() -> None:
    gains = blind_scores(FrameOrder(answer="verification"), 32, 2000, 100)
    assert gains.mean() / (gains.std(ddof=1) / np.sqrt(len(gains))) < BOUND


def test_captions_name_the_frames() -> None:
    for task in (FrameOrder(), FrameOrder(answer="verification")):
        drawn = shown(task)
        for i in range(COUNT):
            words = task.caption({name: values[i] for name, values in drawn.items()})
            assert words.endswith("frames " + " ".join(str(frame + 1) for frame in drawn["order"][i]))
            assert words.startswith(
                ("frames", "in order", "not in order")[0 if task.answer == "order" else 2 - drawn["label"][i]]
            )


@pytest.mark.parametrize(("corpus", "words"), [({}, "is not set"), ({"frames": 2}, "is 2")])
def test_a_recipe_without_as_many_frames_is_refused(corpus: dict[str, int], words: str) -> None:
    document = {"name": "a", "seed": 1, "corpus": {"shards": "x", **corpus}, "tasks": {"rotation": {}, "frame_order": {}}}
    with pytest.raises(UserError, match=rf"tasks\.frame_order: it needs 3 frames .* {words}: set `corpus\.frames: 3`"):
        parse_recipe(document)
