"""Segmentation: masks arrive with their photos, a network learns them, and both starts are reported with pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.reports.report import write_report
from cluster.reports.tables import downstream_tables
from cluster.reports.terminal import print_out
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.pack import pack
from pipeline.streaming.plan import steps
from pipeline.targets import open_targets
from tests.scenes import packed_scenes, scene
from tests.trainers.arrived import Arrived
from tests.trainers.downstream.images import images_of
from trainers.downstream.evaluate import evaluate
from trainers.downstream.finetune import finetune
from trainers.downstream.labelled import Labelled, open_labelled
from trainers.downstream.passes import usable
from trainers.downstream.problems import PROBLEMS
from trainers.downstream.segmenter import Segmenter
from trainers.learning.examples import read_pictures
from trainers.networks.backbones import build_backbone
from trainers.planning.dry_run import finetune_plan
from trainers.running.runs import ANSWERS, RunFolder

Labelling = Callable[..., Recipe]
SPEC: dict[str, Any] = {"problem": "segmentation", "batch": 8, "optimizer": {"lr": 5e-3}}
SEGMENTATION = PROBLEMS["segmentation"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where scenes to learn from and to test on lie."""
    root = tmp_path_factory.mktemp("scenes")
    packed_scenes(root / "train", 0, 48)
    packed_scenes(root / "test", 100, 20)
    return {side: str(root / side / "shards") for side in ("train", "test")}


@pytest.fixture
def segmenting(labelled: Labelling, scenes: dict[str, str]) -> Labelling:
    """`segmenting(sections, **downstream)`: a recipe that segments the scenes, by a network with a fine map."""

    def make(sections: dict[str, Any] | None = None, workers: int = 0, **downstream: Any) -> Recipe:
        wanted = {"image": {"size": 32, "scale": [0.5, 1]}, **(sections or {})}
        made = labelled(sections=wanted, workers=workers, **SPEC, **(scenes | downstream))
        backbone = made.training.backbone.model_copy(update={"stem": "small"})
        return made.model_copy(update={"training": made.training.model_copy(update={"backbone": backbone})})

    return make


@pytest.fixture
def pretrained() -> Callable[[Recipe], RunFolder]:
    """`pretrained(recipe)`: the run's folder, with a backbone of random weights as if it were pretrained."""

    def make(recipe: Recipe) -> RunFolder:
        folder, spec = RunFolder(recipe), recipe.training.backbone
        folder.make()
        weights = build_backbone(spec, 32, 0).network.state_dict()
        folder.write_weights("backbone.pt", {"backbone": weights, "spec": spec.architecture(), "identity": "x"})
        return folder

    return make


@pytest.mark.parametrize(("engine", "place"), [("cpu", "workers"), ("cpu", "trainer"), ("dali", "workers"), ("dali", "trainer")])
def test_masks_arrive_with_their_photos_by_both_engines_and_placements(segmenting: Labelling, engine: str, place: str) -> None:
    data = open_labelled(segmenting({"engine": engine, "placement": {"render": place, "cpus": 0.5}}))
    source = data.testing()
    found = {}
    for _, columns in steps([source], Arrived(source), 0, 1):
        batch = usable(columns, torch.device("cpu"))
        found |= {int(number): mask for number, mask in zip(batch.ids, batch.targets["mask"])}
    assert len(found) == 20
    nearest = (2 * np.arange(32) + 1) * 48 // 64
    wanted = []
    for number in range(100, 120):
        mask = np.asarray(scene(number)[1])
        labels = np.select([mask == 0, mask == 7, mask == 33], [0, 1, 2], 255).astype(np.uint8)
        wanted.append(labels[np.ix_(nearest, nearest)])
    assert sorted(mask.tobytes() for mask in found.values()) == sorted(mask.tobytes() for mask in wanted)


def trained(data: Labelled, updates: int) -> Segmenter:
    """A network after some updates on the training batches of the source, without Ray."""
    torch.manual_seed(0)
    model = SEGMENTATION.build(data.recipe, data.classes.trained, None)
    assert isinstance(model, Segmenter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batches = list(images_of(data.training()))
    for batch in (batches * updates)[:updates]:
        mask, weight = torch.from_numpy(batch.targets["mask"]), torch.ones(len(batch.ids))
        outcome = model({"image": batch.image, "mask": mask, "weight": weight})["mask"]
        optimizer.zero_grad()
        (outcome.loss / outcome.count).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("head", ["fcn", "deeplab"])
def test_a_network_learns_to_segment_and_its_judgement_does_not_depend_on_the_ranks(segmenting: Labelling, head: str) -> None:
    data = open_labelled(segmenting(head=head, epochs=10))
    model = trained(data, 60 if head == "fcn" else 4)
    batches = list(images_of(data.testing()))
    whole = SEGMENTATION.judge([SEGMENTATION.test(model, batches, data.recipe, 3)], data.classes)
    ranks = [SEGMENTATION.test(model, batches[rank::2], data.recipe, 3) for rank in (1, 0)]
    shared = SEGMENTATION.judge(ranks, data.classes)
    assert (shared.score, shared.tested, shared.chance) == (whole.score, whole.tested, whole.chance)
    for name, array in whole.pictures.items():
        assert np.array_equal(shared.pictures[name], array), name
    assert whole.tested == 20
    assert whole.pictures["answer"].shape == (6, 32, 32)
    if head == "fcn":
        assert whole.chance < 0.35
        assert whole.score["mean_iou"] > whole.chance + 0.2
        assert min(whole.score["ious"].values()) > 0.2
        assert whole.score["pixel_accuracy"] > 0.8


@pytest.mark.slow
def test_deeplab_learns_to_segment(segmenting: Labelling) -> None:
    data = open_labelled(segmenting(head="deeplab", epochs=16))
    judged = SEGMENTATION.judge([SEGMENTATION.test(trained(data, 96), images_of(data.testing()), data.recipe, 3)], data.classes)
    assert judged.score["mean_iou"] > judged.chance + 0.2
    assert min(judged.score["ious"].values()) > 0.2


def test_pixels_and_samples_that_do_not_count_change_no_loss(segmenting: Labelling) -> None:
    data = open_labelled(segmenting())
    model = SEGMENTATION.build(data.recipe, 3, None).eval()
    random = np.random.Generator(np.random.Philox(3))
    image = torch.from_numpy(random.integers(0, 255, (3, 32, 32, 3), np.uint8))
    mask = torch.from_numpy(random.integers(0, 3, (3, 32, 32), np.uint8))
    mask[0, :16] = mask[2] = 255
    first = model({"image": image, "mask": mask, "weight": torch.tensor([1.0, 0.0, 1.0])})["mask"]
    assert first.count == 1
    with torch.no_grad():
        logits = model.logits(image)[0, :, 16:]
        wanted = torch.nn.functional.cross_entropy(logits[None], mask[:1, 16:].long())
        assert first.loss.item() == pytest.approx(wanted.item(), rel=1e-4)
        assert first.metric.item() == pytest.approx((logits.argmax(0) == mask[0, 16:]).float().mean().item())
    share = torch.bincount(mask[0, 16:].flatten().long()).max() / mask[0, 16:].numel()
    assert first.trivial.item() <= share + 1e-6


def test_dirty_masks_are_named_and_left_out(segmenting: Labelling, tmp_path: Path) -> None:
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    for n in range(4):
        image, mask = scene(n)
        image.save(tmp_path / f"photos/{n}.jpg")
        (mask, Image.new("L", (48, 48), 9), mask.convert("RGB"), mask.resize((24, 24), 0))[n].save(tmp_path / f"masks/{n}.png")
    (tmp_path / "masks/classes.json").write_text('{"0": "background", "7": "disc", "33": "square"}')
    pack(str(tmp_path / "photos"), str(tmp_path / "dirty"), targets=open_targets(masks=str(tmp_path / "masks")))
    source = open_labelled(segmenting(test=str(tmp_path / "dirty"))).testing()
    reasons = [text for _, columns in steps([source], Arrived(source), 0, 1) for text in columns["failure"] if text]
    assert len(reasons) == 3
    for words in ("the number 9 at 2,304 pixels", "colours (RGB)", "24x24 pixels, and the image 48x48"):
        assert sum(words in reason for reason in reasons) == 1, words
    assert [len(batch.ids) for batch in images_of(source)] == [1]


def test_shards_without_masks_and_probes_are_refused_in_words(
    segmenting: Labelling, pretrained: Callable[[Recipe], RunFolder], tiles: Path
) -> None:
    with pytest.raises(UserError, match=r"downstream\.test: its index does not say which number is which class: .*--masks"):
        open_labelled(segmenting(test=str(tiles)))
    recipe = segmenting()
    pretrained(recipe)
    with pytest.raises(UserError, match="segmentation has no probes"):
        evaluate(recipe)
    assert finetune_plan(recipe)["classes"] == 3


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_both_starts_are_reported_with_pictures(
    segmenting: Labelling, pretrained: Callable[[Recipe], RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = segmenting(epochs=1)
    folder = pretrained(recipe)
    found = finetune(recipe)
    assert [(row["init"], row["protocol"], row["measure"]) for row in found["downstream"]] == [
        ("pretrained", "finetune", "mean_iou"),
        ("random", "finetune", "mean_iou"),
    ]
    for row in found["downstream"]:
        assert (row["labels"], row["tested"], row["total"], row["classes"], row["steps"]) == (48, 20, 20, 3, 6)
        assert row["mean_iou"] == pytest.approx(np.mean(list(row["ious"].values())))
        assert 0 < row["standard_error"] < 0.2
    assert found["class_names"] == ["background", "disc", "square"]
    saved = folder.read_weights("segmenter.pt")
    model = SEGMENTATION.build(recipe, 3, None)
    model.load_state_dict(saved["segmenter"])
    pictures = read_pictures(folder.path(ANSWERS), "x")
    assert pictures["pretrained"].shape == pictures["random"].shape == pictures["truth"].shape == (6, 32, 32)
    with torch.no_grad():
        answer = model.eval().logits(torch.from_numpy(pictures["image"])).argmax(1).numpy()
    assert (answer == pictures["pretrained"]).mean() > 0.98
    report = write_report(recipe)
    print_out(*downstream_tables(report))
    shown = capsys.readouterr().out
    assert "mean IoU on" in shown
    assert "the most frequent class" in shown
    assert "Predicted masks" in Path(folder.path("report.html")).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_an_interrupted_run_on_other_workers_ends_as_an_undisturbed_one(
    segmenting: Labelling, pretrained: Callable[[Recipe], RunFolder], tmp_path: Path
) -> None:
    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 12:
            raise KeyboardInterrupt

    found = {}
    for name in ("calm", "again", "two"):
        sections = {"storage": {"runs": str(tmp_path / name)}}
        recipe = segmenting(sections, epochs=3)
        pretrained(recipe)
        if name == "again":
            with pytest.raises(KeyboardInterrupt):
                finetune(recipe, [interrupt])
        found[name] = finetune(segmenting(sections, workers=2, epochs=3) if name == "two" else recipe)["downstream"]
    assert found["again"] == found["calm"]
    for one, other in zip(found["two"], found["calm"]):  # sums of two ranks are rounded otherwise, and their dropout differs
        assert (one["chance"], one["tested"]) == (other["chance"], other["tested"])
        assert one["mean_iou"] == pytest.approx(other["mean_iou"], abs=0.15)
