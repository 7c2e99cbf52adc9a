"""However many tasks a recipe has, each photo, or frame of a clip, is decoded once."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.draws import Draws
from pipeline.engines.cpu import CpuEngine
from pipeline.engines.dali import build_graph
from pipeline.tasks import Task, registry
from tests.pipeline.engines.test_gpu_graph import operators
from tests.pipeline.made_images import FRAMES, good, of_one_image, request

SIZE = 48
TASKS = {name: task() for name, task in registry().items()}


@pytest.mark.parametrize(("tasks", "frames"), [(of_one_image(), 1), (registry(), FRAMES)])
def test_the_graph_of_all_tasks_has_one_decoder_a_frame(tasks: dict[str, type[Task]], frames: int) -> None:
    graph, _ = build_graph(
        {name: task() for name, task in tasks.items()}, SIZE, threads=1, batch=8, device_id=None, gpu=True, frames=frames
    )
    assert [name for name, _ in operators(graph.serialize()) if "decoder" in name.lower()] == ["decoders__ImageSlice"] * frames


def test_the_cpu_engine_decodes_each_photo_once_for_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [file for name, file in good().items() if "pixel" not in name][: 4 * FRAMES]
    engine = CpuEngine(TASKS, SIZE)
    decoded: list[int] = []
    plain = engine._decode

    def counted(asked: object, row: int, thread: int) -> np.ndarray | None:
        decoded.append(row)
        return plain(asked, row, thread)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "_decode", counted)
    draws = Draws(0, 0, np.arange(4, dtype=np.uint64))
    drawn = {name: task.draw(draws.stream(name), SIZE) for name, task in TASKS.items()}
    columns, failures = engine.run(request(files, drawn=drawn, frames=FRAMES, views=TASKS, size=SIZE))
    assert len(columns) == 2 + sum(len(task.view_columns(SIZE)) or 1 for task in TASKS.values())
    assert not failures
    assert decoded == list(range(len(files)))
