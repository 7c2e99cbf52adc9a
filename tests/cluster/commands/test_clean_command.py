"""`clean` removes what is not needed, says what it frees, and removes nothing unless asked."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.cluster.conftest import Call
from tests.tiles import Finished
from trainers.running.checkpoints import Checkpoints
from trainers.running.runs import RunFolder

NEVER = {
    "backbone.pt", "examples.npz", "pretrain.json", "recipe.json", "quarantine.json", "pretrain.jsonl", "samples", "tensorboard",
}  # fmt: skip


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def recipe_of_calm(calm: Finished, tmp_path: Path) -> Path:
    """The finished run's recipe, its runs the test's own."""
    document = calm.recipe.model_dump(mode="json")
    document["storage"]["runs"] = str(tmp_path / "runs")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_clean_frees_the_checkpoints_of_a_run_that_is_over_and_nothing_before_it_is_asked(
    call: Call, calm: Finished, recipe_of_calm: Path, tmp_path: Path
) -> None:
    calm.copied(tmp_path)
    folder, stage = tmp_path / "runs/run", f"pretrain-{RunFolder(calm.recipe).identity('pretrain')}"
    assert {path.name for path in folder.iterdir()} == NEVER
    assert "nothing in" in call("clean", recipe_of_calm).stdout
    shutil.copytree(calm.killed / "run" / stage, folder / stage)  # as earlier versions have left them
    (folder / ".backbone.pt.0123abcd.tmp").write_bytes(b"x" * 1000)
    before = files(folder)
    size = sum((folder / name).stat().st_size for name in before if name.startswith((stage, ".")))
    shown = call("clean", recipe_of_calm)
    assert shown.exit_code == 0, shown.output
    assert "checkpoints of the finished run that made backbone.pt" in shown.stdout
    assert f"{size / 1e6:.0f} MB in {folder} can be removed: use --yes" in shown.stdout or f"{size / 1e6:.1f} MB" in shown.stdout
    assert files(folder) == before
    assert "freed" in call("clean", recipe_of_calm, "--yes").stdout
    assert {path.name for path in folder.iterdir()} == NEVER


def test_what_a_run_could_go_on_from_stays_unless_all_is_asked_for(
    call: Call, calm: Finished, recipe_of_calm: Path, tmp_path: Path
) -> None:
    calm.copied(tmp_path, killed=True)
    folder = tmp_path / "runs/run"
    (stage,) = folder.glob("pretrain-*")
    (folder / ".live.tmp").write_bytes(b"x")
    newest = max(stage.glob("step-*"))
    newest.unlink()
    with (folder / ".live.tmp").open("r+b") as live:
        fcntl.flock(live, fcntl.LOCK_EX)  # its writer is alive
        assert "nothing is half written" not in call("clean", recipe_of_calm, "--yes").stdout
    assert (folder / ".live.tmp").exists()
    shown = call("clean", recipe_of_calm)
    assert "at step 47 of 48: a run goes on from it" in shown.stdout
    changed = call("clean", recipe_of_calm, "--set", "training.epochs=7").stdout
    assert "at step 47 of 48: a run with training.epochs 12 goes on from it" in changed
    assert len(list(stage.glob("step-*"))) == 2
    assert "freed" in call("clean", recipe_of_calm, "--all", "--yes").stdout
    assert not stage.exists()


def test_a_fine_tuning_that_is_over_may_go_and_one_that_is_not_stays(
    call: Call, calm: Finished, recipe_of_calm: Path, tmp_path: Path
) -> None:
    calm.copied(tmp_path)
    folder = tmp_path / "runs/run"
    for init, step in (("pretrained", 8), ("random", 4)):
        checkpoints = Checkpoints(str(folder / f"finetune-{init}-0123456789ab"), 1)
        checkpoints.save(step, {"step": step, "steps": 8, "model": {"w": torch.zeros(9)}})
        checkpoints.wait()
    (folder / "evaluate-0123456789ab").mkdir()
    assert "at step 8 of 8" in call("clean", recipe_of_calm).stdout  # its results are not written yet
    (folder / "finetune.json").write_text("{}")
    call("clean", recipe_of_calm, "--yes")
    assert {path.name for path in folder.iterdir()} == {*NEVER, "finetune.json", "finetune-random-0123456789ab"}


def test_a_folder_that_is_not_there_holds_nothing(call: Call, recipe_file: Path) -> None:
    shown = call("clean", recipe_file, "--yes")
    assert (shown.exit_code, "nothing in" in shown.stdout) == (0, True)
