"""The GPU check runs all its steps, whatever one of them does, and its JSON is up to date at any moment."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu_check import checks, photos
from benchmarks.gpu_check.__main__ import table
from benchmarks.gpu_check.checks import Machine
from benchmarks.gpu_check.steps import Failed, Found, Skipped, Step, Turn, run
from pipeline.images.check import check_header
from pipeline.recipe import load_recipe


def fails(turn: Turn) -> Mapping[str, Any]:
    raise Failed("the losses are no numbers", {"loss": "nan"})


def breaks(turn: Turn) -> Mapping[str, Any]:
    return {}["nothing"]


def skips(turn: Turn) -> Mapping[str, Any]:
    raise Skipped("no GPU")


def hangs(turn: Turn) -> Mapping[str, Any]:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]])"
    return {"printed": turn.command([sys.executable, "-c", child, str(turn.log)])}


def dies(turn: Turn) -> Mapping[str, Any]:
    return {"printed": turn.command([sys.executable, "-c", "import sys; sys.exit('out of memory')"])}


def prints(turn: Turn) -> Mapping[str, Any]:
    return {"printed": turn.command([sys.executable, "-c", "import os; print(os.environ['WORD'])"], {"WORD": "hello"})}


def in_json(folder: Path) -> dict[str, str]:
    return {step["name"]: step["status"] for step in json.loads((folder / "gpu-check.json").read_text())["steps"]}


def test_a_step_that_fails_hangs_or_is_skipped_leaves_the_others_their_turn_and_the_json_is_there_after_each(
    tmp_path: Path,
) -> None:
    seen: list[dict[str, str]] = []

    def watched(step: Callable[[Turn], Mapping[str, Any]]) -> Callable[[Turn], Mapping[str, Any]]:
        def look(turn: Turn) -> Mapping[str, Any]:
            seen.append(in_json(tmp_path))
            return step(turn)

        return look

    wanted = {
        "fails": (fails, "failed", "the losses are no numbers"),
        "breaks": (breaks, "failed", "KeyError"),
        "skips": (skips, "skipped", "no GPU"),
        "hangs": (hangs, "failed", "not done after 1 seconds"),
        "dies": (dies, "failed", "exit code 1: out of memory"),
        "prints": (prints, "ok", ""),
    }
    steps = [Step(name, 1 if name == "hangs" else 60, watched(step)) for name, (step, _, _) in wanted.items()]
    said: list[str] = []
    found = run(steps, tmp_path, {"machine": "mine"}, 600, said.append)
    assert {one.name: one.status for one in found} == {name: status for name, (_, status, _) in wanted.items()}
    for one in found:
        assert wanted[one.name][2] in one.reason
    assert (found[0].figures, found[-1].figures) == ({"loss": "nan"}, {"printed": "hello\n"})
    names = list(wanted)
    for turn, there in enumerate(seen):  # what each step found written when its turn came
        assert there == {name: wanted[name][1] if i < turn else "pending" for i, name in enumerate(names)}
    content = json.loads((tmp_path / "gpu-check.json").read_text())
    assert content["machine"] == "mine"
    assert content["failed"]
    assert in_json(tmp_path) == {one.name: one.status for one in found}
    assert len(said) == 2 * len(steps)
    assert not [
        process for process in psutil.process_iter(["cmdline"]) if str(tmp_path / "hangs.log") in (process.info["cmdline"] or [])
    ]


def test_steps_that_the_time_does_not_reach_are_skipped_in_words(tmp_path: Path) -> None:
    found = run([Step("prints", 60, prints)], tmp_path, {}, 0.0, lambda text: None)
    assert [(one.status, one.reason) for one in found] == [("skipped", "the 0 minutes were used up before it")]
    assert not json.loads((tmp_path / "gpu-check.json").read_text())["failed"]


def test_without_a_gpu_the_steps_about_one_alone_are_skipped_and_the_recipes_ask_for_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "no GPU: torch sees none")
    for step in checks.steps(machine):
        if step.name in ("tests marked gpu", "pixels, DALI on the GPU", "speed, DALI on the GPU"):
            with pytest.raises(Skipped, match="torch sees none"):
                step.run(Turn(tmp_path / "log", 0.0, 0.0))
    with pytest.raises(Skipped, match="photos were not made"):
        machine.recipe("trainer")


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(("name", "render", "gpus"), [("a", "trainer", 1.0), ("b", "workers", 0.5), ("render", "workers", 0.0)])
def test_the_recipes_are_valid_and_share_one_gpu(tmp_path: Path, gpu: bool, name: str, render: str, gpus: float) -> None:
    (tmp_path / "shards/test").mkdir(parents=True)
    (tmp_path / "shards/test/index.parquet").touch()
    recipe = load_recipe(Machine(tmp_path, "" if gpu else "none").recipe(name, render, gpus=gpus))
    asked = recipe.training.gpus + (recipe.placement.gpus if render == "workers" else 0)
    assert asked == (1 if gpu else 0)
    assert recipe.engine == "dali"


def test_the_photos_are_whole_but_for_the_bad_ones(tmp_path: Path) -> None:
    photos.write(tmp_path, 24, 8)
    train, test = (sorted((tmp_path / part).rglob("*.*")) for part in ("train", "test"))
    assert (len(train), len(test)) == (24, 8)
    assert len({file.read_bytes() for file in train + test}) == 32
    from PIL import Image

    broken = []
    for file in train + test:
        try:
            Image.open(file).load()
        except OSError:
            broken.append(file)
    assert len(broken) == photos.BAD
    assert sum(isinstance(check_header(file.read_bytes(), 10**8), str) for file in broken) == 1  # the decoder meets the other


def test_the_table_names_every_step_with_its_reason() -> None:
    found = [Found("doctor", "failed", 3.0, "the engine cannot be used here"), Found("speed", "ok", 2.0, "", {"images": 640})]
    shown = table(found)
    assert shown.row_count == 2
    assert list(shown.columns[3].cells) == ["the engine cannot be used here", "images 640"]
