"""Dashboard and alerts name series that a live run really shows, with the numbers that the run itself gives."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipeline.materialize.run import Progress, render
from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.pack import pack
from pipeline.streaming.metrics import PREFIX, reason_kind
from trainers.pretraining import pretrain
from trainers.running.run_log import Record

FOLDER = Path(__file__).parents[3] / "cluster" / "deploy" / "dashboards"
_SERIES = re.compile(rf"ray_{PREFIX}\w+")
_LABELS = re.compile(rf"ray_{PREFIX}(\w+)\{{([^}}]*)\}}")
_WAIT_SECONDS = 120.0


def expressions() -> dict[str, list[str]]:
    """Every query of the dashboard and of the alerts."""
    dashboard = json.loads((FOLDER / "grafana.json").read_text())
    alerts = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    variables = [variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    return {
        "dashboard": [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]] + variables,
        "alerts": [rule["expr"] for group in alerts["groups"] for rule in group["rules"]],
    }


def scrape() -> dict[str, list[dict[str, Any]]]:
    """The samples of our series on this node's metrics port, by name: labels, with the value as `value`."""
    import ray

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[dict[str, Any]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(f"ray_{PREFIX}") and sample.labels.get("run") == "watched":
                found.setdefault(sample.name, []).append({**sample.labels, "value": sample.value})
    return found


@pytest.fixture
def recipe(photos: Path, tmp_path: Path) -> Recipe:
    """Two tasks on 24 photos and a file that is not an image."""
    source = tmp_path / "photos"
    source.mkdir()
    for folder in photos.iterdir():
        (source / folder.name).symlink_to(folder)
    (source / "bad").mkdir()
    (source / "bad" / "x.jpg").write_bytes(b"not a photo")
    pack(str(source), str(tmp_path / "shards"), shard_size=30_000)
    document = {
        "name": "watched",
        "seed": 3,
        "corpus": {"shards": str(tmp_path / "shards")},
        "image": {"size": 32},
        "tasks": {"rotation": {}, "occlusion": {}},
        "placement": {"cpus": 0.5},
        "failures": {"budget": 4},
        "training": {
            "backbone": {"name": "shufflenet_v2_x0_5", "stem": "standard"},
            "batch": 8,
            "epochs": 1,
            "log_steps": 1,
            "order": {"window": 1, "groups": 1, "lanes": 1},
            "workers": 0,
        },
        "storage": {"runs": str(tmp_path / "runs")},
    }
    return parse_recipe(document)


class Watch:
    """Scrapes metrics at the end of a run, and holds the run there until the expected values are seen.

    Workers export their numbers from time to time: a series may come late, have an old value, or be missing in a scrape.
    """

    def __init__(self, wanted: set[str]) -> None:
        self._wanted, self.found = wanted, scrape()

    def wait(self, expected: dict[tuple[str, ...], float]) -> None:
        """Wait until the series are there, and those named (name, label=value, ...) have these values."""
        end = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < end:
            self.found |= scrape()
            if self._wanted <= self.found.keys() and self.values(expected) == pytest.approx(expected):
                return
            time.sleep(0.2)

    def values(self, keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        """Sums of series over the labels that are not given."""
        return {(name, *labels): self._total(name, dict(label.split("=") for label in labels)) for name, *labels in keys}

    def _total(self, name: str, labels: dict[str, str]) -> float:
        rows = self.found.get(f"ray_{PREFIX}{name}", [])
        return sum(row["value"] for row in rows if labels.items() <= row.items())


@pytest.mark.usefixtures("local_ray")
def test_every_series_of_dashboard_and_alerts_is_on_the_metrics_port_of_a_live_run(recipe: Recipe, tmp_path: Path) -> None:
    wanted = {name for queries in expressions().values() for query in queries for name in _SERIES.findall(query)}
    assert len(wanted) > 10
    training = {f"ray_{PREFIX}{name}" for name in ("loss", "metric", "wait_share", "samples_per_second")}
    reason = reason_kind("not a decodable image (its first bytes are 6e 6f 74 20 61 20 70 68)")
    out = tmp_path / "pairs"

    rendering, rendered = Watch(wanted - training), {}

    def at_its_end(at: Progress) -> None:
        if at.shards_done == at.shards:
            rendered.update(
                {
                    ("samples_total", "work=render"): 25,
                    ("pairs_total", "work=render"): 48,
                    ("quarantined_total", "work=render", f"reason={reason}"): 1,
                    ("bytes_total", "work=render", "direction=written"): sum(path.stat().st_size for path in out.glob("*.tar")),
                    ("shards", "state=done"): at.shards,
                    ("shards", "state=to do"): 0,
                    ("progress", "stage=render"): 1,
                    ("budget_used", "stage=render"): 0.25,
                    **{
                        ("stage_seconds_count", "work=render", f"stage={stage}"): at.shards
                        for stage in ("read", "render", "write")
                    },
                }
            )
            rendering.wait(rendered)

    report = render(recipe, str(out), progress=at_its_end)
    assert (report.samples, report.pairs, report.quarantined) == (25, 24, 1)
    assert wanted - training - rendering.found.keys() == set()
    assert rendering.values(rendered) == pytest.approx(rendered)

    learning, learnt = Watch(wanted), {}

    def at_the_last_step(record: Record) -> None:
        if record["step"] == record["steps"]:
            learnt.update({("loss", f"task={task}"): values["loss"] for task, values in record["tasks"].items()})
            learnt.update({("progress", "stage=pretrain"): 1, ("wait_share", "stage=pretrain"): record["wait_share"]})
            learning.wait(learnt)

    pretrain(recipe, [at_the_last_step])
    assert wanted - learning.found.keys() == set()
    assert learning.values(learnt) == pytest.approx(learnt)
    assert learning.values([("samples_total", "work=training")])["samples_total", "work=training"] >= 24


def test_queries_ask_for_labels_that_the_series_have() -> None:
    """The matchers in braces; grouping labels show in the legends."""
    known = {"run", "stage", "work", "state", "reason", "direction", "task"}
    for queries in expressions().values():
        for query in queries:
            for _, matchers in _LABELS.findall(query):
                assert {re.split("=|!", matcher)[0].strip() for matcher in matchers.split(",")} <= known
            for labels in re.findall(r"(?:by|on) \(([^)]*)\)", query):
                assert {label.strip() for label in labels.split(",")} <= known | {"le"}


def test_every_alert_says_what_to_do() -> None:
    rules = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    assert {"PseudolabelStalled", "PseudolabelStarving", "PseudolabelFailureBudgetNear"} <= {rule["alert"] for rule in rules}
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("300x4000 is 1200000 pixels, over image.max_pixels of 1000", "N is N pixels"),
        ("not a decodable image (it looks like a GIF)", "not a decodable image"),
        ("the decoder refused it: error 7", "the decoder refused it"),
        ("", "other"),
    ],
)
def test_reasons_become_few_labels(reason: str, kind: str) -> None:
    assert reason_kind(reason) == kind
