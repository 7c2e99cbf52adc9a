"""The sheet of clusters shows the photos at both ends of each, and says so where the corpus is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.pictures import cluster_sheet
from cluster.pictures.cluster_sheet import draw_clusters
from pipeline.errors import UserError
from pipeline.recipe.load import parse_recipe
from pipeline.rendering.renderer import Renderer
from pipeline.shards.opening import open_corpus
from tests.trainers.labelling.conftest import K, clusters, embedded, rows_of

__all__ = ["clusters", "embedded"]


def test_the_nearest_photo_of_the_largest_cluster_comes_first_and_the_furthest_last(
    clusters: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_sheet, "NEAREST", 3)
    monkeypatch.setattr(cluster_sheet, "FURTHEST", 2)
    drawn = draw_clusters(str(clusters), str(tmp_path / "sheet.png"))
    sizes = json.loads((clusters / "report.json").read_text())["sizes"]
    assert drawn == sorted(range(K), key=lambda cluster: (-sizes[cluster], cluster))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    rows = [row for row in rows_of(clusters).to_pylist() if row["label"] == drawn[0]]
    assert len(rows) > 5
    ordered = sorted(rows, key=lambda row: row["distance"])
    recipe = parse_recipe(json.loads((clusters / "recipe.json").read_text()), "recipe.json")
    corpus, render = open_corpus(str(tiles)), Renderer(recipe, center=True)
    samples = {sample.id: sample for i in range(8) for sample in corpus.read(i, range(int(corpus.counts[i])))}
    for row, left in ((ordered[0], 16), (ordered[2], 16 + 2 * 102), (ordered[-1], 16 + 4 * 102 + 30)):
        pixels = render([samples[row["id"]]], 0).columns["image"][0]
        wanted = np.asarray(Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST))
        np.testing.assert_array_equal(sheet[16 + 26 + 20 : 16 + 26 + 20 + 96, left : left + 96], wanted)


def test_photos_that_are_gone_are_told(clusters: Path, tiles: Path, tmp_path: Path) -> None:
    copy, few = Path(shutil.copytree(clusters, tmp_path / "copy")), tmp_path / "few"
    few.mkdir()
    shutil.copy(next(tiles.glob("*.tar")), few)
    document = json.loads((copy / "recipe.json").read_text())
    document["corpus"]["shards"] = str(few)
    (copy / "recipe.json").write_text(json.dumps(document))
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["sha256"]["recipe.json"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"corpus\.shards has no .* any more, whose features were clustered: nothing is drawn"):
        draw_clusters(str(copy), str(tmp_path / "sheet.png"))
