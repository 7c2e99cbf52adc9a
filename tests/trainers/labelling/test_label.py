"""Classes that a fine-tuned network names: as it answers, the same in every way of running, and learnt as labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.errors import UserError
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe
from pipeline.rendering.renderer import Renderer
from pipeline.shards.opening import open_corpus
from tests.trainers.labelling.conftest import CLASSES, by_id, joined
from trainers.downstream.classifier import Classifier
from trainers.labelling.label import label
from trainers.labelling.weights import read_classifier
from trainers.running.runs import RunFolder

MakeRecipe = Callable[..., Recipe]
Tree = Callable[[Path], dict[str, bytes]]


def test_every_image_has_the_class_that_the_network_answers(
    run_recipe: MakeRecipe, classifier: Classifier, tiles: Path, tmp_path: Path
) -> None:
    recipe = run_recipe(precision="float32")
    done, report = label(recipe, str(tmp_path / "out"), top=3, here=True)
    assert (done.shards, done.made, done.rows) == (8, 8, 72)
    found = by_id(tmp_path / "out")
    corpus = open_corpus(str(tiles))
    samples = [sample for i in range(8) for sample in corpus.read(i, range(int(corpus.counts[i])))]
    images = torch.from_numpy(Renderer(recipe, center=True)(samples, 0).columns["image"])
    with torch.inference_mode():
        shares = classifier.logits(images).softmax(1).numpy()
    for sample, share in zip(samples, shares, strict=True):
        row = found[sample.id]
        assert (row["key"], row["class"]) == (sample.key, sample.label)
        falling = np.sort(share)[::-1]
        assert row["top"] == np.argsort(-share)[:3].tolist()
        assert row["label"] == row["top"][0]
        np.testing.assert_allclose(row["scores"], falling[:3], atol=1e-5)
        assert row["confidence"] == row["scores"][0]
        assert row["margin"] == pytest.approx(falling[0] - falling[1], abs=1e-5)
    labels = np.array([row["label"] for row in found.values()])
    assert report["sizes"] == np.bincount(labels, minlength=4).tolist()
    assert report["reached"]["0.5"] == sum(row["confidence"] >= 0.5 for row in found.values())
    assert (report["labels"]["images"], report["labels"]["classes"]) == (72, 3)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["classes"] == CLASSES
    assert verify(str(tmp_path / "out")).problems == []


@pytest.mark.usefixtures("classifier")
def test_neither_chunk_nor_threads_nor_a_second_run_change_a_byte(run_recipe: MakeRecipe, tmp_path: Path, tree: Tree) -> None:
    label(run_recipe(), str(tmp_path / "one"), here=True)
    other = run_recipe({"placement": {"cpus": 0.5, "threads": 3}})
    label(other, str(tmp_path / "other"), chunk=5, here=True)
    assert tree(tmp_path / "one") == tree(tmp_path / "other")
    assert label(run_recipe(), str(tmp_path / "one"), here=True)[0].made == 0


@pytest.mark.usefixtures("classifier")
def test_labels_of_which_the_teacher_is_sure_are_given_to_the_task(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    label(run_recipe(), str(tmp_path / "out"), here=True)
    found = by_id(tmp_path / "out")
    least = float(np.median([row["confidence"] for row in found.values()]))
    spec = run_recipe().model_dump(mode="json")
    spec["corpus"]["annotations"] = {"teacher": {"table": str(tmp_path / "out"), "least": {"confidence": least}}}
    recipe = Recipe.model_validate({**spec, "tasks": {"assigned": {"annotation": "teacher", "classes": 4}}})
    given = joined(recipe)
    assert given == {id: row["label"] if row["confidence"] >= least else -1 for id, row in found.items()}
    assert -1 in given.values()


def test_what_is_no_classifier_of_this_network_is_refused(
    run_recipe: MakeRecipe, classifier: Classifier, weights: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no classifier at .*: run `pseudolabel finetune` first"):
        label(run_recipe(), str(tmp_path / "out"), run=str(tmp_path / "none"), here=True)
    with pytest.raises(UserError, match="names no classes: it is no classifier of `pseudolabel finetune`"):
        read_classifier(weights, run_recipe())
    other = run_recipe(backbone={"name": "resnet10"})
    with pytest.raises(UserError, match=r"is of another network than resnet10: change training\.backbone"):
        read_classifier(RunFolder(run_recipe()).path("classifier.pt"), other)
    with pytest.raises(UserError, match="--top 0: at least one class is written"):
        label(run_recipe(), str(tmp_path / "out"), top=0, here=True)


def test_an_answer_that_is_not_finite_is_quarantined(run_recipe: MakeRecipe, classifier: Classifier, tmp_path: Path) -> None:
    with torch.no_grad():
        classifier.head.weight.fill_(3e38)  # times features of a thousand numbers
    saved = {"classifier": classifier.state_dict(), "classes": CLASSES}
    RunFolder(run_recipe()).write_weights("classifier.pt", saved)
    recipe = run_recipe({"failures": {"budget": 72}}, precision="float32")
    report, _ = label(recipe, str(tmp_path / "out"), here=True)
    assert (report.rows, report.quarantined) == (0, 72)
    (reason,) = set(pq.read_table(tmp_path / "out" / "quarantine.parquet").column("reason").to_pylist())
    assert reason == "the network's answer is not finite"
