"""Rendering adds no shortcut: on pixel noise nothing reveals where a patch was or how far an image was turned.

All that a network could learn there are traces of the rendering: borders, interpolation, places. A small one is trained on each
task whose label is one of classes, an order or an angle, and must stay at chance. `benchmarks/shortcuts.py` is the long version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from benchmarks.shortcuts import blind_scores, depends_on_content
from pipeline.tasks import Drawn, Task, registry
from pipeline.tasks.rotation import Rotation

SAMPLES, STEPS, SIZE = 2000, 100, 32
BOUND = 4.0
"""Standard errors above chance that no run reaches by luck: one in thirty thousand."""

TASKS = {name: cls() for name, cls in registry().items() if depends_on_content(cls())}
RENDERED_ALIKE = {"jigsaw": "jigsaw_order", "relative_position": "jigsaw_order"}
"""Tasks whose inputs are made by the same operations as another's, whose label tells more of them."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A network this small gains nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def standard_errors(task: Task) -> float:
    """How far the network is above chance on samples that it was not trained on, in standard errors."""
    gains = blind_scores(task, SIZE, SAMPLES, STEPS)
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    return float(gains.mean() / max(error, 1e-9))  # a network that is always right has no error


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in RENDERED_ALIKE else []) for name in TASKS]
)
def test_on_pixel_noise_a_network_stays_at_chance(name: str) -> None:
    assert standard_errors(TASKS[name]) < BOUND


class FramedRotation(Rotation):
    """Turns an image whose upper border is painted, a shortcut like the black corners of a turned photo."""

    name: ClassVar[str] = "framed_rotation"

    def draw(self, rng: Any, size: int) -> Drawn:
        return {**super().draw(rng, size), "boxes": np.broadcast_to([0, 0, 1, size], (rng.n, 1, 4))}

    def render(self, ops: Any, image: Any, drawn: Drawn) -> Any:
        return ops.rotate90(ops.erase(image, drawn["boxes"], (0, 0, 0)), drawn["turns"])


class SmoothedRotation(Rotation):
    """Turns an image by interpolation, which smooths it at some angles only."""

    name: ClassVar[str] = "smoothed_rotation"

    def draw(self, rng: Any, size: int) -> Drawn:
        drawn = super().draw(rng, size)
        angle = drawn["label"] * np.pi / 9
        turn = np.stack([np.stack([np.cos(angle), -np.sin(angle)], 1), np.stack([np.sin(angle), np.cos(angle)], 1)], 1)
        shift = size / 2 - turn.sum(axis=2) * self._side(size) / 2
        return {"matrix": np.concatenate([turn, shift[:, :, None]], axis=2), "label": drawn["label"]}

    def _side(self, size: int) -> int:
        return int(size / 2**0.5) - 1

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (self._side(size), self._side(size), 3)

    def render(self, ops: Any, image: Any, drawn: Drawn) -> Any:
        return ops.affine(image, drawn["matrix"], self._side(ops.size))


@pytest.mark.parametrize("task", [FramedRotation(), SmoothedRotation()], ids=lambda task: task.name)
def test_a_trace_of_the_rendering_would_be_found(task: Task) -> None:
    assert standard_errors(task) > 3 * BOUND
