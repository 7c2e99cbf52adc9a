"""Detection: boxes arrive with their photos, a network learns them, and both starts are reported with pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.reports.report import write_report
from cluster.reports.tables import downstream_tables
from cluster.reports.terminal import print_out
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.streaming.plan import steps
from tests.scenes import NUMBERS, packed_boxes, scene_boxes
from tests.trainers.arrived import Arrived
from tests.trainers.downstream.images import images_of
from trainers.downstream.detector import Detector
from trainers.downstream.evaluate import evaluate
from trainers.downstream.finetune import finetune
from trainers.downstream.labelled import Labelled, open_labelled
from trainers.downstream.passes import Batch, usable
from trainers.downstream.problems import PROBLEMS
from trainers.learning.examples import read_pictures
from trainers.networks.backbones import build_backbone
from trainers.objectives import Outcome
from trainers.planning.dry_run import finetune_plan
from trainers.running.runs import ANSWERS, RunFolder

Labelling = Callable[..., Recipe]
SPEC: dict[str, Any] = {"problem": "detection", "batch": 8, "optimizer": {"lr": 3e-3}}
DETECTION = PROBLEMS["detection"]
SIZE, LARGE = 32, 64


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where scenes to learn from and to test on lie."""
    root = tmp_path_factory.mktemp("boxes")
    packed_boxes(root / "train", 0, 48)
    packed_boxes(root / "test", 100, 20)
    return {side: str(root / side / "shards") for side in ("train", "test")}


@pytest.fixture
def detecting(labelled: Labelling, scenes: dict[str, str]) -> Labelling:
    """`detecting(sections, **downstream)`: a recipe that finds the shapes of the scenes."""

    def make(sections: dict[str, Any] | None = None, workers: int = 0, **downstream: Any) -> Recipe:
        wanted = {"image": {"size": SIZE, "scale": [0.5, 1]}, **(sections or {})}
        made = labelled(sections=wanted, workers=workers, **SPEC, **(scenes | downstream))
        backbone = made.training.backbone.model_copy(update={"stem": "small"})
        return made.model_copy(update={"training": made.training.model_copy(update={"backbone": backbone})})

    return make


@pytest.fixture
def pretrained() -> Callable[[Recipe], RunFolder]:
    """`pretrained(recipe)`: the run's folder, with a backbone of the weights of a random start as if it were pretrained."""

    def make(recipe: Recipe) -> RunFolder:
        folder, spec = RunFolder(recipe), recipe.training.backbone
        folder.make()
        weights = build_backbone(spec, SIZE, recipe.seed).network.state_dict()
        folder.write_weights("backbone.pt", {"backbone": weights, "spec": spec.architecture(), "identity": "x"})
        return folder

    return make


@pytest.mark.parametrize(("engine", "place"), [("cpu", "workers"), ("cpu", "trainer"), ("dali", "workers"), ("dali", "trainer")])
def test_boxes_arrive_with_their_photos_by_both_engines_and_placements(detecting: Labelling, engine: str, place: str) -> None:
    data = open_labelled(detecting({"engine": engine, "placement": {"render": place, "cpus": 0.5}}))
    assert data.classes.names == ("disc", "square")
    source = data.testing()
    found = []
    for _, columns in steps([source], Arrived(source), 0, 1):
        batch = usable(columns, torch.device("cpu"))
        for boxes, labels in zip(batch.targets["boxes"], batch.targets["box_class"]):
            found.append([[*corners, label] for corners, label in zip(boxes.tolist(), labels.tolist()) if label >= 0])
    label, scale = {NUMBERS["disc"]: 0, NUMBERS["square"]: 1}, SIZE / 48
    wanted = []
    for number in range(100, 120):
        rows = [(*box["bbox"], label[box["category_id"]]) for box in scene_boxes(number)]
        wanted.append([[scale * x, scale * y, scale * (x + w), scale * (y + h), of] for x, y, w, h, of in rows])
    for one, other in zip(sorted(found), sorted(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("engine", ["cpu", "dali"])
def test_boxes_of_training_are_where_the_crop_and_its_mirroring_put_their_objects(detecting: Labelling, engine: str) -> None:
    source = open_labelled(detecting({"engine": engine}, epochs=1)).training()
    colours, hits = np.array([(230, 60, 40), (40, 90, 230)]), []
    for _, columns in steps([source], Arrived(source), 0, 1):
        batch = usable(columns, torch.device("cpu"))
        for pixels, boxes, labels in zip(batch.image.numpy(), batch.targets["boxes"], batch.targets["box_class"]):
            for (left, top, right, bottom), label in zip(boxes[labels >= 0], labels[labels >= 0]):
                middle = pixels[int((top + bottom) / 2), int((left + right) / 2)].astype(int)
                hits.append(bool(abs(middle - colours[label]).max() < 70))
    assert len(hits) > 60
    assert np.mean(hits) > 0.85  # another shape lies on some, and of others the middle is cut off


def columns_of(batch: Batch) -> dict[str, Tensor]:
    """A training batch's columns."""
    targets = {name: torch.from_numpy(column) for name, column in batch.targets.items()}
    return {"image": batch.image, "weight": torch.ones(len(batch.ids)), **targets}


def trained(data: Labelled) -> Detector:
    """A network after the epochs of the recipe, without Ray."""
    torch.manual_seed(0)
    model = DETECTION.build(data.recipe, data.classes.trained, None)
    assert isinstance(model, Detector)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in images_of(data.training()):
        outcome = model(columns_of(batch))["box"]
        optimizer.zero_grad()
        (outcome.loss / outcome.count).backward()
        optimizer.step()
    return model


def test_a_network_learns_to_detect_and_its_judgement_does_not_depend_on_the_ranks(detecting: Labelling) -> None:
    data = open_labelled(detecting(epochs=9))
    model = trained(data)
    batches = list(images_of(data.testing()))
    whole = DETECTION.judge([DETECTION.test(model, batches, data.recipe, 2)], data.classes)
    ranks = [DETECTION.test(model, batches[rank::2], data.recipe, 2) for rank in (1, 0)]
    shared = DETECTION.judge(ranks, data.classes)
    assert (shared.score, shared.tested, shared.chance) == (whole.score, whole.tested, whole.chance)
    for name, array in whole.pictures.items():
        assert np.array_equal(shared.pictures[name], array), name
    assert whole.tested == 20
    assert whole.pictures["image"].shape == (6, SIZE, SIZE, 3)
    score = whole.score
    assert score["boxes"] == sum(len(scene_boxes(number)) for number in range(100, 120))
    assert set(score["aps"]) == {"disc", "square"}
    assert score["ap"] == pytest.approx(np.mean(list(score["aps"].values())))
    assert score["trivial_ap50"] < 0.2
    assert score["ap50"] > score["trivial_ap50"] + 0.15
    assert score["ap"] > whole.chance
    assert 0 < score["standard_error"] < 0.1


@pytest.fixture(scope="module")
def plain() -> Callable[[str], Detector]:
    """`plain(name)`: a detector of two classes on a backbone, of random weights, in evaluation mode."""
    from pipeline.recipe import parse_recipe

    def make(name: str = "shufflenet_v2_x0_5") -> Detector:
        backbone = {"name": name, "stem": "standard"}
        recipe = parse_recipe(
            {"name": "t", "seed": 1, "corpus": {"shards": "-"}, "image": {"size": LARGE}, "training": {"backbone": backbone}}
        )
        return Detector(recipe, 2, None).eval()

    return make


def labelled_batch(*boxes: list[tuple[float, float, float, float, int, bool]]) -> dict[str, Tensor]:
    """A batch of noise with these boxes: corners, class and whether it is a crowd."""
    random, n, most = np.random.Generator(np.random.Philox(3)), len(boxes), 5
    corners, classes, crowd = torch.zeros(n, most, 4), torch.full((n, most), -1), torch.zeros(n, most, dtype=torch.bool)
    for i, rows in enumerate(boxes):
        for k, (*box, label, is_crowd) in enumerate(rows):
            corners[i, k], classes[i, k], crowd[i, k] = torch.tensor(box), label, is_crowd
    image = torch.from_numpy(random.integers(0, 255, (n, LARGE, LARGE, 3), np.uint8))
    return {"image": image, "weight": torch.ones(n), "boxes": corners, "box_class": classes, "crowd": crowd}


def numbers(outcome: Outcome) -> list[float]:
    """Loss, metric, trivial answer and count."""
    return [float(value) for value in (outcome.loss.detach(), outcome.metric, outcome.trivial, outcome.count)]


DISC, SQUARE = (8.0, 8.0, 40.0, 44.0, 0, False), (30.0, 20.0, 60.0, 50.0, 1, False)


def test_the_loss_of_a_batch_is_the_sum_of_those_of_its_images(plain: Callable[..., Detector]) -> None:
    model, batch = plain(), labelled_batch([DISC, SQUARE], [], [SQUARE], [DISC])
    whole = numbers(model(batch)["box"])
    parts = [numbers(model({name: column[i : i + 1] for name, column in batch.items()})["box"]) for i in range(4)]
    assert whole[0] == pytest.approx(sum(part[0] for part in parts), rel=1e-4)
    assert whole[1] == pytest.approx(sum(part[1] for part in parts), rel=1e-3)
    assert whole[3] == 4
    batch["weight"][0] = 0
    assert numbers(model(batch)["box"])[0] == pytest.approx(sum(part[0] for part in parts[1:]), rel=1e-4)


def test_images_without_boxes_teach_background_and_leave_every_weight_a_gradient(plain: Callable[..., Detector]) -> None:
    model = plain().train()
    outcome = model(labelled_batch([], []))["box"]
    assert numbers(outcome)[1:] == [0, 0, 2]
    assert 0 < outcome.loss < 2
    outcome.loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name


def test_dirty_boxes_never_spoil_the_loss(plain: Callable[..., Detector]) -> None:
    """Boxes without area and crowds are neither learnt nor background, though the data plane lets none without area pass."""
    model = plain()
    clean, dirty = labelled_batch([DISC], [DISC]), labelled_batch([DISC, (5, 5, 5, 9, 1, False), (9, 9, 3, 3, 0, False)], [DISC])
    assert numbers(model(dirty)["box"]) == pytest.approx(numbers(model(clean)["box"]), rel=1e-5)
    far = (41.0, 0.0, 64.0, 64.0, 1, True)
    crowded, all_crowd = labelled_batch([DISC, far]), labelled_batch([(0.0, 0.0, 64.0, 64.0, 1, True)])
    alone = numbers(model(labelled_batch([DISC]))["box"])
    assert 0 < numbers(model(crowded)["box"])[0] < alone[0]
    assert numbers(model(all_crowd)["box"])[0] == 0


def test_perfect_answers_have_no_box_loss_and_an_iou_of_one(plain: Callable[..., Detector]) -> None:
    model = plain()
    batch = labelled_batch([DISC], [SQUARE])
    found, places = model.answers(batch["image"])
    anchors = torch.cat(places)
    for i, box in enumerate((DISC, SQUARE)):
        distances = model.head.box_coder.encode(anchors, torch.tensor(box[:4]).expand(len(anchors), 4))
        found["bbox_regression"][i] = distances
    targets = [
        {"boxes": torch.tensor([box[:4]]), "labels": torch.tensor([box[4]]), "crowd": torch.zeros(0, 4)} for box in (DISC, SQUARE)
    ]
    judged = model.head.compute_loss(targets, found, [anchors] * 2, [len(level) for level in places])
    assert judged["iou"].tolist() == pytest.approx([1, 1], abs=1e-4)
    assert (judged["trivial"] < 0.95).all()


@pytest.mark.parametrize(("name", "levels"), [("resnet10", 3), ("mobilenet_v3_small", 3), ("vit_b_16", 1), ("swin_t", 3)])
def test_any_backbone_has_a_pyramid(plain: Callable[..., Detector], name: str, levels: int) -> None:
    with torch.device("meta"):
        model = plain(name)
    spec = model.backbone
    assert len(spec.pyramid_widths) == levels
    assert spec.pyramid_widths[-1] == spec.map_width
    maps = spec(torch.empty(2, 3, LARGE, LARGE, device="meta")).pyramid
    assert [level.shape[1] for level in maps] == spec.pyramid_widths
    assert tuple(maps[-1].shape[2:]) == spec.map_size
    extents = [level.shape[2] for level in maps]
    assert extents == sorted(set(extents), reverse=True)


def test_what_detection_cannot_use_is_refused_in_words(
    detecting: Labelling, pretrained: Callable[[Recipe], RunFolder], tiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"downstream\.test: its index does not say which number is which class: .*--voc or --coco"
    ):
        open_labelled(detecting(test=str(tiles)))
    recipe = detecting()
    pretrained(recipe)
    with pytest.raises(UserError, match="detection has no probes"):
        evaluate(recipe)
    with pytest.raises(UserError, match="boxes by FCOS"):
        detecting(head="deeplab")
    assert finetune_plan(recipe)["classes"] == 2
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"pip install --constraint constraints.txt --editable '\.\[detection\]'"):
        open_labelled(recipe)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_start_that_was_interrupted_ends_as_an_undisturbed_one_and_both_are_reported_with_pictures(
    detecting: Labelling, pretrained: Callable[[Recipe], RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    """The backbone that stands for a pretrained one has the weights of the random start, which is not interrupted."""

    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise KeyboardInterrupt

    made = detecting(epochs=1)
    recipe = made.model_copy(update={"training": made.training.model_copy(update={"checkpoint_epochs": 0.5})})
    folder = pretrained(recipe)
    with pytest.raises(KeyboardInterrupt):
        finetune(recipe, [interrupt])
    found = finetune(recipe)
    rows = found["downstream"]
    assert {**rows[0], "init": "random"} == rows[1]
    assert found["curves"]["pretrained"]["loss"] == found["curves"]["random"]["loss"]
    assert [(row["init"], row["protocol"], row["measure"]) for row in rows] == [
        ("pretrained", "finetune", "ap"),
        ("random", "finetune", "ap"),
    ]
    for row in rows:
        assert (row["labels"], row["tested"], row["total"], row["classes"], row["steps"]) == (48, 20, 20, 2, 6)
        assert row["ap"] <= row["ap50"]
    saved = folder.read_weights("detector.pt")
    model = DETECTION.build(recipe, 2, None)
    model.load_state_dict(saved["detector"])
    pictures = read_pictures(folder.path(ANSWERS), "x")
    assert pictures["truth"].shape[0] == pictures["random"].shape[0] == 6
    first = model.eval().boxes(torch.from_numpy(pictures["image"]))[0]
    there = pictures["pretrained"][0]
    there = there[there[:, 4] >= 0]
    np.testing.assert_allclose(first["scores"].detach().numpy()[:3], there[:3, 5], atol=0.02)
    report = write_report(recipe)
    print_out(*downstream_tables(report))
    shown = capsys.readouterr().out
    assert "COCO AP on" in shown
    assert "the same boxes in all photos" in shown
    assert "AP by class: disc" in shown
    assert "Predicted boxes" in Path(folder.path("report.html")).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_two_workers_learn_as_one_does(detecting: Labelling, pretrained: Callable[[Recipe], RunFolder], tmp_path: Path) -> None:
    found = {}
    for workers in (0, 2):
        recipe = detecting({"storage": {"runs": str(tmp_path / str(workers))}}, workers=workers, epochs=3)
        pretrained(recipe)
        found[workers] = finetune(recipe)
    one, two = (found[workers]["curves"]["random"] for workers in (0, 2))
    # Batch normalisation is that of each rank's share, and sums of two ranks are rounded otherwise.
    assert one["loss"][:2] == pytest.approx(two["loss"][:2], rel=0.03)
    assert one["metrics"][-6:] == pytest.approx(two["metrics"][-6:], abs=0.05)
    for row, other in zip(found[0]["downstream"], found[2]["downstream"]):
        assert [row[name] for name in ("chance", "tested", "boxes")] == [other[name] for name in ("chance", "tested", "boxes")]
