"""Results as rows and words: shares of the time, the two starts compared, numbers formatted for people."""

from __future__ import annotations

import pytest
from rich.table import Table

from cluster.reports.formatting import amount, duration, metric
from cluster.reports.tables import (
    by_test_set,
    downstream_rows,
    downstream_tables,
    pretext_notes,
    pretext_table,
    round_rows,
    rounds_table,
    stage_rows,
)
from cluster.reports.terminal import print_out


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0, "B", "0 B"), (999, "B", "999 B"), (1500, "B", "1.5 kB"), (268_435_456, "B", "268 MB"), (5e15, "B", "5000 TB"),
        (1, "shard", "1 shard"), (0, "shard", "0 shards"), (12_345, "img", "12,345 imgs"), (2.5, "shard", "2.5 shards"),
    ],
)  # fmt: skip
def test_amounts(value: float, unit: str, words: str) -> None:
    assert amount(value, unit) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0:00"), (59.6, "1:00"), (750, "12:30"), (11_220, "3:07:00")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_metrics_are_written_as_their_names_ask() -> None:
    assert [metric("accuracy", 0.7346), metric("psnr", 21.449), metric("other", 0.12345)] == ["73.5 %", "21.4 dB", "0.123"]


def test_stages_are_per_image_and_the_run_is_its_waiting_and_its_steps() -> None:
    stages = {
        "read": 1.0,
        "check": 0.5,
        "render": 20.0,
        "transfer": 3.0,
        "wait": 4.0,
        "total": 40.0,
        "seconds": 40.0,
        "first_batch": 2.0,
        "samples": 1000,
    }
    rows = {name: (each, share) for name, _, each, share in stage_rows(stages)}
    assert list(rows) == ["read", "check", "render", "transfer", "wait", "step"]
    assert rows["render"] == (20.0, 0.5)
    assert rows["step"] == (36.0, 0.9)
    assert rows["wait"][1] + rows["step"][1] == pytest.approx(1)
    assert [name for name, *_ in stage_rows({**stages, "tasks": 0.0})] == list(rows), "made by nobody"
    assert [name for name, *_ in stage_rows({**stages, "tasks": 8.0})][2:5] == ["render", "tasks", "transfer"]


def test_a_task_at_its_trivial_answer_and_a_run_too_short_to_tell_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    curve = {"loss": [1.4, 1.3], "metric": 0.25, "trivial": 0.25}
    tasks = {"rotation": {**curve, "learnt": True}, "jigsaw": {**curve, "learnt": False}, "occlusion": {**curve, "learnt": False}}
    (behind,) = pretext_notes(tasks, 5000)
    assert behind.startswith("not yet learnt: jigsaw, occlusion (")
    print_out(pretext_table(tasks, {}, 5000))
    assert "not yet learnt: jigsaw, occlusion" in capsys.readouterr().out
    assert pretext_notes({"rotation": {**curve, "learnt": None}}, 48) == [
        "too short to tell what was learnt of rotation: 48 steps"
    ]
    assert pretext_notes({"rotation": {**curve, "learnt": True}, "jigsaw": curve}, 48) == []  # an earlier version's says nothing


def row(init: str, protocol: str, accuracy: float, test: str = "/test", **more: object) -> dict[str, object]:
    measured = {"test": [test], "classes": 10, "tested": 300, "total": 320, "chance": 0.1}
    about = {"init": init, "protocol": protocol, "labels": 500, "accuracy": accuracy, "standard_error": 0.025}
    return {**about, **measured, **more}


EVALUATED = {
    "downstream": [
        row("pretrained", "linear", 0.75, layer="layer3"),
        row("random", "linear", 0.5, layer="layer3", standard_error=0.02),
    ],
    "chance": 0.1,
    "baseline": 0.34,
}
TUNED = {"downstream": [row("pretrained", "finetune", 0.875, steps=10)], "chance": 0.1}


def shown(tables: list[Table], capsys: pytest.CaptureFixture[str]) -> str:
    print_out(*tables)
    return capsys.readouterr().out


def test_both_starts_of_a_protocol_stand_in_one_row() -> None:
    first, second = downstream_rows([*EVALUATED["downstream"], *TUNED["downstream"]])
    assert (first["protocol"], first["labels"]) == ("linear on layer3", 500)
    assert [first[init]["accuracy"] for init in ("random", "pretrained")] == [0.5, 0.75]
    assert "random" not in second


def test_a_table_names_the_layer_the_images_tested_the_steps_and_how_exact_each_number_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = shown(downstream_tables({"test_sets": by_test_set([EVALUATED, TUNED])}), capsys)
    assert words.count("chance 10.0 %") == 1
    for each in (
        "/test", "linear on layer3", "300 of 320", "50.0 ± 2.0 %", "75.0 ± 2.5 %", "+25.0 ± 3.2", "87.5 ± 2.5 %",
        "finetune, 10 steps only", "colour histogram, no network 34.0 ± 2.7 %",
    ):  # fmt: skip
        assert each in words


def test_each_test_set_has_its_own_table_chance_and_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    other = {"downstream": [row("pretrained", "finetune", 0.5, "/other", chance=0.25, steps=1000)], "chance": 0.25}
    sets = by_test_set([EVALUATED, other, TUNED])
    assert [(one["test"], one["chance"], one["baseline"], len(one["rows"])) for one in sets] == [
        (["/test"], 0.1, 0.34, 3),
        (["/other"], 0.25, None, 1),
    ]
    words = shown(downstream_tables({"test_sets": sets}), capsys)
    for each in ("accuracy on /test", "accuracy on /other", "chance 10.0 %", "chance 25.0 %", "finetune, 1,000 steps "):
        assert words.count(each) == 1


def test_the_same_shards_measured_otherwise_are_another_set() -> None:
    fewer = {"downstream": [row("pretrained", "finetune", 0.5, tested=299)], "chance": 0.1}
    assert len(by_test_set([EVALUATED, fewer])) == 2


def test_results_of_earlier_versions_are_shown_as_far_as_they_go(capsys: pytest.CaptureFixture[str]) -> None:
    old = [
        {"init": init, "protocol": "linear", "accuracy": a, "labels": 50} for init, a in (("random", 0.5), ("pretrained", 0.6))
    ]
    parts = [
        {"downstream": old, "chance": 0.2, "baseline": 0.3, "classes": 5},
        {"downstream": old[:1], "chance": 0.4, "classes": 3},
    ]
    sets = by_test_set(parts)
    assert [(one["test"], one["chance"], one["baseline"], one["tested"]) for one in sets] == [
        (None, 0.2, 0.3, None),
        (None, 0.4, None, None),
    ]
    words = shown(downstream_tables({"test_sets": sets}), capsys)
    for each in ("accuracy on the test set", "50.0 %", "60.0 %", "+10.0", "chance 20.0 %", "chance 40.0 %"):
        assert each in words


def test_a_pretext_table_holds_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {"jigsaw": {"loss": [4.6, 3.25], "metric": 0.123, "trivial": 0.01}}
    words = shown([pretext_table(tasks, {"jigsaw": "accuracy"})], capsys)
    for each in ("4.600", "3.250", "12.3 %", "1.0 %"):
        assert each in words


def test_a_mean_iou_has_a_table_of_its_own_even_on_the_same_shards(capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for init, value in (("pretrained", 0.625), ("random", 0.5)):
        segmented = row(init, "finetune", 0.0, measure="mean_iou", mean_iou=value, chance=0.125, steps=1000)
        rows.append({key: given for key, given in segmented.items() if key != "accuracy"})
    sets = by_test_set([EVALUATED, {"downstream": rows, "chance": 0.125}])
    assert [one.get("measure") for one in sets] == [None, "mean_iou"]
    assert "measure" not in sets[0]
    words = shown(downstream_tables({"test_sets": sets}), capsys)
    for each in ("accuracy on /test", "mean IoU on /test", "62.5 ± 2.5 %", "+12.5 ± 3.5", "the most frequent class 12.5 %"):
        assert words.count(each) == 1, each


def test_rounds_are_told_with_what_they_have_in_common(capsys: pytest.CaptureFixture[str]) -> None:
    one = {"clusters": 128, "effective": 97.25, "smallest": 0, "largest": 1200, "before": None, "labels": None}
    told = {"normalised": 0.125, "purity": 0.25}
    tasks = {"assigned": {"loss": 2.5, "metric": 0.4, "trivial": 0.01}}
    lines = [
        {"round": 1, "clusterings": [one], "figures": {}, "tasks": tasks},
        {"round": 2, "clusterings": [{**one, "before": {"normalised": 0.75}, "labels": told}], "figures": {}, "tasks": {}},
    ]
    assert round_rows(lines) == [
        ["1", "97.2 of 128", "0 to 1,200", "", "", "", "2.500", "40.0 %"],
        ["2", "97.2 of 128", "0 to 1,200", "75.0%", "12.5%", "25.0%", "", ""],
    ]
    print_out(rounds_table(lines))
    assert "97.2 of 128" in capsys.readouterr().out
