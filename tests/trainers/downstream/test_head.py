"""The classifier that pretraining has learnt from labels: it is kept, judged by names of classes, and labels a corpus."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.recipe import Recipe
from pipeline.shards.opening import open_training_corpus
from trainers.downstream.evaluate import evaluate
from trainers.downstream.finetune import finetune
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
        downstream = {"train": str(tiles), "test": str(tiles), "labels": labels, "epochs": 2, "batch": 9}
        return run_recipe({"tasks": tasks, "corpus": corpus, "downstream": downstream}, **training)

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


def test_a_run_on_few_labels_is_judged_by_its_own_head_and_tuned_with_several_shares(few: MakeRecipe, local_ray: None) -> None:
    recipe = few(epochs=16, optimizer={"lr": 3e-3})
    found = pretrain(recipe)
    assert found["mixture"]["labelled"]["trained"] == pytest.approx(0.25, abs=0.01)
    assert found["tasks"]["supervised"]["trivial"] == pytest.approx(1 / 3)
    probed = evaluate(recipe)
    assert [(row["init"], row["protocol"]) for row in probed["downstream"]][4:] == [("pretrained", "head")]
    (head,) = probed["downstream"][4:]
    assert (head["labels"], head["tested"], head["classes"]) == (9, 72, 3)
    assert head["accuracy"] > 0.6  # three photos of different colours
    tuned = finetune(few(labels=[1.0, 0.125], epochs=16, optimizer={"lr": 3e-3}))
    assert [(row["init"], row["labels"]) for row in tuned["downstream"]] == [
        ("pretrained", 9), ("random", 9), ("pretrained", 72), ("random", 72),
    ]  # fmt: skip
    assert tuned["differs"] == {}
    assert RunFolder(recipe).read_json("finetune.json") == tuned
