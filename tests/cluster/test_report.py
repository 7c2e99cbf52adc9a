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

import pytest
from PIL import Image

from cluster.report import write_report
from pipeline.errors import RunError
from pipeline.recipe import Recipe
from pipeline.storage import read_all
from trainers.loop import summary
from trainers.runs import RunFolder

MakeRecipe = Callable[..., Recipe]

DOWNSTREAM = [
    {"init": "pretrained", "protocol": "linear", "accuracy": 0.8125, "labels": 72},
    {"init": "random", "protocol": "linear", "accuracy": 0.625, "labels": 72},
]


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
    folder.write_json(
        "evaluate.json", {"pretraining": "x", "downstream": DOWNSTREAM, "chance": 1 / 3, "baseline": 0.5, "classes": 3}
    )
    tuned = [{"init": "pretrained", "protocol": "finetune", "accuracy": 0.9375, "labels": 72}]
    folder.write_json("finetune.json", {"pretraining": "x", "downstream": tuned, "chance": 1 / 3, "classes": 3, "curves": {}})
    report = write_report(spec)

    assert report == json.loads(read_all(folder.path("report.json")))
    assert report["pretrain"]["tasks"]["rotation"]["loss"] == pytest.approx([1.2, 1.0, 0.8])
    assert report["pretrain"]["tasks"]["rotation"]["metric"] == pytest.approx(0.55)
    assert report["pretrain"]["samples_per_second"] == 50
    assert report["downstream"] == DOWNSTREAM + tuned
    assert (report["chance"], report["baseline"], report["quarantined"]) == (1 / 3, 0.5, 1)
    assert report["recipe"] == spec.model_dump(mode="json")
    assert report["recipe_sha256"] == spec.digest()
    assert report["versions"]["torch"]
    assert report["machine"]["cores"] >= 1

    page = page_of(spec)
    for words in (
        "Not yet learnt: occlusion (",
        "trivial answer 13.5 dB; not yet learnt)",
        "Too short to tell what was learnt of rotation: 6 steps.",
        "81.2 %",
        "62.5 %",
        "+18.8",
        "93.8 %",
        "33.3 %",
        "50.0 %",
        "rotation",
        "occlusion",
        "18.0 dB",
        "render",
        spec.digest(),
    ):
        assert words in page.text


def test_results_of_another_backbone_are_left_out(run_recipe: MakeRecipe) -> None:
    spec = run_recipe()
    folder = RunFolder(spec)
    folder.make()
    folder.write_json("pretrain.json", results_of_pretraining())
    folder.write_json(
        "evaluate.json", {"pretraining": "earlier", "downstream": DOWNSTREAM, "chance": 1 / 3, "baseline": 0.5, "classes": 3}
    )
    assert write_report(spec)["downstream"] == []


def test_page_is_one_file_with_the_sheet_and_a_curve_for_each_task(run_recipe: MakeRecipe) -> None:
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
    assert sorted(kinds) == ["png", "svg+xml", "svg+xml"]


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
