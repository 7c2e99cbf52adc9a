"""`load_backbone` gives the network of a run, ready for photos."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pseudolabel
from pipeline.errors import UserError
from pipeline.recipe.training import BackboneSection
from trainers.networks.backbones import build_backbone

MakeRun = Callable[..., str]


@pytest.mark.parametrize(("name", "size"), [("resnet10", 32), ("resnet10", 100), ("shufflenet_v2_x0_5", 24)])
def test_it_is_the_runs_network_with_its_stem_in_evaluation_mode(finished: MakeRun, name: str, size: int) -> None:
    run = finished(name, size)
    network = pseudolabel.load_backbone(run)
    saved = torch.load(f"{run}/backbone.pt", weights_only=True)
    expected = build_backbone(BackboneSection(name=name), size, seed=9)
    assert expected.load(saved["backbone"]) == []
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected.eval()(x).vector)
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())


def test_its_preprocessing_takes_photos_and_arrays_and_normalises_by_the_runs_statistics(finished: MakeRun) -> None:
    network = pseudolabel.load_backbone(finished("resnet10"))
    transform = network.preprocessing.transform()
    grey = transform(Image.new("L", (50, 40), 102))  # 0.4
    assert grey.shape == (3, 32, 32)
    assert grey[:, 0, 0].tolist() == pytest.approx([-0.5, 0.0, 1 / 3], abs=1e-6)
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    torch.testing.assert_close(
        transform(Image.fromarray(photo)), transform(torch.from_numpy(photo).permute(2, 0, 1)), atol=0.03, rtol=0
    )


def test_a_folder_without_a_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no backbone\.pt and recipe.json there"):
        pseudolabel.load_backbone(str(tmp_path))


def test_a_run_may_be_a_url(finished: MakeRun) -> None:
    import fsspec

    run = finished("resnet10")
    for name in ("backbone.pt", "recipe.json"):
        with open(f"{run}/{name}", "rb") as file, fsspec.open(f"memory://there/{name}", "wb") as copy:
            copy.write(BytesIO(file.read()).getvalue())
    assert pseudolabel.load_backbone("memory://there").width == 512
