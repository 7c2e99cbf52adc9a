"""The command `rounds` is killed, its driver or its workers, whenever something new lies on disk; it ends with the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.recipe import load_recipe
from tests.cluster_of_one import QUICK
from tests.trainers.labelling.test_rounds import Tree, left_by, recipe_of
from trainers.running.runs import RunFolder

_WAIT_SECONDS = 240.0
PLACES = [
    "001/features/commits/*", "001/clusters/centroids.npy", "001/run/pretrain-*/step-*4-*.pt", "001/run/backbone.pt",
    "002/features/manifest.json", "002/clusters/commits/*", "002/run/pretrain-*/step-*2-*.pt",
]  # fmt: skip
"""What appears in the folder of the rounds before the driver is killed."""


def recipe_file(tiles: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = recipe_of(tiles, folder, count=2).model_dump(mode="json")
    document["training"] |= {"checkpoint_epochs": 0.25, "workers": 1, "cpus": 0.5}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def started(path: Path) -> subprocess.Popen[bytes]:
    with (path.parent / "log").open("ab") as log:
        environment = {**os.environ, **QUICK, "RAY_ADDRESS": ""}
        return subprocess.Popen(
            [sys.executable, "-m", "pseudolabel", "rounds", str(path)], env=environment, stdout=log, stderr=log
        )


def kill_all_below(driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL the driver and the Ray that it started, as the end of a machine would."""
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    for process in below:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


@pytest.mark.slow
def test_a_command_that_is_killed_at_seven_places_ends_with_the_same_bytes(tiles: Path, tmp_path: Path, tree: Tree) -> None:
    calm, stormy = (recipe_file(tiles, tmp_path / name) for name in ("calm", "stormy"))
    assert started(calm).wait(_WAIT_SECONDS) == 0, (calm.parent / "log").read_text()
    place, kills = Path(RunFolder(load_recipe(stormy)).url) / "rounds", 0
    for pattern in PLACES:
        driver, end = started(stormy), time.monotonic() + _WAIT_SECONDS
        while driver.poll() is None and not list(place.glob(pattern)):
            assert time.monotonic() < end, f"waited for {pattern}: {(stormy.parent / 'log').read_text()}"
            time.sleep(0.02)
        kills += driver.poll() is None
        kill_all_below(driver)
    assert kills >= len(PLACES) - 1
    assert started(stormy).wait(_WAIT_SECONDS) == 0, (stormy.parent / "log").read_text()
    assert left_by(load_recipe(stormy), tree) == left_by(load_recipe(calm), tree)
    assert (Path(RunFolder(load_recipe(stormy)).url) / "report.html").exists()
