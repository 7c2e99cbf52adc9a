"""Batches of labelled images hold the usable ones, with the labels of the class map, on the device that rendered them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.rendering.units import UnitRenderer, UnitSource
from pipeline.streaming.plan import steps
from pipeline.targets.classes import NO_LABEL
from tests.trainers.arrived import Arrived
from tests.trainers.device import OnDevice
from tests.trainers.downstream.images import images_of
from trainers.downstream.classification import count_right
from trainers.downstream.classifier import Classifier
from trainers.downstream.evaluate import judge
from trainers.downstream.features import checked_recipe, extract
from trainers.downstream.labelled import INITS, Labelled, open_labelled
from trainers.downstream.passes import Batch, some_left, usable
from trainers.downstream.protocols import reader, readings
from trainers.downstream.statistics import remeasure
from trainers.learning.gradients import accumulate
from trainers.networks.backbones import build_backbone

Labelling = Callable[..., Recipe]


def failures_of(source: UnitSource) -> list[dict[str, Any]]:
    """Shard, key, row and reason of each of its images that cannot be used."""
    units = (UnitRenderer(source, 1)(source.read(number)) for number in range(source.schedule.units(0)))
    return [json.loads(text) for unit in units for text in unit["failure"] if text]


def test_labels_are_those_of_the_class_map(labelled: Labelling, shard: Callable[..., str]) -> None:
    data = open_labelled(labelled(train=shard("train", [15075141, 7, 7, 7]), test=shard("test", [7, 15075141, 8])))
    assert np.concatenate([batch.labels for batch in images_of(data.training_once())]).tolist() == [1, 0, 0, 0]
    assert np.concatenate([batch.labels for batch in images_of(data.testing())]).tolist() == [0, 1, 2]


def test_images_that_are_damaged_or_unlabelled_are_named_and_left_out(labelled: Labelling, shard: Callable[..., str]) -> None:
    test = shard("test", [0, None, 1, 1, None], damaged=(2,))
    source = open_labelled(labelled(train=shard("train", [0, 1, 1]), test=test)).testing()
    failures = failures_of(source)
    assert [(row["shard"], row["key"]) for row in failures] == [(test, "001"), (test, "002"), (test, "004")]
    assert failures[0]["reason"] == NO_LABEL
    assert failures[2]["reason"] == failures[0]["reason"]
    assert [len(batch.ids) for batch in images_of(source)] == [2]


def test_a_share_of_the_labels_is_taken_where_some_images_have_none(labelled: Labelling, shard: Callable[..., str]) -> None:
    train = shard("train", [0, 1, None, 1, 0, 1, None, 0, 1, 0])
    data = open_labelled(labelled(train=train, test=shard("test", [0, 1]), labels=0.5))
    labels = np.concatenate([batch.labels for batch in images_of(data.training_once())])
    assert sorted(labels.tolist()) == [0, 0, 1, 1]
    (left_out,) = failures_of(data.training_once())
    assert (left_out["shard"], left_out["reason"]) == (train, NO_LABEL)


def test_where_no_image_is_left_the_first_reason_is_given() -> None:
    row = {"shard": "s.tar", "key": "a", "reason": "it has no label"}
    assert some_left([row], 2, "downstream.test") == [row]
    with pytest.raises(
        UserError, match=r"downstream\.test: none of its 1 images can be used; the first, s\.tar a: it has no label"
    ):
        some_left([row], 1, "downstream.test")


def test_a_share_for_statistics_is_drawn_by_the_seed_from_all_shards(labelled: Labelling) -> None:
    data = open_labelled(labelled())
    everything = {int(i) for batch in images_of(data.training_once()) for i in batch.ids}
    some, again = ([int(i) for batch in images_of(data.training_some(20)) for i in batch.ids] for _ in range(2))
    assert some == again
    assert len(set(some)) == len(some) == 20
    assert set(some) < everything
    assert len({int(label) for batch in images_of(data.training_some(20)) for label in batch.labels}) == 3
    assert {int(i) for batch in images_of(data.training_some(10_000)) for i in batch.ids} == everything


def judged(data: Labelled, images: Callable[[UnitSource], Iterator[Batch]] = images_of) -> dict[str, Any]:
    """The results of an evaluation of two backbones."""
    made = {init: build_backbone(data.recipe.training.backbone, 32, seed) for seed, init in enumerate(("pretrained", "random"))}
    networks = {f"{init} layer": backbone.embedding("stage2") for init, backbone in made.items()}
    remeasure(networks, images(data.training_some(100)), data.recipe)
    train, test = (extract(networks, images(source), data.recipe) for source in (data.training_once(), data.testing()))
    outcome = judge(train, test, data, None)
    findings = {name: getattr(value, "tolist", lambda value=value: value)() for name, value in outcome["findings"].items()}
    return {**outcome, "findings": findings}


def probed(data: Labelled) -> dict[str, dict[str, float]]:
    """The accuracies of an evaluation by start and protocol, with the histogram's."""
    found: dict[str, dict[str, float]] = {}
    outcome = judged(data)
    for row in outcome["downstream"]:
        found.setdefault(row["init"], {})[row["protocol"]] = row["accuracy"]
    return {"": {"baseline": outcome["baseline"]}, **found}


@pytest.mark.parametrize("engine", ["cpu", "dali"])
def test_what_is_found_does_not_depend_on_where_images_are_rendered(
    labelled: Labelling, shard: Callable[..., str], engine: str
) -> None:
    """To the last bit, in evaluation and in a step of fine-tuning, with damaged and unlabelled images among them."""
    train, test = shard("train", [0, 1] * 8, damaged=(5,)), shard("test", [0, 1] * 4 + [None], damaged=(2,))

    def arriving(source: UnitSource) -> Iterator[Batch]:
        return (usable(columns, torch.device("cpu")) for _, columns in steps([source], Arrived(source), 0, 1))

    found = []
    for render in ("workers", "trainer"):
        sections = {"engine": engine, "placement": {"render": render, "cpus": 0.5}}
        data = open_labelled(labelled(train=train, test=test, sections=sections))
        outcome = judged(data, arriving)
        assert {(row["labels"], row["tested"], row["total"]) for row in outcome["downstream"]} == {(15, 7, 9)}
        source = data.training()
        _, columns = next(steps([source], Arrived(source), 0, 1))
        model = Classifier(data.recipe, data.classes.trained, None)
        tuned = accumulate(model, ["class"], columns, 16, "float32")["class"]
        assert tuned.count == columns["weight"].sum() == 15
        found.append((outcome, tuned.loss.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("render", ["workers", "trainer"])
def test_one_source_after_another_gives_what_each_gives_alone(
    labelled: Labelling, shard: Callable[..., str], render: str
) -> None:
    train, test = shard("train", [0, 1] * 20, damaged=(5,)), shard("test", [0, 1] * 9 + [None])
    sections = {"engine": "cpu", "placement": {"render": render, "cpus": 0.5}}
    data = open_labelled(labelled(train=train, test=test, sections=sections))
    sources = [data.training_some(20), data.training_once(), data.testing()]
    together = list(steps(sources, Arrived(*sources), 0, 1))
    alone = [item for source in sources for item in steps([source], Arrived(source), 0, 1)]
    assert [step for step, _ in together] == [step for step, _ in alone] == [0, 1, *range(3), 0, 1]
    for (_, one), (_, other) in zip(together, alone, strict=True):
        for name in set(one) - {"seconds"}:
            assert np.array_equal(one[name], other[name]), name


def test_evaluation_never_takes_a_devices_tensor_for_an_array(labelled: Labelling, on_device: None) -> None:
    on_host = probed(open_labelled(labelled(sections={"engine": "cpu"})))
    data = open_labelled(labelled(sections={"engine": "dali"}))
    assert isinstance(next(images_of(data.testing())).image, OnDevice)
    found = probed(data)
    for init, accuracies in on_host.items():  # the engines' pixels differ by a level here and there
        assert found[init] == pytest.approx(accuracies, abs=0.1), init


def test_tuning_and_its_test_never_take_a_devices_tensor_for_an_array(
    labelled: Labelling, shard: Callable[..., str], on_device: None
) -> None:
    train, test = shard("train", [0, 1] * 8, damaged=(3,)), shard("test", [0, 1, 1], damaged=(0,))
    data = open_labelled(labelled(train=train, test=test, sections={"engine": "dali"}))
    model = Classifier(data.recipe, data.classes.trained, None)
    source = data.training()
    columns = UnitRenderer(source, 1)(source.read(0))
    assert isinstance(columns["image"], OnDevice)
    outcome = accumulate(model, ["class"], columns, 16, "float32")["class"]
    assert outcome.count == columns["weight"].sum() < len(columns["weight"])
    right, labels = count_right(model, images_of(data.testing()), data.recipe, 2)
    assert labels.tolist() == [0, 2]
    assert 0 <= right <= 2


def test_a_fall_back_to_float32_is_noted_by_rank(labelled: Labelling, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[tuple[str, int]] = []
    run_log = SimpleNamespace(note=SimpleNamespace(remote=lambda *words: noted.append(words)))
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 3))
    for answer in (("bfloat16", ""), ("float32", "it is wrong")):
        monkeypatch.setattr("trainers.downstream.features.checked", lambda *_, answer=answer: answer)
        assert checked_recipe(labelled(), [], torch.device("cpu"), run_log).training.precision == answer[0]
    assert noted == [("rank 3: it is wrong", 0)]


def test_a_batch_without_a_usable_image_costs_nothing_and_breaks_nothing(labelled: Labelling) -> None:
    model = Classifier(labelled(), 3, None)
    batch = {
        "image": torch.zeros(4, 32, 32, 3, dtype=torch.uint8),
        "class": torch.tensor([-1, 2, 0, 1]),
        "weight": torch.zeros(4),
    }
    outcome = model(batch)["class"]
    assert outcome.loss == 0
    assert outcome.count == outcome.metric == outcome.trivial == 0


def test_a_relative_path_of_the_test_set_means_the_same_in_every_process(
    labelled: Labelling, shard: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = shard("train", [0, 1]), Path(shard("test", [0, 1]))
    monkeypatch.chdir(test.parent)
    data = open_labelled(labelled(train=train, test=test.name))
    monkeypatch.chdir("/")  # workers of Ray run in folders of their own
    assert data.measured(2, 0.5)["test"] == [str(test)]


def test_every_protocol_reads_its_own_features_and_has_a_row_for_each_start(
    labelled: Labelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.downstream.minibatches.LEAST_STEPS", 40)
    protocols = ["linear", "knn", "attentive", "concatenated"]
    data = open_labelled(labelled(protocols=protocols, layers=["stage2", "stage3"]))
    networks: dict[str, torch.nn.Module] = {}
    for seed, init in enumerate(INITS):
        backbone = build_backbone(data.recipe.training.backbone, 32, seed).eval()
        remeasure({init: backbone}, images_of(data.training_some(100)), data.recipe)
        networks |= {f"{init} {reads}": reader(backbone, reads, data.spec, "stage2") for reads in readings(data.spec)}
    train, test = (extract(networks, images_of(source), data.recipe) for source in (data.training_once(), data.testing()))
    assert train.x["random layers"].shape == (72, 48 + 96)
    assert train.x["random map"].ndim == 3
    outcome = judge(train, test, data, "stage2")
    rows = outcome["downstream"]
    assert [(row["init"], row["protocol"]) for row in rows] == [(init, protocol) for init in INITS for protocol in protocols]
    assert {row["protocol"]: row["layer"] for row in rows}["concatenated"] == "stage2 + stage3"
    assert {row["protocol"]: row.get("fit") for row in rows} == {
        "linear": "full batch", "knn": None, "attentive": None, "concatenated": "full batch",
    }  # fmt: skip
    assert all(row["accuracy"] > 0.6 for row in rows)  # three photos of different colours
