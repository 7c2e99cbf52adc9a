"""`pseudolabel render` and `verify`: what they print, when they fail, and that the same command resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from pipeline.materialize.run import render as run
from pipeline.recipe import load_recipe

Call = Callable[..., Result]
Refused = Callable[..., str]


@pytest.mark.usefixtures("local_ray")
def test_render_says_how_far_it_is_and_verify_agrees(call: Call, recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("render", recipe_file, "--out", out, "--set", "placement.cpus=0.5")
    result = call(*words)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("rendering: ")]
    assert lines[0] == "rendering: 0 of 8 shards, 0 of 72 samples, 0 quarantined"
    assert lines[-1].startswith("rendering: 8 of 8 shards, 72 of 72 samples, ")
    assert lines[-1].endswith("0 quarantined")
    assert "8 of 8, 8 by this run" in result.stdout
    again = call(*words)
    assert (again.exit_code, "8 of 8, 0 by this run" in again.stdout) == (0, True)
    left = json.loads((tmp_path / "out.render.result.json").read_text())
    assert (left["status"], left["exit_code"]) == ("done", 0)
    assert left["counts"] == {"shards": 8, "rendered": 0, "samples": 72, "pairs": 72, "quarantined": 0, "failed": 0}
    assert all(Path(url).exists() for url in left["artefacts"].values())

    checked = call("verify", out, "--deep", "--share", "0.2", "--json")
    assert checked.exit_code == 0, checked.output
    verdict = json.loads(checked.stdout)
    assert (verdict["pairs"], verdict["rendered_again"], verdict["problems"]) == (72, 2, [])

    next(out.glob("*-e0.tar")).unlink()
    broken = call("verify", out)
    assert broken.exit_code == 1
    assert "is missing" in broken.stdout


@pytest.mark.usefixtures("local_ray")
def test_failed_shards_end_in_exit_code_1_and_can_be_tried_again(
    call: Call, refused: Refused, recipe_file: Path, tiles: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in tiles.glob("*.tar"):
        (shards / path.name).write_bytes(path.read_bytes())
    whole = (shards / "shard-000002.tar").read_bytes()
    (shards / "shard-000002.tar").write_bytes(whole[:5000])
    settings = [f"corpus.shards={shards}", "placement.cpus=0.5"]
    words = ("render", recipe_file, "--out", tmp_path / "out", *(word for setting in settings for word in ("--set", setting)))
    made = run(load_recipe(recipe_file, settings), str(tmp_path / "out"), here=True)
    assert list(made.failed) == ["shard-000002.tar"]
    message = refused(1, *words)
    assert message.startswith("1 of 8 shards failed, the others are done. The first: shard-000002.tar: ")
    assert "--retry-failed" in message
    left = json.loads((tmp_path / "out.render.result.json").read_text())
    assert (left["status"], left["counts"]["failed"], left["error"]) == ("failed", 1, message.strip())
    (shards / "shard-000002.tar").write_bytes(whole)
    assert call(*words, "--retry-failed").exit_code == 0
    assert call("verify", tmp_path / "out").exit_code == 0


@pytest.mark.usefixtures("local_ray")
def test_mistakes_are_refused_at_once(refused: Refused, recipe_file: Path, tmp_path: Path) -> None:
    def error(*settings: str) -> str:
        return refused(2, "render", recipe_file, "--out", tmp_path / "out", *(w for s in settings for w in ("--set", s)))

    assert "needs 65 CPUs (64 actors x 1 + 1 for Ray Data), the cluster has 6" in error("placement.actors=64")
    assert "no such shard or folder" in error("corpus.shards=nowhere", "placement.cpus=0.5")
    assert "Parquet tables hold tensors" in error("render.format=parquet", "render.image=png")
    assert "loses nothing and has no quality" in error("render.quality=80")
    assert "names no tasks" in error("tasks={}")
    assert not (tmp_path / "out").exists()
    assert "no finished rendered corpus" in refused(2, "verify", tmp_path)
