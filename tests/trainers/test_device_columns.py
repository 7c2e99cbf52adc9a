"""Pixels that stay on a device reach the network without numpy, with bad samples among them, and are the same as on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.engines import dali
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe
from pipeline.rendering.units import UnitSource
from pipeline.shards.opening import open_training_corpus
from pipeline.shards.pack import pack
from pipeline.streaming.plan import steps
from tests.pipeline.made_images import encode, photo
from tests.pipeline.rendering.test_renderer import BAD
from tests.tiles import FOUR_TASKS
from tests.trainers.arrived import Arrived
from tests.trainers.device import OnAnother, StayingBuffers
from trainers.learning.gradients import accumulate
from trainers.learning.loop import _StepTally
from trainers.learning.pretext import PretextModel
from trainers.planning import bench


@pytest.mark.parametrize(
    "use",
    [
        np.asarray,
        lambda x: x.numpy(),
        lambda x: np.concatenate([x[:2], x[2:]]),
        lambda x: x + torch.ones(4),
        lambda x: torch.cat([x, torch.ones(4)]),
        lambda x: x[np.array([0, 2])],
    ],
)
def test_what_a_device_would_not_bear_is_found(use: Callable[[Tensor], Any]) -> None:
    with pytest.raises((TypeError, RuntimeError), match="device"):
        use((torch.arange(4.0).as_subclass(OnAnother) * 2)[:4])


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> int:
    """A GPU, for what renders: DALI's CPU graph, whose pixels stay where numpy cannot have them."""
    engine = dali.DaliEngine

    def on_cpu(tasks: Any, size: int, threads: int, device_id: int | None, **more: Any) -> Any:
        return engine(tasks, size, threads, None, **more)

    monkeypatch.setattr(dali, "DeviceBuffers", lambda device_id: StayingBuffers(OnAnother))
    monkeypatch.setattr(dali, "DaliEngine", on_cpu)
    return 0


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of 32 crops, of which four cannot be decoded: two are stopped by the header check, two reach the decoder."""
    root = tmp_path_factory.mktemp("damaged")
    (root / "photos/face").mkdir(parents=True)
    bad = {3: "truncated jpeg", 9: "damaged png", 10: "damaged png", 25: "text"}
    for n in range(32):
        file = BAD[bad[n]] if n in bad else encode(photo().crop((3 * n, 2 * n, 3 * n + 48, 2 * n + 48)), "PNG")
        (root / f"photos/face/{n:02d}.png").write_bytes(file)
    pack(str(root / "photos"), str(root / "shards"))
    return str(root / "shards")


@pytest.fixture
def source(run_recipe: Callable[..., Recipe], damaged: str) -> Callable[..., UnitSource]:
    """`source(**training)`: an epoch of the damaged crops with the four tasks, placement `trainer`."""

    def make(**training: Any) -> UnitSource:
        recipe = run_recipe(
            {
                "corpus": {"shards": damaged},
                "tasks": FOUR_TASKS,
                "engine": "dali",
                "placement": {"render": "trainer"},
            },
            **training,
        )
        corpus = open_training_corpus(recipe.corpus)
        geometry = Geometry(batch=16, lanes=4, groups=2, window=2)
        return UnitSource(recipe, corpus, Schedule(corpus.counts, geometry, recipe.seed, 1))

    return make


@pytest.mark.parametrize("training", [{}, {"tasks_per_sample": "one"}], ids=["all", "one"])
def test_from_encoded_units_to_gradients_nothing_but_the_network_touches_the_pixels(
    source: Callable[..., UnitSource], device: int, training: dict[str, Any]
) -> None:
    given = source(**training)
    results: dict[int | None, list[Tensor]] = {}
    for gpu in (None, device):
        model, tally = PretextModel(given.recipe, seed=0), _StepTally(tuple(given.recipe.tasks), torch.device("cpu"))
        left = 0
        for _, columns in steps([given], Arrived(given), 0, 1, gpu):
            there = [name for name, column in columns.items() if isinstance(column, OnAnother)]
            assert there == ([] if gpu is None else ["image", *(f"{name}.input" for name in given.recipe.tasks)])
            left += len(columns["weight"]) - int(columns["weight"].sum())
            tally.add(accumulate(model, given.recipe.tasks, columns, 16, "float32"), columns)
        assert (tally.values[0], left) == (2 * 16, 4)
        results[gpu] = [tally.values, *(weight.grad for weight in model.parameters() if weight.grad is not None)]
    for here, there in zip(results[None], results[device], strict=True):
        assert torch.equal(here, there)


def test_bench_watches_the_pixels_where_training_gets_them(
    source: Callable[..., UnitSource], device: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = source()
    monkeypatch.setattr(bench, "_own_gpu", lambda: device)
    monkeypatch.setattr(bench, "units", lambda sources, crops: Arrived(*sources))
    seen: list[Any] = []

    def watched(*given: Any, **named: Any) -> Iterator[Any]:
        for item in steps(*given, **named):
            seen.append(item[1]["rotation.input"])
            yield item

    monkeypatch.setattr(bench, "steps", watched)
    stream = bench._stream(given, 60.0, 1)
    assert [type(column) for column in seen] == [OnAnother, OnAnother]
    assert stream.received.images == 16
    assert stream.received.bytes > 4 * 32 * 32 * 3
    assert isinstance(bench._unit(given, device)["rotation.input"], OnAnother)
