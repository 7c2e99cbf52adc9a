"""Fine-tuning and evaluation of a pretrained backbone, on real Ray, compared with the same network from random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import BudgetExceeded, UserError
from pipeline.recipe import Recipe
from pipeline.shards.pack import pack
from tests.tiles import Finished
from trainers.downstream.classifier import Classifier
from trainers.downstream.evaluate import evaluate
from trainers.downstream.finetune import finetune
from trainers.networks.backbones import build_backbone
from trainers.running.runs import RunFolder

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS = [
    ("pretrained", "linear"),
    ("pretrained", "knn"),
    ("random", "linear"),
    ("random", "knn"),
    ("pretrained", "finetune"),
    ("random", "finetune"),
]


@pytest.mark.slow
def test_every_protocol_is_reported_for_pretrained_and_for_random_weights(
    labelled: Callable[..., Recipe], calm: Finished, tiles: Path, tmp_path: Path
) -> None:
    calm.copied(tmp_path)
    spec = labelled(workers=2, labels=0.5, layer="stage3")
    probed = evaluate(spec)
    tuned = finetune(labelled(workers=0, labels=0.5, layer="stage3"))
    rows = probed["downstream"] + tuned["downstream"]
    assert [(row["init"], row["protocol"]) for row in rows] == ROWS
    assert {row["labels"] for row in rows} == {36}
    assert {row.get("layer") for row in rows} == {"stage3", None}
    assert [row.get("steps") for row in rows] == [None] * 4 + [20 * 3] * 2
    for row in rows:
        assert (row["test"], row["classes"], row["tested"], row["total"]) == ([str(tiles)], 3, 72, 72)
        assert row["chance"] == pytest.approx(1 / 3)
        assert row["standard_error"] == pytest.approx(np.sqrt(row["accuracy"] * (1 - row["accuracy"]) / 72))
    for found in (probed, tuned):
        assert found["class_names"] == ["cat", "coffee", "rocket"]
        assert (found["only_in_test"], found["only_in_train"], found["quarantined"]) == ([], [], 0)
    assert probed["chance"] == pytest.approx(1 / 3)
    # Three photos of different colours are told apart by a histogram, and by a network that has seen half of their tiles.
    assert probed["baseline"] > 0.9
    assert all(row["accuracy"] > 0.6 for row in rows)
    folder = RunFolder(spec)
    assert folder.read_json("evaluate.json") == probed
    assert folder.stages("evaluate") == []
    assert folder.read_json("finetune.json") == tuned
    saved = folder.read_weights("classifier.pt")
    model = Classifier(spec, 3, None)
    model.load_state_dict(saved["classifier"])
    assert saved["classes"] == ["cat", "coffee", "rocket"]
    assert torch.isfinite(model.eval().logits(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))).all()


def test_what_is_judged_is_what_backbone_pt_holds_on_the_images_that_can_be_used(
    labelled: Callable[..., Recipe], shard: Callable[..., str], on_device: None
) -> None:
    """A backbone of zeros sees nothing, a random one tells four photos apart; pixels stay where DALI renders them."""
    train, test = shard("train", [0, 1] * 16, damaged=(5,)), shard("test", [0, 1] * 9 + [2, None], damaged=(2, 7))
    here = {"engine": "dali", "placement": {"render": "trainer", "cpus": 0.5}}
    still = {"name": "sgd", "lr": 1e-12}
    spec = labelled(workers=0, sections=here, train=train, test=test, layer="stage3", epochs=2, optimizer=still)
    folder = RunFolder(spec)
    folder.make()
    weights = build_backbone(spec.training.backbone, 32, 0).network.state_dict()
    zeros = {name: torch.zeros_like(weight) if weight.ndim > 1 else weight for name, weight in weights.items()}
    saved = {"backbone": zeros, "spec": spec.training.backbone.model_dump(), "identity": "x"}
    folder.write_weights("backbone.pt", saved)

    probed, tuned = evaluate(spec), finetune(spec)
    rows = probed["downstream"] + tuned["downstream"]
    accuracies = {(row["init"], row["protocol"]): row["accuracy"] for row in rows}
    assert list(accuracies) == ROWS
    assert (folder.read_json("evaluate.json"), folder.read_json("finetune.json")) == (probed, tuned)
    assert folder.stages("evaluate") == []
    assert accuracies["pretrained", "linear"] == accuracies["pretrained", "knn"] == pytest.approx(8 / 17)
    assert accuracies["random", "linear"] == accuracies["random", "knn"] == pytest.approx(16 / 17)
    for row in rows:
        assert (row["labels"], row["tested"], row["total"], row["classes"]) == (31, 17, 20, 3)
        assert row["chance"] == pytest.approx(8 / 17)
        assert row["standard_error"] == pytest.approx(np.sqrt(row["accuracy"] * (1 - row["accuracy"]) / 17))
    assert [row["steps"] for row in tuned["downstream"]] == [4, 4]
    classifier = folder.read_weights("classifier.pt")
    assert classifier["classes"] == ["0", "1"]
    for name, weight in zeros.items():
        if weight.ndim > 1:
            assert torch.equal(classifier["classifier"][f"backbone.network.{name}"], weight), name
    variances = [value for name, value in classifier["classifier"].items() if name.endswith("running_var")]
    assert variances
    assert not torch.cat(variances).any()  # measured after training, whose own would not have left 1 in four steps
    for name, found in (("evaluate", probed), ("finetune", tuned)):
        rows = folder.read_json(f"{name}.quarantine.json")
        assert [(row["set"], row["shard"], row["key"]) for row in rows] == [
            ("train", train, "005"), ("test", test, "002"), ("test", test, "007"), ("test", test, "019"),
        ]  # fmt: skip
        assert all(row["reason"] for row in rows)
        assert (found["quarantined"], found["only_in_test"]) == (4, ["2"])
    assert folder.read_json("quarantine.json") is None  # that is pretraining's


@pytest.mark.slow
@pytest.mark.parametrize("command", [evaluate, finetune])
def test_a_test_set_without_a_usable_image_is_refused(
    labelled: Callable[..., Recipe], shard: Callable[..., str], calm: Finished, tmp_path: Path, command: Callable[..., Any]
) -> None:
    calm.copied(tmp_path)
    train, test = shard("train", [0, 1] * 4), shard("none", [0, 1, 1], damaged=(0, 1, 2))
    with pytest.raises(UserError, match=r"downstream\.test: none of its 3 images can be used; the first, .*s\.tar 000: "):
        command(labelled(workers=0, train=train, test=test, epochs=1))


@pytest.mark.slow
def test_a_test_set_with_too_many_bad_images_is_refused(
    labelled: Callable[..., Recipe], shard: Callable[..., str], calm: Finished, tmp_path: Path
) -> None:
    calm.copied(tmp_path)
    train, tight = shard("train", [0, 1] * 4), {"failures": {"budget": 1}}
    few = labelled(workers=0, sections=tight, train=train, test=shard("few", [0, 1, 1], damaged=(0, 2)), epochs=1)
    with pytest.raises(BudgetExceeded, match=r"2 of 3 samples .* over failures\.budget of 1"):
        evaluate(few)


def test_no_pretrained_backbone_is_said_before_anything_starts(labelled: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=r"no pretrained backbone .* run `pseudolabel pretrain`"):
        evaluate(labelled())


def test_a_corpus_without_labels_is_refused(labelled: Callable[..., Recipe], photos: Path, tmp_path: Path) -> None:
    pack(str(photos), str(tmp_path / "bare"), labels="none")
    with pytest.raises(UserError, match=r"downstream\.test|classes"):
        finetune(labelled(test=str(tmp_path / "bare")))


def test_a_recipe_without_a_downstream_section_is_refused(run_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="no `downstream` section"):
        finetune(run_recipe())
