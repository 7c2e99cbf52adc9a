"""Fine-tuning and evaluation of a pretrained backbone, on real Ray, beside the same network from random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.pack import pack
from tests.tiles import Finished
from trainers.downstream.classifier import Classifier
from trainers.downstream.evaluate import evaluate
from trainers.downstream.finetune import finetune
from trainers.runs import RunFolder

pytestmark = pytest.mark.usefixtures("local_ray")


def test_every_protocol_is_reported_for_pretrained_and_for_random_weights(
    labelled: Callable[..., Recipe], calm: Finished, tmp_path: Path
) -> None:
    calm.copied(tmp_path)
    spec = labelled(workers=2, labels=0.5, layer="stage3")
    probed = evaluate(spec)
    tuned = finetune(labelled(workers=0, labels=0.5, layer="stage3"))
    rows = probed["downstream"] + tuned["downstream"]
    assert [(row["init"], row["protocol"]) for row in rows] == [
        ("pretrained", "linear"),
        ("pretrained", "knn"),
        ("random", "linear"),
        ("random", "knn"),
        ("pretrained", "finetune"),
        ("random", "finetune"),
    ]
    assert {row["labels"] for row in rows} == {36}
    assert probed["chance"] == pytest.approx(1 / 3)
    # Three photos of different colours are told apart by a histogram, and by a network that has seen half of their tiles.
    assert probed["baseline"] > 0.9
    assert all(row["accuracy"] > 0.6 for row in rows)
    folder = RunFolder(spec)
    assert folder.read_json("evaluate.json") == probed
    assert folder.read_json("finetune.json") == tuned
    saved = folder.read_weights("classifier.pt")
    model = Classifier(spec, 3, None)
    model.load_state_dict(saved["classifier"])
    assert saved["classes"] == ["cat", "coffee", "rocket"]
    assert torch.isfinite(model.eval().logits(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))).all()


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
