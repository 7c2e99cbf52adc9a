"""Crops of real photos, and the columns that the four tasks make of them, written here in plain numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from pipeline.draws import Draws
from pipeline.recipe import Recipe, parse_recipe
from pipeline.tasks import registry
from tests.pipeline.made_images import by_cpu_ops
from tests.trainers.device import StayingBuffers

Columns = dict[str, Tensor]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from two threads, and lose much where other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def crops() -> Callable[[int, int], np.ndarray]:
    """`crops(n, size)`: uint8 (n, size, size, 3), cut from photos in turn, the same on every call."""
    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]

    def cut(n: int, size: int) -> np.ndarray:
        rng = np.random.default_rng(size)
        found = []
        for i in range(n):
            photo = photos[i % len(photos)]
            top, left = rng.integers(0, photo.shape[0] - size), rng.integers(0, photo.shape[1] - size)
            found.append(photo[top : top + size, left : left + size])
        return np.stack(found)

    return cut


@pytest.fixture(scope="session")
def columns(crops: Callable[[int, int], np.ndarray]) -> Callable[[int, int], Columns]:
    """`columns(n, size)`: a batch with rotation, jigsaw (2 x 2 in 5 orders), occlusion and colorization."""

    def make(n: int, size: int) -> Columns:
        image, rng = crops(n, size), np.random.default_rng(n)
        turn = rng.integers(0, 4, n)
        half, tile = size // 2, size // 2 - 3
        patches = np.stack([image[:, t : t + tile, l : l + tile] for t in (0, half) for l in (0, half)], 1)  # noqa: E741
        orders = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0], [1, 2, 3, 0]])
        order = rng.integers(0, len(orders), n)
        mask = np.zeros((n, size, size), np.uint8)
        mask[:, size // 4 : size // 2, size // 4 : size // 2] = 1
        batch = {
            "id": np.arange(n, dtype=np.uint64),
            "weight": np.ones(n, np.float32),
            "image": image,
            "rotation.input": np.stack([np.rot90(x, k) for x, k in zip(image, turn)]),
            "rotation.label": turn,
            "jigsaw.input": np.stack([x[o] for x, o in zip(patches, orders[order])]),
            "jigsaw.label": order,
            "occlusion.input": np.where(mask[..., None] > 0, np.uint8(120), image),
            "occlusion.mask": mask,
            "colorization.input": image.mean(-1, keepdims=True).astype(np.uint8),
        }
        return {name: torch.from_numpy(column) for name, column in batch.items()}

    return make


@pytest.fixture(scope="session")
def rendered(crops: Callable[[int, int], np.ndarray]) -> Callable[..., Columns]:
    """`rendered(*names, n=16, size=32)`: a batch of any tasks with their defaults, as the CPU engine renders them."""

    def make(*names: str, n: int = 16, size: int = 32) -> Columns:
        batch = {"id": np.arange(n, dtype=np.uint64), "weight": np.ones(n, np.float32), "image": crops(n, size)}
        batch["class"] = np.arange(n) % 4 - 1  # one of four is not known
        for name in names:
            task = registry()[name].model_validate({})
            drawn = task.draw(Draws(1, 0, batch["id"]).stream(name), size)
            for column, (count, side) in task.view_columns(size).items():
                first = 0 if column == "input" else task.views
                made = [
                    by_cpu_ops(task, crops(n + k, side)[k:], {key: value[:, first + k] for key, value in drawn.items()})
                    for k in range(count)
                ]
                batch[f"{name}.{column}"] = np.stack(made, 1)
            if task.view_columns(size):
                continue
            # A clip of a task of several frames is made of crops that follow each other.
            seen = crops(n * task.frames, size).reshape(n, task.frames * size, size, 3)
            batch[f"{name}.input"] = by_cpu_ops(task, seen, drawn)
            batch |= {f"{name}.{key}": drawn[key] for key in ("label", "mask") if key in drawn}
        return {name: torch.from_numpy(column) for name, column in batch.items()}

    return make


TASKS: dict[str, dict] = {
    "rotation": {},
    "jigsaw": {"grid": 2, "permutations": 5},
    "occlusion": {},
    "colorization": {},
}


@pytest.fixture(scope="session")
def recipe() -> Callable[..., Recipe]:
    """`recipe(*tasks, size=32, backbone="shufflenet_v2_x0_5", stem="standard")`; a task may be given as (name, parameters)."""

    def make(
        *tasks: str | tuple[str, dict],
        size: int = 32,
        backbone: str = "shufflenet_v2_x0_5",
        stem: str = "standard",
        **training: str,
    ) -> Recipe:
        named = dict(task if isinstance(task, tuple) else (task, TASKS.get(task, {})) for task in tasks)
        frames = max((registry()[name].frames for name in named), default=1)
        labels = {"labels": "unused"} if "assigned" in named else {}
        return parse_recipe(
            {
                "name": "test",
                "seed": 1,
                "corpus": {"shards": "unused", "annotations": labels, **({"frames": frames} if frames > 1 else {})},
                "image": {"size": size},
                "tasks": named,
                "training": {"backbone": {"name": backbone, "stem": stem}, **training},
            }
        )

    return make


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI in this process leaves its pixels on its device, the CPU, as on a GPU it does where placement is `trainer`."""
    monkeypatch.setattr("pipeline.engines.dali.HostBuffers", StayingBuffers)
