"""Pretraining may start from given weights: what they hold is part of the run's identity, where they lie is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.recipe.training import BackboneSection
from trainers.learning.pretext import PretextModel
from trainers.networks.backbones import build_backbone
from trainers.running.runs import RunFolder

MakeRecipe = Callable[..., Recipe]


def starting(run_recipe: MakeRecipe, weights: Path | str | None, name: str = "resnet10") -> Recipe:
    return run_recipe(backbone={"name": name, "stem": "standard", **({"weights": str(weights)} if weights else {})})


def network(name: str = "resnet10", seed: int = 9) -> torch.nn.Module:
    return build_backbone(BackboneSection(name=name, stem="standard"), 32, seed).network


@pytest.mark.parametrize("form", ["backbone.pt", "plain.pth", "inside.pt", "plain.safetensors", "torchvision.pth"])
def test_each_usual_form_of_file_is_read(run_recipe: MakeRecipe, tmp_path: Path, form: str) -> None:
    name = "resnet18" if form == "torchvision.pth" else "resnet10"
    state, path = network(name).state_dict(), tmp_path / form
    if form == "plain.safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    elif form == "torchvision.pth":  # with a classifier of its own
        whole = torchvision.models.resnet18(num_classes=7)
        whole.load_state_dict(state, strict=False)
        torch.save(whole.state_dict(), path)
    else:
        torch.save({"backbone.pt": {"backbone": state, "spec": {}}, "inside.pt": {"state_dict": state}}.get(form, state), path)
    model = PretextModel(starting(run_recipe, path, name), seed=1)
    loaded = model.backbone.network.state_dict()
    assert all(torch.equal(loaded[key], weight) for key, weight in state.items())


def test_the_identity_depends_on_what_the_file_holds_and_not_on_its_place(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    for name, seed in (("a.pt", 1), ("copy.pt", 1), ("b.pt", 2)):
        torch.save(network(seed=seed).state_dict(), tmp_path / name)
    (tmp_path / "copy.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    none, a, copy, b = (
        RunFolder(starting(run_recipe, path and tmp_path / path)).identity("pretrain")
        for path in (None, "a.pt", "copy.pt", "b.pt")
    )
    assert a == copy
    assert len({none, a, b}) == 3


def test_a_recipe_without_the_new_keys_keeps_its_form_and_a_text_is_a_name(run_recipe: MakeRecipe) -> None:
    by_text, by_name = (run_recipe(backbone=given) for given in ("resnet10", {"name": "resnet10"}))
    assert by_text == by_name
    assert by_name.model_dump()["training"]["backbone"] == {"name": "resnet10", "stem": "auto", "args": {}}
    assert RunFolder(by_text).identity("pretrain") == RunFolder(by_name).identity("pretrain")


class Trap:
    def __reduce__(self) -> tuple:
        return (print, ("code of a file was run",))


def test_what_cannot_be_a_start_is_refused_in_words(
    run_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"x": Trap()}, tmp_path / "code.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save(network("resnet18").state_dict(), tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    whole = (tmp_path / "other.pt").read_bytes()
    for name in ("cut.pt", "cut.safetensors"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    state = network("resnet10").state_dict()
    torch.save(
        {name: value * float("nan") if value.is_floating_point() else value for name, value in state.items()},
        tmp_path / "broken.pt",
    )
    for name, words in {
        "code.pt": " holds other Python objects than tensors; it is refused",
        "text.pt": " is no file of weights by torch.save, or is incomplete or damaged",
        "cut.pt": " is no file of weights by torch.save, or is incomplete or damaged",
        "empty.pt": " holds no weights",
        "broken.pt": ": the weight .* holds numbers that are not finite",
        "cut.safetensors": " is no file of safetensors, or is incomplete or damaged",
        "other.pt": ": these weights are not of the recipe's backbone",
        "absent.pt": ": no such file",
    }.items():
        with pytest.raises(UserError, match=rf"training\.backbone\.weights: .*{name}{words}"):
            PretextModel(starting(run_recipe, tmp_path / name), seed=1)
    with pytest.raises(UserError, match=r"absent\.pt: no such file"):
        RunFolder(starting(run_recipe, tmp_path / "absent.pt")).identity("pretrain")
    assert "code of a file" not in capsys.readouterr().out


def test_the_file_of_weights_is_read_once_for_all_identities(
    run_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    folder, read = RunFolder(starting(run_recipe, tmp_path / "w.pt")), []
    monkeypatch.setattr("trainers.running.runs.read_all", lambda url: read.append(url) or b"weights")
    assert folder.identity("pretrain") == folder.identity("pretrain") != folder.identity("evaluate")
    assert len(read) == 1
