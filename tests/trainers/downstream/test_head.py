"""The classifier that pretraining has learnt from labels: it is kept, judged by names of classes, and labels a corpus."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.opening import open_training_corpus
from trainers.downstream.evaluate import evaluate
from trainers.downstream.finetune import finetune
from trainers.downstream.labelled import INITS, for_each_share, open_labelled
from trainers.downstream.pretrained import ClassHead, read_head
from trainers.labelling.weights import classifier_url, read_classifier
from trainers.learning.pretext import PretextModel
from trainers.pretraining import class_head, pretrain
from trainers.running.runs import HEAD, RunFolder

MakeRecipe = Callable[..., Recipe]
TASKS: dict[str, Any] = {"rotation": {}, "supervised": {"classes": 3, "weight": 4}}


@pytest.fixture
def few(run_recipe: MakeRecipe, tiles: Path) -> MakeRecipe:
    """`few(**training)`: a recipe that knows the classes of three tiles of each photo, a quarter of each batch."""

    def made(tasks: dict[str, Any] = TASKS, labels: Any = 0.125, **training: Any) -> Recipe:
        corpus = {"shards": str(tiles), "labelled": {"share": 0.125, "batch": 0.25}}
        downstream = {"train": str(tiles), "test": str(tiles), "labels": labels}
        recipe = run_recipe({"tasks": tasks, "corpus": corpus, "downstream": downstream}, **training)
        RunFolder(recipe).make()
        return recipe

    return made


@pytest.mark.parametrize("task", ["supervised", "fixmatch"])
def test_the_head_is_kept_as_a_classifier_with_its_backbone(few: MakeRecipe, task: str) -> None:
    recipe = few({"rotation": {}, task: {"classes": 3}})
    model = PretextModel(recipe, seed=0)
    kept = class_head(model, recipe, open_training_corpus(recipe.corpus, seed=recipe.seed))
    assert kept is not None
    assert (kept["classes"], kept["labels"]) == (["cat", "coffee", "rocket"], 9)
    RunFolder(recipe).write_weights(HEAD, {**kept, "identity": "one"})
    classifier, classes, _ = read_classifier(classifier_url(recipe), recipe)
    assert classes == ["cat", "coffee", "rocket"]
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        vector = model.eval().backbone(model.pixels(images)).vector
        wanted = model.objectives[task].head(vector)
        torch.testing.assert_close(classifier.eval().logits(images), wanted)
    head = read_head(recipe, "one", ("rocket", "dog", "cat"))
    assert head is not None
    assert head.named(vector.numpy(), ("rocket", "dog", "cat")).tolist() == [[2, -1, 0][k] for k in wanted.argmax(1)]
    assert read_head(recipe, "another run", ("cat",)) is None


def test_without_a_task_of_classes_there_is_no_head_and_one_of_other_classes_is_not_judged(
    few: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = few({"rotation": {}})
    corpus = open_training_corpus(recipe.corpus, seed=recipe.seed)
    assert class_head(PretextModel(recipe, 0), recipe, corpus) is None
    recipe = few()
    head = class_head(PretextModel(recipe, 0), recipe, corpus)
    RunFolder(recipe).write_weights(HEAD, {**(head or {}), "identity": "one"})
    with caplog.at_level(logging.WARNING):
        assert read_head(recipe, "one", ("dog",)) is None
    assert "none of those of `downstream`" in caplog.text


def test_classes_are_matched_by_name() -> None:
    head = ClassHead(np.eye(3, dtype=np.float32), np.zeros(3, np.float32), ("b", "a", "c"), 3)
    assert head.named(np.eye(3, dtype=np.float32), ("a", "b")).tolist() == [1, 0, -1]


def test_shares_of_the_labels_are_taken_one_after_the_other_from_the_smallest(few: MakeRecipe) -> None:
    recipe = few(labels=[1.0, 0.125, 0.5])
    assert recipe.downstream is not None
    assert recipe.downstream.shares == (0.125, 0.5, 1.0)

    def run(one: Recipe) -> dict[str, Any]:
        labels = open_labelled(one).train.samples
        same = {"init": "pretrained", "protocol": "head", "labels": 9}
        rows = [same, *({"init": init, "protocol": "knn", "labels": labels} for init in INITS)]
        return {"downstream": rows, "quarantined": labels, "differs": {"downstream.labels": [1, 2], "seed": [1, 2]}}

    found = for_each_share(recipe, "found.json", run)
    rows = [(row["init"], row["protocol"], row["labels"]) for row in found["downstream"]]
    assert rows == [("pretrained", "head", 9), *((init, "knn", labels) for labels in (9, 36, 72) for init in INITS)]
    assert (found["quarantined"], found["differs"]) == (72, {"seed": [1, 2]})
    assert RunFolder(recipe).read_json("found.json") == found
    assert for_each_share(few(labels=0.5), "none.json", run)["quarantined"] == 36


@pytest.mark.parametrize("labels", [[], [0.5, 0.5], [0.5, 2.0], 0.0])
def test_what_is_no_share_is_refused(few: MakeRecipe, labels: Any) -> None:
    with pytest.raises(UserError, match=r"downstream\.labels: needs a number above 0, at most 1, or a list of different ones"):
        few(labels=labels)


def test_a_run_on_few_labels_is_judged_by_its_own_head(few: MakeRecipe, local_ray: None) -> None:
    recipe = few(epochs=2)
    found = pretrain(recipe)
    assert found["mixture"]["labelled"]["trained"] == pytest.approx(0.25, abs=0.05)
    assert found["tasks"]["supervised"]["trivial"] == pytest.approx(1 / 3)
    probed = evaluate(recipe)
    assert [(row["init"], row["protocol"]) for row in probed["downstream"]][4:] == [("pretrained", "head")]
    (head,) = probed["downstream"][4:]
    assert (head["labels"], head["tested"], head["classes"]) == (9, 72, 3)
    assert RunFolder(recipe).read_weights(HEAD)["labels"] == 9


@pytest.mark.slow
def test_fine_tuning_has_a_row_for_each_share_and_start(few: MakeRecipe, local_ray: None) -> None:
    recipe = few(labels=[1.0, 0.125], epochs=2)
    pretrain(recipe)
    rows = [(row["init"], row["labels"]) for row in finetune(recipe)["downstream"]]
    assert rows == [(init, labels) for labels in (9, 72) for init in INITS]
