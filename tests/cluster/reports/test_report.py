"""The report: everything that the run's folder holds, in one file without links to elsewhere."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.reports.report import write_report
from pipeline.errors import RunError
from pipeline.recipe import Recipe
from pipeline.storage import read_all
from trainers.learning.examples import write_pictures
from trainers.learning.loop import summary
from trainers.running.runs import RunFolder

MakeRecipe = Callable[..., Recipe]

MEASURED = {"test": ["/photos/test"], "classes": 3, "tested": 60, "total": 64, "chance": 1 / 3}
DOWNSTREAM = [
    {"init": init, "protocol": "linear", "layer": "layer3", "accuracy": a, "standard_error": e, "labels": 72, **MEASURED}
    for init, a, e in (("pretrained", 0.8125, 0.05), ("random", 0.625, 0.06))
]
EVALUATED = {"pretraining": "x", "downstream": DOWNSTREAM, "chance": 1 / 3, "baseline": 0.5, "classes": 3}
TUNED = {"init": "pretrained", "protocol": "finetune", "accuracy": 0.9375, "standard_error": 0.03, "labels": 72, "steps": 80}


def results_of_pretraining() -> dict[str, Any]:
    history = [
        {
            "step": step,
            "tasks": {
                "rotation": {"loss": 1.4 - step / 10, "metric": 0.25 + step / 20, "trivial": 0.25},
                "occlusion": {"loss": 1.0 - step / 20, "metric": 12.0 + step, "trivial": 13.5},
            },
        }
        for step in (2, 4, 6)
    ]
    stages = {
        "read": 0.5,
        "check": 0.1,
        "render": 2.0,
        "transfer": 1.0,
        "wait": 1.0,
        "total": 10.0,
        "seconds": 10.0,
        "first_batch": 0.8,
        "samples": 500,
    }
    quarantine = [{"shard": "s.tar", "key": "k", "reason": "r"}]
    found = summary({"history": history, "stages": stages, "quarantine": quarantine, "step": 6})
    for name, said in (("rotation", None), ("occlusion", False)):
        found["tasks"][name]["learnt"] = said
    found["tasks"]["rotation"] |= {"margin": 0.3, "margin_error": 0.0125}
    return {"identity": "x", **found}


class Page(HTMLParser):
    """What a page shows and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.loaded, self.tags = "", [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(recipe: Recipe) -> Page:
    return Page(read_all(RunFolder(recipe).path("report.html")).decode())


def test_report_gathers_what_every_command_left(run_recipe: MakeRecipe) -> None:
    spec = run_recipe({"tasks": {"rotation": {}, "occlusion": {}}})
    folder = RunFolder(spec)
    folder.make()
    folder.write_json("pretrain.json", results_of_pretraining())
    folder.write_json("evaluate.json", EVALUATED)
    tuned = [{**TUNED, **MEASURED}]
    curve = {"step": [1, 2], "loss": [1.1, 0.4], "metrics": [0.3, 0.8]}
    curves = {"pretrained": curve, "random": {**curve, "loss": [1.2, 0.9]}}
    folder.write_json("finetune.json", {"pretraining": "x", "downstream": tuned, "chance": 1 / 3, "classes": 3, "curves": curves})
    report = write_report(spec)

    assert report == json.loads(read_all(folder.path("report.json")))
    assert report["pretrain"]["tasks"]["rotation"]["loss"] == pytest.approx([1.2, 1.0, 0.8])
    assert report["pretrain"]["tasks"]["rotation"]["metric"] == pytest.approx(0.55)
    assert report["pretrain"]["samples_per_second"] == 50
    assert report["downstream"] == DOWNSTREAM + tuned
    assert (report["chance"], report["baseline"], report["quarantined"]) == (1 / 3, 0.5, 1)
    assert report["recipe"] == spec.model_dump(mode="json")
    assert report["recipe_sha256"] == spec.digest()
    assert report["tuning"] == curves
    assert report["versions"]["torch"]
    assert report["machine"]["cores"] >= 1

    page = page_of(spec)
    for words in (
        "Not yet learnt: occlusion (",
        "trivial answer 13.5 dB; not yet learnt)",
        "Too short to tell what was learnt of rotation: 6 steps.",
        "/photos/test",
        "linear on layer3",
        "60 of 64",
        "81.2 ± 5.0 %",
        "62.5 ± 6.0 %",
        "+18.8 ± 7.8",
        "finetune, 80 steps only",
        "93.8 ± 3.0 %",
        "33.3 %",
        "50.0 ± 6.5 %",
        "30.00 ± 1.25 points above the trivial answer's, on average over the last log lines",
        "rotation",
        "occlusion",
        "18.0 dB",
        "render",
        "Fine-tuning",
        "learning rate",
        spec.digest(),
    ):
        assert words in page.text


def test_results_of_another_backbone_are_left_out(run_recipe: MakeRecipe) -> None:
    spec = run_recipe()
    folder = RunFolder(spec)
    folder.make()
    folder.write_json("pretrain.json", results_of_pretraining())
    folder.write_json("evaluate.json", {**EVALUATED, "pretraining": "earlier"})
    assert write_report(spec)["downstream"] == []


def test_two_test_sets_have_a_table_and_a_chance_level_each(run_recipe: MakeRecipe) -> None:
    spec = run_recipe()
    folder = RunFolder(spec)
    folder.make()
    folder.write_json("evaluate.json", EVALUATED)
    other = {**TUNED, **MEASURED, "test": ["/photos/other"], "chance": 0.25}
    folder.write_json("finetune.json", {"pretraining": "x", "downstream": [other], "chance": 0.25, "classes": 4})
    report = write_report(spec)
    assert [(one["test"], one["chance"], one["baseline"]) for one in report["test_sets"]] == [
        (["/photos/test"], 1 / 3, 0.5),
        (["/photos/other"], 0.25, None),
    ]
    assert (report["chance"], report["baseline"]) == (None, None)
    text = page_of(spec).text
    assert [text.count(words) for words in ("/photos/test", "/photos/other", "33.3 %", "25.0 %")] == [1, 1, 1, 1]


def test_results_of_earlier_versions_are_still_shown(run_recipe: MakeRecipe) -> None:
    spec = run_recipe()
    folder = RunFolder(spec)
    folder.make()
    old = [{"init": init, "protocol": "linear", "accuracy": 0.75, "labels": 72} for init in ("pretrained", "random")]
    folder.write_json("evaluate.json", {"pretraining": "x", "downstream": old, "chance": 1 / 3, "baseline": 0.5, "classes": 3})
    assert write_report(spec)["chance"] == 1 / 3
    assert "75.0 %" in page_of(spec).text


def test_how_to_repeat_it_is_the_recipe_that_pretrained_and_what_other_commands_changed(run_recipe: MakeRecipe) -> None:
    pretrained, here = run_recipe(epochs=6), run_recipe(epochs=30)
    folder = RunFolder(here)
    folder.make()
    folder.write_json("recipe.json", pretrained.model_dump(mode="json"))
    folder.write_json("pretrain.json", {**results_of_pretraining(), "recipe_sha256": pretrained.digest()})
    differs = {"training.epochs": [6, 30], "downstream.layer": [None, "layer3"]}
    folder.write_json("evaluate.json", {**EVALUATED, "differs": differs})
    report = write_report(here)
    assert report["recipe"] == pretrained.model_dump(mode="json")
    assert report["recipe_sha256"] == pretrained.digest()
    assert report["differs"] == {"evaluate": differs}
    text = page_of(here).text
    assert "evaluate ran with another recipe" in text
    assert "training.epochs630" in text  # a cell each
    assert '"epochs": 6' in text


def test_page_is_one_file_with_the_sheet_and_curves_of_each_task_and_of_the_learning_rate(run_recipe: MakeRecipe) -> None:
    spec = run_recipe()
    folder = RunFolder(spec)
    folder.make()
    folder.write_json("pretrain.json", results_of_pretraining())
    write_report(spec)
    page = page_of(spec)
    assert "script" not in page.tags
    assert "link" not in page.tags
    kinds = []
    for source in page.loaded:
        found = re.fullmatch(r"data:image/(png|svg\+xml);base64,([A-Za-z0-9+/=]+)", source)
        assert found, source[:100]
        content = base64.b64decode(found[2])
        kinds.append(found[1])
        if found[1] == "png":
            with Image.open(io.BytesIO(content)) as picture:
                assert min(picture.size) > 400
        else:
            assert b"</svg>" in content
    assert sorted(kinds) == ["png", "svg+xml", "svg+xml", "svg+xml"]


def test_what_the_network_paints_and_its_neighbours_are_shown_for_this_backbone_only(run_recipe: MakeRecipe) -> None:
    spec = run_recipe({"corpus": {"shards": "/nowhere.tar"}})
    folder = RunFolder(spec)
    folder.make()
    folder.write_json("pretrain.json", results_of_pretraining())
    colours = {"input": 0, "answer": 100, "target": 200}
    pictures = {f"occlusion.{part}": np.full((2, 8, 8, 3), value, np.uint8) for part, value in colours.items()}
    pictures["neighbours"] = np.full((3, 4, 8, 8, 3), 50, np.uint8)
    for identity, shown in (("x", 2), ("another", 0)):
        write_pictures(folder.path("examples.npz"), pictures, identity)
        write_report(spec)
        page = page_of(spec)
        found = [base64.b64decode(source.partition(",")[2]) for source in page.loaded if source.startswith("data:image/png")]
        assert len(found) == shown
        assert ("What the network paints" in page.text) == ("Nearest neighbours" in page.text) == bool(shown)
        if shown:
            with Image.open(io.BytesIO(found[0])) as picture:
                row = [picture.getpixel((60 + 118 * part, 60)) for part in range(3)]
            assert row == [(value, value, value) for value in colours.values()]


def test_answers_before_an_adversary_began_stand_beside_with_their_figures(run_recipe: MakeRecipe) -> None:
    spec = run_recipe({"corpus": {"shards": "/nowhere.tar"}})
    folder = RunFolder(spec)
    folder.make()
    sharp, dull = ({"psnr": 25.04, "ssim": 0.7, "sharpness": x, "distance": 0.05} for x in (0.875, 0.25))
    result = results_of_pretraining()
    result["tasks"]["occlusion"]["also"] = {"real_accuracy": 0.625}
    folder.write_json("pretrain.json", {**result, "answers": {"occlusion": {"answer": sharp, "before": dull}}})
    colours = {"input": 0, "before": 60, "answer": 100, "target": 200}
    pictures = {f"occlusion.{part}": np.full((2, 8, 8, 3), value, np.uint8) for part, value in colours.items()}
    write_pictures(folder.path("examples.npz"), pictures, "x")
    write_report(spec)
    page = page_of(spec)
    words = " ".join(page.text.split())
    assert "pixels alone25.0 dB0.70.250.05 answer25.0 dB0.70.8750.05" in words  # a cell each
    assert "real_accuracy 62.5 %" in words
    (picture,) = (source for source in page.loaded if source.startswith("data:image/png"))
    with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as shown:
        row = [shown.getpixel((60 + 118 * part, 60)) for part in range(4)]
    assert row == [(value, value, value) for value in colours.values()]


def test_before_any_result_there_is_a_report_too(run_recipe: MakeRecipe) -> None:
    spec = run_recipe()
    RunFolder(spec).make()
    report = write_report(spec)
    assert (report["pretrain"], report["downstream"], report["chance"], report["quarantined"]) == (None, [], None, None)
    assert "How to repeat it" in page_of(spec).text


def test_a_corpus_out_of_reach_costs_the_picture_only_and_its_name_is_text(run_recipe: MakeRecipe) -> None:
    spec = run_recipe({"corpus": {"shards": "/nowhere/<script>alert(1)</script>.tar"}})
    RunFolder(spec).make()
    write_report(spec)
    page = page_of(spec)
    assert page.loaded == []
    assert "script" not in page.tags
    assert "No picture of pairs: /nowhere/<script>alert(1)</script>.tar: no such shard" in page.text


def test_the_run_folder_may_be_a_url(run_recipe: MakeRecipe) -> None:
    spec = run_recipe({"storage": {"runs": "memory://reports"}})
    RunFolder(spec).write_json("pretrain.json", results_of_pretraining())
    assert write_report(spec)["pretrain"]["steps"] == 6
    assert b"rotation" in read_all("memory://reports/run/report.html")


def test_a_folder_that_cannot_be_written_is_a_failed_run_in_words(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = run_recipe({"storage": {"runs": str(tmp_path / "file")}})
    with pytest.raises(RunError, match="the report cannot be written"):
        write_report(spec)


def test_the_report_shows_confusions_the_most_wrong_photos_and_what_was_left_out(run_recipe: MakeRecipe) -> None:
    spec = run_recipe()
    folder = RunFolder(spec)
    folder.make()
    counts = {"train": {"unusable": 0, "unlabelled": 0}, "test": {"unusable": 2, "unlabelled": 1}}
    folder.write_json("evaluate.json", {**EVALUATED, "left_out": counts})
    photos = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    held = {
        "classes": np.array(["cat", "dog"]), "about": np.array(["pretrained", "linear", "layer3"]),
        "confusion": np.array([[5, 3], [0, 7]]), "wrong": photos, "wrong_true": np.zeros(3, np.int64),
        "wrong_named": np.ones(3, np.int64), "wrong_sure": np.float32([1, 0.9, 0.8]),
        "points": np.random.default_rng(1).standard_normal((15, 2)), "points_label": np.arange(15) % 2,
        "points_how": np.array("principal components, as scikit-learn is not installed"),
    }  # fmt: skip
    write_pictures(folder.path("evaluate.npz"), held, "x")
    report = write_report(spec)
    assert report["left_out"] == {"evaluate": counts}
    page = page_of(spec)
    for words in (
        "linear on layer3, from pretrained weights",
        "cat named dog: 3 of 8",
        "The most wrong photos",
        "scikit-learn is not installed",
        "evaluate left out of downstream.test: 2 images that cannot be used and 1 image without a label.",
    ):
        assert words in page.text
    assert sum(source.startswith("data:image/png") for source in page.loaded) >= 3
    assert len(read_all(folder.path("report.html"))) < 400_000
    write_pictures(folder.path("evaluate.npz"), held, "of another backbone")
    write_report(spec)
    assert "The most wrong photos" not in page_of(spec).text
