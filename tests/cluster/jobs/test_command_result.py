"""`result.json` as an orchestrator reads it: written by every command, also when it fails, and without secrets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cluster.jobs.command_result import EXIT_CODES, JOB, CommandResult, recorded
from pipeline.errors import RunError, UnderWay, UserError
from pipeline.storage import scrubbed
from tests.cluster.conftest import Call

Refused = Callable[..., str]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_pack_and_verify_leave_their_results_beside_the_folder(
    call: Call, refused: Refused, photos: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    assert call("pack", photos, shards).exit_code == 0
    found = read(tmp_path / "shards.pack.result.json")
    assert (found["command"], found["status"], found["exit_code"], found["error"]) == ("pack", "done", 0, None)
    assert found["counts"]["samples"] == 24
    assert {name: Path(url).exists() for name, url in found["artefacts"].items()} == {"shards": True, "index.parquet": True}
    before = sorted(path.name for path in shards.iterdir())
    assert "no finished rendered corpus" in refused(2, "verify", shards)
    assert (read(tmp_path / "shards.verify.result.json")["status"], sorted(p.name for p in shards.iterdir())) == (
        "refused",
        before,
    )


def test_counts_are_whole_numbers_whatever_they_were_summed_in(tmp_path: Path) -> None:
    with recorded("pretrain", str(tmp_path / "here.json")) as outcome:
        outcome.counts = {"steps": 5, "samples": np.float64(320.0), "quarantined": np.int64(1)}  # type: ignore[dict-item]
    found = read(tmp_path / "here.json")["counts"]
    assert found == {"steps": 5, "samples": 320, "quarantined": 1}
    assert all(type(count) is int for count in found.values())


def test_a_mistake_in_the_recipe_is_recorded_where_the_caller_asked_for_it(refused: Refused, tmp_path: Path) -> None:
    said = refused(2, "pretrain", tmp_path / "none.yaml", "--result", tmp_path / "here.json")
    found = read(tmp_path / "here.json")
    assert (found["status"], found["exit_code"], found["error"]) == ("refused", 2, said.strip())


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (None, "done", None),
        (UserError("no such shard"), "refused", "no such shard"),
        (RunError("lost"), "failed", "lost"),
        (KeyError("bug"), "failed", "KeyError: 'bug'"),
        (typer.Exit(1), "failed", "Exit: 1"),
        (KeyboardInterrupt("goes on"), "interrupted", "KeyboardInterrupt: goes on"),
        (SystemExit(0), "interrupted", "SystemExit: 0"),
    ],
)
def test_each_way_to_end_has_its_status(tmp_path: Path, error: BaseException | None, status: str, words: str | None) -> None:
    url = tmp_path / "run" / "pretrain.result.json"

    def run() -> None:
        with recorded("pretrain") as outcome:
            outcome.begin(str(url))
            assert (read(url)["status"], read(url)["exit_code"]) == ("running", None)
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            run()
    else:
        run()
    found = read(url)
    assert (found["status"], found["exit_code"], found["error"]) == (status, EXIT_CODES[status], words)


def test_a_result_of_an_attempt_before_gives_way_to_the_one_that_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "pretrain.result.json"
    with recorded("pretrain", str(url)):
        pass
    assert (read(url)["status"], read(url)["job"]) == ("done", None)
    CommandResult("pretrain").submitted(str(url), "photos-2")
    found = read(url)
    assert (found["status"], found["job"], found["exit_code"], found["ended"]) == ("pending", "photos-2", None, None)
    monkeypatch.setenv(JOB, "photos-2")
    with recorded("pretrain", str(url)):
        pass
    assert (read(url)["status"], read(url)["job"]) == ("done", "photos-2")


def test_a_run_that_is_under_way_elsewhere_keeps_its_own_result(tmp_path: Path) -> None:
    url = tmp_path / "result.json"
    with recorded("pretrain", str(url)) as first:
        first.begin("unused")
        with pytest.raises(UnderWay), recorded("pretrain", str(url)):
            raise UnderWay("is under way")
        assert read(url)["status"] == "running"
    assert read(url)["status"] == "done"


def test_a_place_that_cannot_be_written_costs_a_warning_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with recorded("pack", str(tmp_path / "file" / "result.json")):
        pass
    assert "warning: the result cannot be written" in capsys.readouterr().err


def test_secrets_in_urls_are_written_nowhere(tmp_path: Path) -> None:
    def run() -> None:
        with recorded("render", str(tmp_path / "r.json")) as outcome:
            outcome.artefacts = {"pairs": "https://me:hunter2@host/pairs?X-Amz-Signature=hunter2"}
            raise RunError("https://me:hunter2@host/a.tar?sig=hunter2: the server answers 500")

    with pytest.raises(RunError):
        run()
    found = read(tmp_path / "r.json")
    assert "hunter2" not in json.dumps(found)
    assert found["artefacts"] == {"pairs": "https://host/pairs"}
    assert found["error"] == "https://host/a.tar: the server answers 500"


_WORD = st.text("abcdefghXYZ0189._-~", min_size=1, max_size=12)


@given(_WORD, _WORD, _WORD, st.sampled_from(["", ": gone", ".", "'", ") x", "\nnext", ", https://b/c"]))
def test_whatever_the_secret_a_url_in_a_text_loses_it(name: str, word: str, signature: str, after: str) -> None:
    secret = f"<{word}>"
    text = f"see 'https://{name}:{secret}@host/{name}/a.tar?X-Sig={secret}{signature}{after}"
    assert secret not in scrubbed(text)
    assert f"https://host/{name}/a.tar" in scrubbed(text)
    plain = f"s3://bucket/{name}/shard-?.tar{after}"
    assert scrubbed(plain) == plain
