"""Rotation: the label is the quarter turn that was made."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.draws import Draws
from pipeline.engines import Engine
from pipeline.tasks.rotation import Rotation
from tests.pipeline.made_images import engine, good, request

COUNT = 32


@pytest.fixture(scope="module", params=["cpu", "dali"])
def machine(request: pytest.FixtureRequest) -> tuple[Engine, Rotation]:
    task = Rotation(turns=(3, 0, 2))
    return engine(request.param, {"rotation": task}, size=40), task


def test_the_input_is_the_crop_turned_as_the_label_says(machine: tuple[Engine, Rotation]) -> None:
    runner, task = machine
    drawn = task.draw(Draws(0, 0, np.arange(COUNT, dtype=np.uint64)).stream("rotation"), 40)
    pixels, _ = runner.run(request([good()["jpeg"]] * COUNT, drawn={"rotation": drawn}))
    assert set(drawn["label"]) == {0, 1, 2}
    for i, label in enumerate(drawn["label"]):
        assert np.array_equal(pixels["rotation.input"][i], np.rot90(pixels["image"][i], (3, 0, 2)[label]))


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ((0, 1, 1), "repeats a turn"),
        ((0,), "at least two"),
        ((), "at least two"),
        ((0, 4), "0, 1, 2 or 3"),
        ((0, -1), "0, 1, 2 or 3"),
    ],
)
def test_impossible_turns_are_refused(turns: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Rotation(turns=turns)


def test_the_caption_says_the_angle() -> None:
    assert "270" in Rotation(turns=(3, 0)).caption({"turns": np.int64(3), "label": np.int64(0)})
