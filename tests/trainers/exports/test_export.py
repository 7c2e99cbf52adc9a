"""An exported backbone computes in its own library what it computes here; what does not is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

import pseudolabel
from cluster.cli import app
from cluster.commands import exporting
from pipeline.errors import RunError, UserError
from pipeline.recipe import parse_recipe
from trainers.exports.export import BATCHES, FORMATS, export
from trainers.exports.finished import FeatureExtractor
from trainers.exports.mlflow_model import log_backbone
from trainers.running.tracking import tracked

MakeRun = Callable[..., str]
DOCS = Path(__file__).resolve().parents[3] / "docs"
NETWORKS: list[tuple[str, int, dict[str, Any]]] = [
    ("resnet18", 224, {}),
    ("resnet10", 32, {"stem": "standard"}),
    ("vit_b_32", 32, {}),
    ("densenet121", 32, {"stem": "standard"}),
    ("convnext_tiny", 64, {"stem": "standard"}),
    ("efficientnet_b0", 64, {"stem": "standard"}),
]
SLOW = ("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mobilenet_v2", "vit_b_32")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of any hub: it would be an error."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setitem(os.environ, name, "1")


def test_the_command_prints_the_largest_difference_and_writes_its_result(finished: MakeRun, tmp_path: Path) -> None:
    words = ["export", finished("resnet10"), "--to", "safetensors", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--result", str(tmp_path / "result.json")])
    assert done.exit_code == 0, done.output
    assert re.search(r"largest difference [\d.e-]+, of features up to [\d.]+", done.stdout)
    assert "README.md, model.safetensors" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "done"
    assert 0 <= result["metrics"]["difference"] <= 1e-4 * result["metrics"]["largest_feature"]


def test_formats_of_the_command_are_those_of_the_function() -> None:
    assert get_args(get_type_hints(exporting.export)["to"]) == FORMATS


def images(extractor: FeatureExtractor, n: int) -> Tensor:
    size = extractor.preprocessing.size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


def check(extractor: FeatureExtractor, other: Callable[[Tensor], Tensor]) -> None:
    with torch.no_grad():
        for n in BATCHES:
            x = images(extractor, n)
            ours, theirs = extractor(x), other(x)
            assert theirs.shape == (n, extractor.width)
            assert (ours - theirs).abs().max() <= 1e-4 * ours.abs().max()


def of_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """What the code of the model card computes."""
    code = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)[0]
    assert "pseudolabel" not in code
    monkeypatch.chdir(folder)

    def run(x: Tensor) -> Tensor:
        names: dict[str, Any] = {"images": x}
        exec(code, names)  # noqa: S102
        return torch.as_tensor(names["features"])

    return run


def cases(*networks: tuple[Any, ...]) -> list[Any]:
    """Parameters of a test by network; those with many weights, layers or pixels are in the long form."""
    return [
        pytest.param(*case, id="-".join(map(str, case[:2])), marks=[pytest.mark.slow] if case[0] in SLOW or case[1] > 112 else [])
        for case in networks
    ]


@pytest.mark.parametrize(("name", "size", "spec"), cases(*NETWORKS))
def test_timm_reads_the_networks_that_it_has_too(finished: MakeRun, tmp_path: Path, name: str, size: int, spec: Any) -> None:
    import timm

    run = finished(name, size, **spec)
    found = export(run, "timm", str(tmp_path / "out"))
    assert found.difference <= 1e-4 * found.largest
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    check(pseudolabel.load_backbone(run), network)
    config = timm.data.resolve_model_data_config(network)
    assert list(config["input_size"]) == [3, size, size]
    assert (tuple(config["mean"]), tuple(config["std"]), config["crop_pct"]) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 1.0)


@pytest.mark.parametrize(
    ("name", "size"),
    cases(
        ("resnet10", 32), ("resnet18", 224), ("vit_b_32", 32), ("alexnet", 32), ("googlenet", 32), ("mobilenet_v2", 32),
        ("squeezenet1_1", 32), ("convnext_tiny", 32),
    ),
)  # fmt: skip
@pytest.mark.parametrize("to", ["torchvision", "safetensors"])
def test_the_cards_code_builds_it_from_torchvision_alone_small_stem_included(
    finished: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any, name: str, size: int
) -> None:
    run = finished(name, size)
    export(run, to, str(tmp_path / "out"))
    check(pseudolabel.load_backbone(run), of_the_card(tmp_path / "out", monkeypatch))


def test_a_backbone_that_was_trained_up_to_a_map_leaves_as_such(
    finished: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("vgg11", outputs=("map",))
    extractor = pseudolabel.load_backbone(run)
    assert (extractor.layer, extractor.width) == ("features.19", 512)
    export(run, "torchvision", str(tmp_path / "out"))
    check(extractor, of_the_card(tmp_path / "out", monkeypatch))


@pytest.mark.parametrize(("name", "size"), cases(("resnet10", 32), ("resnet18", 224), ("vit_b_32", 32), ("alexnet", 12)))
def test_onnxruntime_reads_any_of_them_at_any_batch(finished: MakeRun, tmp_path: Path, name: str, size: int) -> None:
    import onnxruntime

    run = finished(name, size)
    found = export(run, "onnx", str(tmp_path / "out"))
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert taken.shape[1:] == [3, found.size, found.size]
    assert json.loads(session.get_modelmeta().custom_metadata_map["mean"]) == [0.5, 0.4, 0.3]
    extractor = pseudolabel.load_backbone(run)
    check(extractor, lambda x: torch.from_numpy(session.run(["features"], {"images": x.numpy()})[0]))


FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32", "wide_resnet50_2",
)  # fmt: skip
"""The smallest network of each family of torchvision."""

ONLY_AT = {"maxvit_t": 224, "vit_b_32": 64}


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("stem", ["standard", "small"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_leaves_in_every_format_or_is_refused_in_words(
    finished: MakeRun, tmp_path: Path, name: str, stem: str, to: Any
) -> None:
    """The command itself loads the network back by the library, and compares it on batches of 1, 2 and 7 images."""
    run = finished(name, ONLY_AT.get(name, 32), stem=stem)
    try:
        found = export(run, to, str(tmp_path / "out"))
    except UserError as error:
        assert to in ("timm", "huggingface")
        print(f"{name} {stem} {to}: {error}")
        return
    finally:
        shutil.rmtree(tmp_path)  # of all of them there are tens of gigabytes
    print(f"{name} {stem} {to}: {found.difference / found.largest:.1e} of the largest feature")
    assert found.difference <= 1e-4 * found.largest


@pytest.mark.parametrize(("name", "size"), cases(("resnet10", 112), ("vit_b_32", 32)))
def test_transformers_reads_network_and_preprocessing(
    finished: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    from transformers import AutoImageProcessor

    run = finished(name, size)
    export(run, "huggingface", str(tmp_path / "out"))
    extractor = pseudolabel.load_backbone(run)
    check(extractor, of_the_card(tmp_path / "out", monkeypatch))
    photo = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    processed = AutoImageProcessor.from_pretrained(str(tmp_path / "out"))(photo, return_tensors="pt")["pixel_values"]
    ours = extractor.preprocessing.transform()(torch.from_numpy(photo).permute(2, 0, 1))
    torch.testing.assert_close(processed[0], ours)


def test_the_model_card_says_where_it_comes_from_and_what_it_is_worth(finished: MakeRun, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    export(finished("resnet10"), "torchvision", str(tmp_path / "out"))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict()["tags"] == ["self-supervised-learning", "rotation"]
    for words in ("81.2 ± 5.0 %", "shards/photos", "0.5, 0.4, 0.3", '"seed": 1', "56 samples", "7 steps"):
        assert words in card.text
    assert yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])["library_name"] == "pytorch"


@pytest.mark.parametrize("factor", [1.0, float("nan")])
def test_an_export_that_computes_something_else_is_refused_and_not_written(
    finished: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    run = finished("resnet10", stem="standard")

    class Off(nn.Module):
        def __init__(self, form: Any, *_: Any) -> None:
            super().__init__()
            self.network = form.network.eval()  # without the weights

        def forward(self, x: Tensor) -> Tensor:
            return factor * self.network(x)

    monkeypatch.setattr("trainers.exports.export.RestoredNetwork", Off)
    with pytest.raises(RunError, match="nothing was written"):
        export(run, "torchvision", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "size", "to", "words"),
    [
        ("resnet10", 32, "timm", "first layers for small images here, which timm's resnet18 has not: take --to onnx"),
        ("alexnet", 32, "timm", "timm has no network like alexnet"),
        ("resnet10", 32, "jax", "the formats are torchvision, timm"),
    ],
)
def test_what_a_library_has_not_is_refused_in_words(
    finished: MakeRun, tmp_path: Path, name: str, size: int, to: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        export(finished(name, size), to, str(tmp_path / "out"))


def test_a_file_name_and_a_folder_without_a_run_are_refused(finished: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"an export is a folder of several files; name one without \.onnx"):
        export("unread", "onnx", str(tmp_path / "x.onnx"))
    with pytest.raises(UserError, match="give the folder of a run that `pseudolabel pretrain` has finished"):
        export(str(tmp_path), "onnx", str(tmp_path / "x"))


def test_a_folder_that_holds_something_is_left_alone(finished: MakeRun, tmp_path: Path) -> None:
    run = finished("resnet10")
    export(run, "safetensors", str(tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for to in FORMATS:
        with pytest.raises(UserError, match=r"--out .*out is not empty: it holds README\.md; name another folder"):
            export(run, to, str(tmp_path / "out"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_card_says_with_which_other_recipe_a_result_was_measured(finished: MakeRun, tmp_path: Path) -> None:
    run = finished("resnet10")
    found = json.loads(Path(run, "evaluate.json").read_text())
    rows = [{**row, "protocol": "finetune", "steps": 16} for row in found["downstream"]]
    other = {"pretraining": found["pretraining"], "downstream": rows, "differs": {"downstream.epochs": [30, 2]}}
    Path(run, "finetune.json").write_text(json.dumps(other))
    export(run, "safetensors", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| finetune on `layer3`, 72 labels, 16 steps | pretrained weights | 81.2 ± 5.0 % |" in card
    assert "finetune ran with another recipe than the one below: `downstream.epochs` 2 instead of 30." in card


def test_missing_packages_are_named_with_the_extra_that_brings_them(
    finished: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.exports.export.find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match=r"--to timm needs timm, safetensors: in the project's folder, `pip install .* '\.\[export\]'",
    ):
        export("unread", "timm", str(tmp_path / "x"))


SECTIONS = (DOCS / "elsewhere.md").read_text().split("\n## ")[1:]
SNIPPETS = [
    (section.partition("\n")[0], code)
    for section in SECTIONS
    for code in re.findall(r"```python\n(.*?)\n```", section, re.DOTALL)
]


def test_there_is_a_snippet_for_every_destination() -> None:
    assert [title for title, _ in SNIPPETS] == ["Python", "torchvision", "safetensors", "timm", "Hugging Face", "ONNX", "MLflow"]


@pytest.mark.parametrize(
    ("title", "code"),
    [pytest.param(*one, id=one[0], marks=[pytest.mark.slow] if one[0] in ("ONNX", "MLflow") else []) for one in SNIPPETS],
)
def test_the_snippets_of_the_docs_compute_the_backbones_features(
    finished: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str, code: str
) -> None:
    run = Path(finished("resnet18", stem="standard"))
    run = run.rename(run.with_name("photos"))
    monkeypatch.chdir(tmp_path)
    if title == "MLflow":
        recipe = {**json.loads((run / "recipe.json").read_text()), "name": "photos"}
        recipe["tracking"] = {"tensorboard": False, "mlflow": "sqlite:///mlflow.db"}
        with tracked(parse_recipe(recipe), "pretrain"):
            log_backbone(parse_recipe(recipe))
    elif title != "Python":
        to: Any = title.lower().replace(" ", "")
        export("runs/photos", to, f"photos-{to}")
    extractor = pseudolabel.load_backbone("runs/photos")

    def there(x: Tensor) -> Tensor:
        names: dict[str, Any] = {"images": x}
        exec(code, names)  # noqa: S102
        return torch.as_tensor(names["features"])

    check(extractor, there)
