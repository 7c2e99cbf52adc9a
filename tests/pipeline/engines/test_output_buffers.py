"""Output buffers: pixels that stay on their device are the same pairs, as tensors, also for samples that cannot be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from pipeline.engines import gpus_visible, output_buffers, pixel_shapes
from pipeline.engines.dali import DaliEngine
from pipeline.engines.output_buffers import DeviceBuffers
from pipeline.ordering.order import Geometry, Schedule
from pipeline.rendering.renderer import Renderer
from pipeline.streaming.batches import batches
from tests.pipeline.made_images import good, of_one_image, unlike
from tests.pipeline.rendering.test_renderer import BAD, SIZE, recipe, sample

FILES = {**{name: good()[name] for name in ("jpeg", "png", "webp", "grey png")}, "bad": BAD["damaged png"], "text": BAD["text"]}


def staying() -> Renderer:
    """A renderer whose pixels stay on its device: the CPU, as if it were a GPU."""
    render = Renderer(recipe("dali"))
    render.engine = DaliEngine({name: task() for name, task in unlike(of_one_image()).items()}, SIZE, stay=True, batch=3)
    return render


def test_tensors_hold_the_pairs_that_arrays_hold() -> None:
    samples = [sample(name, file) for name, file in FILES.items()]
    here, there = Renderer(recipe("dali"))(samples, 1), staying()(samples, 1)
    assert there.failures == here.failures
    assert {samples[row].key for row in there.failures} == {"bad", "text"}
    assert sum(isinstance(column, torch.Tensor) for column in there.columns.values()) == len(
        pixel_shapes(recipe("dali").tasks, SIZE)
    )
    for name, column in here.columns.items():
        assert np.array_equal(column, np.asarray(there.columns[name])), name


def test_what_is_copied_on_a_device_goes_on_the_buffers_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the default stream, the copy of the row numbers would wait for all queued work of the network."""
    depth, outside = 0, []

    @contextmanager
    def stream(self: DeviceBuffers) -> Iterator[None]:
        nonlocal depth
        depth += 1
        yield
        depth -= 1

    def watched(device: torch.device, rows: np.ndarray) -> torch.Tensor:
        outside.extend([] if depth else [len(rows)])
        return torch.from_numpy(rows)

    monkeypatch.setattr(DeviceBuffers, "_on_stream", stream)
    monkeypatch.setattr(output_buffers, "rows_on", watched)
    staying()([sample(name, file) for name, file in FILES.items()], 1)
    assert outside == []


def test_batches_of_tensors_are_tensors() -> None:
    plan = Schedule(np.array([16]), Geometry(batch=8, lanes=4, groups=2, window=2), seed=0, epochs=1)
    units = [{"unit": np.full(8, number), "image": torch.arange(8) + 8 * number} for number in range(2)]
    made = list(batches(plan, 0, 0, 1, units))
    assert [batch["image"].tolist() for _, batch in made] == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]


@pytest.mark.gpu
@pytest.mark.skipif(gpus_visible() == 0, reason="no NVIDIA GPU is visible to this process")
def test_on_a_gpu_pixels_are_not_copied_back() -> None:
    samples = [sample(name, file) for name, file in FILES.items()]
    host, device = Renderer(recipe("dali"))(samples, 1), Renderer(recipe("dali"), gpu=0)(samples, 1)
    assert device.columns["image"].device == torch.device("cuda:0")
    for name, column in host.columns.items():
        there = device.columns[name]
        assert np.array_equal(column, there.cpu() if isinstance(there, torch.Tensor) else there), name
