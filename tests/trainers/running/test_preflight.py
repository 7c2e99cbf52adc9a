"""What cannot work is refused before anything starts, with the key to change."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.labels import Views
from pipeline.ordering.order import Geometry
from pipeline.recipe import Recipe, parse_recipe
from pipeline.recipe.training import BackboneSection
from trainers.networks.backbones import build_backbone
from trainers.objectives import registry as objectives
from trainers.running.capacity import Node
from trainers.running.preflight import check_accumulate, check_batch, check_compared
from trainers.running.session import check_early


def recipe(**sections: Any) -> Recipe:
    return parse_recipe({"name": "a", "seed": 0, "corpus": {"shards": "x"}, **sections})


def network(name: str, stem: str, size: int) -> partial[Any]:
    return partial(build_backbone, BackboneSection.model_validate({"name": name, "stem": stem}), size, 0, ("vector",))


def batch(size: int, lanes: int | None = None) -> Geometry:
    return Geometry(batch=size, lanes=lanes or size, groups=1, window=1)


@pytest.mark.parametrize(("size", "lanes", "workers"), [(1, 1, 1), (2, 2, 2), (6, 6, 4)])
def test_one_image_a_step_is_refused_where_a_map_has_one_position(size: int, lanes: int, workers: int) -> None:
    build = network("resnet10", "standard", 16)
    with pytest.raises(UserError, match=rf"training\.batch: .* of 16 pixels .* set training\.batch to {2 * workers} or more"):
        check_batch(build, [16], batch(size, lanes), workers, "training.batch")
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # refused in advance
        build().train()(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("name", "stem", "side", "size", "workers"),
    [
        ("resnet10", "standard", 16, 2, 1),
        ("resnet10", "standard", 16, 9, 4),
        ("resnet10", "standard", 64, 1, 1),
        ("resnet10", "small", 16, 1, 1),
        ("vit_b_32", "small", 16, 1, 1),
        ("alexnet", "standard", 64, 1, 1),
    ],
)
def test_what_can_train_is_left_alone(name: str, stem: str, side: int, size: int, workers: int) -> None:
    check_batch(network(name, stem, side), [side], batch(size), workers, "training.batch")


def test_a_batch_of_one_photo_is_refused_where_views_are_learnt() -> None:
    views = {name for name, cls in objectives().items() if cls.kind is Views}
    assert views >= {"simclr", "byol", "dino"}
    for name in sorted(views):
        with pytest.raises(UserError, match=r"training\.batch: 1 photo a step, and tasks\.mine compares .* to 2 or more"):
            check_compared([("turned", objectives()["classes"]), ("mine", objectives()[name])], 1)
        check_compared([("mine", objectives()[name])], 2)
    check_compared([("turned", objectives()["classes"])], 1)


def test_a_batch_in_parts_is_refused_where_a_loss_needs_it_whole() -> None:
    whole = {"simclr", "moco", "barlow_twins", "vicreg", "swav", "dino", "dim", "amdim"}
    assert {name for name, cls in objectives().items() if cls.needs_whole_batch} == whole
    for name in sorted(whole):
        with pytest.raises(
            UserError, match=rf"training\.accumulate: 2 .* the objective of tasks\.mine, {name}, needs the whole batch"
        ):
            check_accumulate(2, [("turned", objectives()["classes"]), ("mine", objectives()[name])], batch(64), 1)
        check_accumulate(1, [("mine", objectives()[name])], batch(64), 1)
    check_accumulate(2, [("mine", objectives()["byol"])], batch(64), 1)


def test_a_batch_in_parts_is_refused_where_a_part_would_have_one_sample() -> None:
    check_accumulate(4, [], batch(16), 2)
    with pytest.raises(UserError, match=r"a batch of 16 over 2 workers leaves one of them 8 samples .* lower .* to 4$"):
        check_accumulate(5, [], batch(16), 2)
    assert "accumulate" not in recipe().training.model_dump()  # older recipes keep their identity


def test_a_network_that_cannot_be_built_is_refused_at_once() -> None:
    for backbone, words in (
        ({"name": "resnet19"}, r"training\.backbone\.name: unknown backbone 'resnet19': did you mean"),
        ({"name": "get_model"}, "unknown backbone 'get_model'"),
        ({"name": "resnet18", "args": {"depth": 3}}, r"training\.backbone\.args: resnet18 refuses them"),
        ({"name": "vit_b_16", "stem": "standard"}, "needs images of 16 px or more"),
    ):
        with pytest.raises(UserError, match=words):
            check_early(recipe(image={"size": 8}, training={"backbone": backbone}))


@pytest.mark.parametrize(
    "sections", [{"training": {"gpus": 1}}, {"placement": {"gpus": 0.5}}], ids=["training.gpus", "placement.gpus"]
)
def test_gpus_that_this_machine_has_not_are_refused_before_ray_starts(
    sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from trainers.running import session

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session, "this_node", lambda: Node(5.0, 0.0))
    with pytest.raises(UserError, match=r"the run needs .* GPUs .*, the cluster has 0: lower training\.gpus or placement\.gpus"):
        check_early(recipe(**sections))
    check_early(recipe())
    with pytest.raises(UserError, match=r"training\.workers: 0 trains in this process, and this machine has 0 GPUs"):
        check_early(recipe(training={"workers": 0, "gpus": 1}))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # what a cluster has is asked of it
    check_early(recipe(**sections))
