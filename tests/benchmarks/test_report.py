"""The report of the benchmark: a ratio counts on the processors for which it is promised, and the machine is named."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.report import gates, markdown

SECTION, OURS, HAND = "four pairs, 500x375", "ours, Ray Data", "by hand, OpenCV"
GOAL = "four pairs through Ray Data, against the best loop by hand"


def content(cpu: str, ours: float) -> dict[str, Any]:
    """The results of a run in which the loop by hand made 100 photos a second."""
    rounds = {
        who: [{"images": n, "seconds": 1.0, "cpu": 1.0, "cores": 1, "first": 0, "own": 0, "others": 0}]
        for who, n in ((OURS, ours), (HAND, 100.0))
    }
    machine = {"cpu": cpu, "cores": 2, "features": ["AVX-512"], "caches": ["L2 unified 1024K"], "virtual": True}
    given = {"command": "bench", "date": "2026-11-29", "rounds": 1, "photos": {}, "versions": {}, "beside": {}, "wrong": []}
    return {**given, "machine": machine, "sections": {SECTION: rounds}}


@pytest.mark.parametrize(
    ("cpu", "ours", "missed", "said"),
    [
        ("AMD EPYC", 170.0, False, "reached"),
        ("AMD EPYC", 150.0, True, "missed"),
        ("Intel Xeon", 150.0, False, "not promised here"),
    ],
)
def test_a_ratio_counts_where_it_is_promised(cpu: str, ours: float, missed: bool, said: str) -> None:
    found = content(cpu, ours)
    found["gates"] = gates(found)
    (gate,) = (gate for gate in found["gates"] if gate["goal"] == GOAL)
    assert gate["missed"] == missed
    (line,) = (line for line in markdown(found).splitlines() if GOAL in line)
    assert said in line


def test_the_report_names_features_caches_and_that_the_machine_is_virtual() -> None:
    first = markdown(content("AMD EPYC", 100.0)).splitlines()[0]
    assert first.endswith("2 cores of AMD EPYC (virtual machine): AVX-512, L2 unified 1024K.")
