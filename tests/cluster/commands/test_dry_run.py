"""`--dry-run` says what a command would do and does nothing; what is missing is refused as by the command itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.materialize.dry_run import render_plan
from pipeline.materialize.run import render
from pipeline.recipe import load_recipe
from tests.cluster.conftest import Call
from trainers.labelling.embed import embed
from trainers.networks.backbones import build_backbone
from trainers.planning.estimates import RunEstimate
from trainers.running.checkpoints import Checkpoints
from trainers.running.runs import RunFolder

Refused = Callable[..., str]


@pytest.fixture
def tested_recipe(recipe_file: Path, tiles: Path) -> Path:
    """The recipe with a downstream task and a run's backbone, whose weights are drawn."""
    recipe_file.write_text(f"{recipe_file.read_text()}\ndownstream: {{train: {tiles}, test: {tiles}, epochs: 2, batch: 16}}\n")
    recipe = load_recipe(recipe_file)
    spec, folder = recipe.training.backbone, RunFolder(recipe)
    folder.make()
    state = build_backbone(spec, 32, 1).network.state_dict()
    folder.write_weights("backbone.pt", {"backbone": state, "spec": spec.model_dump(), "identity": folder.identity("pretrain")})
    return recipe_file


@pytest.fixture(autouse=True)
def plans_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured has tests of its own (`tests/trainers/planning/test_estimates.py`); here nothing was."""
    for name in ("pretrain", "evaluate", "finetune", "job", "cluster"):
        monkeypatch.setattr(f"trainers.planning.estimates.estimate_{name}", lambda *given: RunEstimate(0.0))


def said(call: Call, *words: object) -> str:
    result = call(*words, "--dry-run")
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_pretrain_names_its_steps_and_disk_and_writes_nothing(call: Call, recipe_file: Path, tmp_path: Path) -> None:
    words = said(call, "pretrain", recipe_file, "--set", "training.epochs=5")
    for shown in (
        "pretrain, which was not run",
        "72 samples",
        "steps 20",
        "it starts at step 0",
        "CPUs",
        "disk needed",
        "disk free",
    ):
        assert shown in words
    assert not (tmp_path / "runs").exists()


def test_pretrain_names_the_checkpoint_that_it_would_resume_from(call: Call, recipe_file: Path) -> None:
    folder = RunFolder(load_recipe(recipe_file))
    checkpoints = Checkpoints(folder.checkpoints("pretrain"), 2)
    checkpoints.save(3, {"x": torch.zeros(2)})
    checkpoints.wait()
    assert "from the checkpoint of step 3" in said(call, "pretrain", recipe_file)


def test_the_disk_that_is_named_is_what_checkpoints_take(call: Call, recipe_file: Path, tmp_path: Path) -> None:
    words = said(call, "pretrain", recipe_file, "--set", "tasks={rotation: {}}")
    shown = re.search(r"checkpoint (\d+(?:\.\d+)?) MB", words)
    assert shown is not None
    network = build_backbone(load_recipe(recipe_file).training.backbone, 32, 1)
    optimizer = torch.optim.AdamW(network.parameters())
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    assert float(shown[1]) * 1e6 == pytest.approx((tmp_path / "state.pt").stat().st_size, rel=0.1)


def test_too_little_room_is_refused(recipe_file: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr("trainers.planning.dry_run.shutil.disk_usage", lambda place: usage._replace(free=1000))
    assert "1,000 are free: lower training.keep" in refused(2, "pretrain", recipe_file, "--dry-run")


def test_evaluate_and_finetune_name_images_layer_and_steps(call: Call, tested_recipe: Path) -> None:
    words = said(call, "evaluate", tested_recipe)
    assert "test images 72 samples" in words
    assert "classes 3" in words
    assert "layer feature vector" in words
    assert "10 from pretrained weights, 10 from random ones" in said(call, "finetune", tested_recipe)
    folder = Path(RunFolder(load_recipe(tested_recipe)).url)
    assert [path.name for path in folder.iterdir()] == ["backbone.pt"]


def test_what_is_missing_is_refused_as_by_the_command(recipe_file: Path, refused: Refused, tmp_path: Path) -> None:
    def missing(command: str, *words: object) -> str:
        return refused(2, command, recipe_file, "--dry-run", *words)

    assert "no such" in missing("pretrain", "--set", f"corpus.shards={tmp_path}/nowhere")
    assert "999 workers" in missing("pretrain", "--set", "training.workers=999")  # the lanes, or the CPUs where no Ray is up
    assert "no `downstream` section" in missing("evaluate")
    assert "names no tasks" in missing("render", "--out", tmp_path / "pairs", "--set", "tasks={}")


def test_render_estimates_the_disk_that_it_needs(recipe_file: Path, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    words = said(call, "render", recipe_file, "--out", out, "--set", "render.epochs=2")
    assert "pairs 144" in words
    assert not out.exists()
    recipe = load_recipe(recipe_file, ["engine=cpu"])
    estimate = render_plan(recipe, str(out))["disk needed bytes"]
    render(recipe, str(out), here=True)
    written = sum(tar.stat().st_size for tar in out.rglob("*.tar"))
    assert estimate == pytest.approx(written, rel=0.15)
    assert "shards with a commit record 0" not in said(call, "render", recipe_file, "--out", out, "--set", "engine=cpu")


def test_embed_and_cluster_name_their_rows_and_disk_and_write_nothing(
    call: Call, tested_recipe: Path, refused: Refused, tmp_path: Path
) -> None:
    out = tmp_path / "features"
    words = said(call, "embed", tested_recipe, "--out", out)
    for shown in ("72 samples", "layer feature vector", "shards with a commit record 0", "disk needed 151 kB"):  # 1,024 x float16
        assert shown in words
    assert not out.exists()
    assert "no classifier at" in refused(2, "label", tested_recipe, "--out", out, "--dry-run")
    assert "features" in refused(2, "cluster", out, "--k", 3, "--out", tmp_path / "x", "--dry-run")
    embed(load_recipe(tested_recipe), str(out), here=True)
    words = said(call, "cluster", out, "--k", 3, "--out", tmp_path / "clusters")
    assert "clusters 3 sample 72 features, 20 rounds at most" in words
    assert not (tmp_path / "clusters").exists()


def test_what_was_measured_is_shown_below_the_plan(call: Call, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = RunEstimate(0.0, 185.4, "2 s a step (9 measured), 21 s to start", 1_900_000_000)
    monkeypatch.setattr("trainers.planning.estimates.estimate_pretrain", lambda *given: found)
    words = said(call, "pretrain", recipe_file)
    assert words.endswith("estimated time 3:05 measured 2 s a step (9 measured), 21 s to start memory 1.9 GB")


def test_completion_of_the_shell_is_offered(call: Call) -> None:
    assert "--install-completion" in call("--help").stdout
