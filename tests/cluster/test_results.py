"""Results as rows and words: shares of the time, starts beside each other, numbers as people read them."""

from __future__ import annotations

import pytest

from cluster.results import downstream_rows, downstream_table, pretext_table, stage_rows
from cluster.show import say
from cluster.words import amount, duration, metric


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


REPORT = {
    "downstream": [
        {"init": "pretrained", "protocol": "linear", "accuracy": 0.75, "labels": 500},
        {"init": "random", "protocol": "linear", "accuracy": 0.5, "labels": 500},
        {"init": "pretrained", "protocol": "finetune", "accuracy": 0.875, "labels": 50},
    ],
    "chance": 0.1,
    "baseline": None,
}


def test_both_starts_of_a_protocol_stand_in_one_row() -> None:
    assert downstream_rows(REPORT) == [
        {"protocol": "linear", "labels": 500, "pretrained": 0.75, "random": 0.5},
        {"protocol": "finetune", "labels": 50, "pretrained": 0.875},
    ]


def test_tables_hold_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {"jigsaw": {"loss": [4.6, 3.25], "metric": 0.123, "trivial": 0.01}}
    say(downstream_table(REPORT), pretext_table(tasks, {"jigsaw": "accuracy"}))
    shown = capsys.readouterr().out
    for words in ("50.0 %", "75.0 %", "+25.0", "87.5 %", "chance 10.0 %", "4.600", "3.250", "12.3 %", "1.0 %"):
        assert words in shown
    assert "colour histogram" not in shown
