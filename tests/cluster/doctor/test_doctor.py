"""The doctor passes correct engines, and finds what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cluster.doctor.checks import PRECISION, Check, Findings, compare, compare_precision
from cluster.doctor.selftest import EngineOutput, reference, render_apart
from cluster.reports.machine import this_machine
from cluster.reports.terminal import doctor_tables, print_out
from pipeline.errors import RunError
from pipeline.tasks import registry
from tests.cluster.conftest import Call
from trainers.networks import precision


@pytest.fixture(scope="module")
def rendered() -> EngineOutput:
    return render_apart("cpu")


def failed(engine: str, found: EngineOutput, base: EngineOutput | None) -> list[str]:
    return [check.name for check in compare(engine, found, base) if check.status == "failed"]


def test_doctor_tests_every_engine_and_task_that_is_here(call: Call) -> None:
    result = call("doctor", "--json")
    assert result.exit_code == 0, result.output
    findings = json.loads(result.stdout)
    assert not findings["failed"]
    assert findings["verdict"].startswith("this machine is fine: cpu and dali rendered correctly")
    passed = {(check["engine"], check["name"]) for check in findings["checks"] if check["status"] == "ok"}
    assert {("cpu", "image against PIL"), ("dali", "image against PIL"), ("cpu", "repeats itself")} <= passed
    assert {("dali", f"{task} against cpu") for task in registry()} <= passed
    assert ("cpu", "bfloat16 against float32") in {(check["engine"], check["name"]) for check in findings["checks"]}
    assert findings["machine"]["memory"] > 2**28
    assert findings["versions"]["ray"]


def test_the_cpu_engine_agrees_with_pil_and_covers_every_task(rendered: EngineOutput) -> None:
    assert {f"{task}.input" for task in registry()} < set(rendered.columns)
    assert len(rendered.columns["image"]) == len(reference())
    assert failed("cpu", rendered, rendered) == []


def test_a_processor_that_computes_wrong_gradients_in_bfloat16_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "compute_dtype", lambda device, wanted: torch.bfloat16)
    assert compare_precision("cpu").status == "ok"
    monkeypatch.setattr(precision, "disagreements", lambda device, run: ["conv2d(8x64x1x1) (not finite)"] if run() else [])
    check = compare_precision("cpu")
    assert (check.status, check.found.count("conv2d(8x64x1x1)")) == ("failed", 2)
    assert "float32" in check.meaning


def test_a_task_rendered_wrongly_is_found(rendered: EngineOutput) -> None:
    for task in registry():
        name = f"{task}.input"
        turned = np.ascontiguousarray(np.flip(rendered.columns[name], axis=-2))
        wrong = replace(rendered, columns={**rendered.columns, name: turned}, alone={**rendered.alone, name: turned})
        assert failed("other", wrong, rendered) == [f"{task} against cpu"]


def test_pixels_that_depend_on_the_batch_are_found(rendered: EngineOutput) -> None:
    image = rendered.alone["image"].copy()
    image[0, 0, 0, 0] ^= 1
    assert failed("other", replace(rendered, alone={**rendered.alone, "image": image}), rendered) == ["repeats itself"]


def test_wrong_photos_and_unnoticed_damage_are_found(rendered: EngineOutput) -> None:
    swapped = np.ascontiguousarray(rendered.columns["image"][..., ::-1])  # BGR
    wrong = replace(rendered, columns={**rendered.columns, "image": swapped}, alone={**rendered.alone, "image": swapped})
    assert failed("other", wrong, rendered) == ["image against PIL"]
    assert failed("other", replace(rendered, refused=["text"]), rendered) == ["refuses bad data only"]


def test_without_the_cpu_engine_tasks_are_skipped_not_passed(rendered: EngineOutput) -> None:
    checks = {check.name: check.status for check in compare("dali", rendered, None)}
    assert all(checks[f"{task} against cpu"] == "skipped" for task in registry())


def test_an_engine_that_cannot_start_is_reported_with_its_last_words() -> None:
    with pytest.raises(RunError, match=r"its process ended with code 1: \S"):
        render_apart("dali:99")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"cpu": "ok", "dali": "ok", "dali:0": "skipped"}, "this machine is fine: cpu and dali rendered correctly"),
        ({"cpu": "ok", "dali": "ok", "dali:0": "failed"}, "fine with `engine: cpu` in recipes; dali failed"),
        ({"cpu": "failed", "dali": "failed"}, "cannot render: no engine passed"),
    ],
)
@pytest.mark.parametrize("precision", ["ok", "failed"])
def test_one_line_says_whether_the_machine_is_fine(found: dict[str, Any], words: str, precision: Any) -> None:
    checks = [Check(engine, "runs", status, "") for engine, status in found.items()]
    verdict = Findings(this_machine(), 0, {}, "", [*checks, Check("cpu", PRECISION, precision, "")]).verdict
    assert words in verdict
    assert ("float32" in verdict) == (precision == "failed" and "cannot" not in verdict)


def test_what_a_failure_means_is_printed(rendered: EngineOutput, capsys: pytest.CaptureFixture[str]) -> None:
    checks = compare("dali", replace(rendered, refused=[]), rendered)
    findings = Findings(this_machine(), 0, {"ray": None}, "no cluster", checks)
    assert findings.failed
    print_out(*doctor_tables(findings))
    shown = capsys.readouterr().out
    assert "refused: nothing; expected: text, truncated" in " ".join(shown.split())
    assert "failed: damaged files would become pairs" in shown
    assert "not installed" in shown
    assert " ".join(shown.split()).endswith(
        "verdict: this machine cannot render: no engine passed; mend what the lines above say"
    )
