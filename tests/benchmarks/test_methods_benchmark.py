"""The benchmark of methods trains every row, counts training and nothing else, and says how ours and lightly's compare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.methods import __main__ as methods
from benchmarks.methods import ours
from benchmarks.methods.rows import ROWS, Setting, recipe_of
from benchmarks.methods.table import markdown, spread
from tests.tiles import Finished
from trainers.running.runs import RunFolder


@pytest.fixture
def setting(tiles: Path) -> Setting:
    return Setting(str(tiles), str(tiles), 1.0, "resnet10", "standard", 16, "float32", 1.0, 1.0, 1, 0)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.tasks])
def test_every_row_of_ours_trains(name: str, setting: Setting) -> None:
    recipe = recipe_of(ROWS[name], setting, seed=1)
    *_, backbone = ours.training(recipe, 3)
    assert all(torch.isfinite(value).all() for value in backbone.network.state_dict().values())


@pytest.mark.slow
def test_the_plain_loop_trains_as_a_run_on_ray_does(calm: Finished) -> None:
    running = ours.training(calm.recipe, calm.result["steps"])
    begun = {name: weight.clone() for name, weight in next(running).network.state_dict().items()}
    *_, backbone = running
    saved = RunFolder(calm.recipe).read_weights("backbone.pt")["backbone"]
    mine = backbone.network.state_dict()
    assert saved.keys() <= mine.keys()
    assert sum(not torch.allclose(begun[name], weight, rtol=1e-2, atol=1e-3) for name, weight in saved.items()) > len(saved) / 2
    for name, weight in saved.items():
        torch.testing.assert_close(mine[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_every_row_of_lightlys_trains(setting: Setting) -> None:
    pytest.importorskip("lightly", reason='lightly is not installed: pip install ".[bench]"')
    from benchmarks.methods import by_lightly

    assert {row.repeats for row in ROWS.values() if row.repeats} == set(by_lightly.METHODS)
    for name in by_lightly.METHODS:
        steps = list(by_lightly.training(name, recipe_of(ROWS[name], setting, seed=1), 3))
        assert len(steps) == 4


def test_what_looks_at_the_features_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(methods.time, "process_time", lambda: clock[0])

    def training(steps: int) -> Iterator[Any]:
        clock[0] += 50  # what comes before the first step does not count either
        yield -1
        for step in range(steps):
            clock[0] += 2
            yield step

    def look(backbone: Any) -> float:
        clock[0] += 100
        return float(backbone)

    assert methods.seconds_a_step(training) == 2
    _, found = methods.trained(training, 10, curve=4, look=look)
    assert found == {"cpu": 20.0, "curve": [(2, 1.0), (4, 3.0), (6, 5.0), (8, 7.0)]}


def record(row: str, seed: int, knn: float, rate: float) -> dict[str, Any]:
    accuracies = dict.fromkeys(("knn vector", "linear vector", "knn layer3", "linear layer3"), knn)
    return {"row": row, "seed": seed, "images": 1000, "cpu": 1000 / rate, "curve": [], "accuracies": accuracies}


@pytest.mark.parametrize(("theirs", "verdict"), [(0.44, "no worse by more"), (0.50, "WORSE by more")])
def test_the_table_says_how_a_method_compares_with_lightlys(theirs: float, verdict: str) -> None:
    runs = [record("byol", seed, 0.42 + 0.02 * seed, 300) for seed in range(2)]
    runs += [record("lightly_byol", seed, theirs, 150) for seed in range(2)]
    said = markdown({"minutes": 1}, runs, {"byol": 300, "lightly_byol": 150})
    assert verdict in said
    assert "2.00 times lightly's" in said
    assert "| byol | 2 | 1,000 | 300 | 0.1 | 43.0 ± 1.4 |" in said


def test_one_seed_has_no_deviation() -> None:
    assert spread([0.5]) == (0.5, None)
    assert spread([0.4, 0.6]) == pytest.approx((0.5, np.std([0.4, 0.6], ddof=1)))


def test_runs_of_another_setting_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "byol-0.json").write_text('{"row": "byol", "setting": {"minutes": 2}}')
    with pytest.raises(SystemExit, match="another setting, such as byol"):
        methods.report(tmp_path, {"batch": 16}, {}, {})


def test_rates_are_measured_in_turns_and_once(tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(methods, "training_of", lambda name, setting, seed: name)
    monkeypatch.setattr(methods, "seconds_a_step", lambda name: asked.append(name) or float(len(asked)))
    path, same = tmp_path / "rates.json", {"batch": 16}
    times = methods.step_times(["random", "rotation", "simclr"], setting, path, same)
    assert asked == ["rotation", "simclr"] * 3
    assert times == {"rotation": [1.0, 3.0, 5.0], "simclr": [2.0, 4.0, 6.0]}
    assert methods.step_times(["simclr", "byol"], setting, path, same) == {**times, "byol": [7.0, 8.0, 9.0]}
    with pytest.raises(SystemExit, match="rates of another setting"):
        methods.step_times(["simclr"], setting, path, {"batch": 32})
