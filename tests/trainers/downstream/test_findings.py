"""What an evaluation leaves to look at: the photos that were most wrong, as they were tested, and counts of all images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.recipe import Recipe
from tests.trainers.downstream.images import images_of
from trainers.downstream.features import FeatureRows, Rank
from trainers.downstream.findings import leave_findings, photos_of, shown_points
from trainers.downstream.labelled import open_labelled
from trainers.learning.examples import read_pictures
from trainers.running.runs import RunFolder


def test_the_most_wrong_photos_are_left_as_they_were_tested(labelled: Callable[..., Recipe], shard: Callable[..., str]) -> None:
    recipe = labelled(train=shard("train", [0, 1, 2, 3]), test=shard("test", [0, 1, 2, 3, None], damaged=(1,)))
    data, folder = open_labelled(recipe), RunFolder(recipe)
    folder.make()
    (batch,) = images_of(data.testing())
    found: dict[str, Any] = {
        "init": "random", "protocol": "knn", "layer": "stage4", "ids": batch.ids, "y": batch.labels,
        "named": np.where(batch.labels == 0, 0, 1), "sure": np.float32([0.9, 0.4, 0.7]),
        "x": np.eye(3, dtype=np.float32), "x_label": batch.labels,
    }  # fmt: skip
    leave_findings(folder, data, found, "x")
    held = read_pictures(folder.path("evaluate.npz"), "x")
    assert held["about"].tolist() == ["random", "knn", "stage4"]
    assert held["classes"].tolist() == ["0", "1", "2", "3"]
    assert held["confusion"].sum() == 3
    assert sorted(held["wrong_true"].tolist()) == [2, 3]
    assert held["wrong_sure"].tolist() == sorted(held["wrong_sure"].tolist(), reverse=True)
    images = {int(label): image for label, image in zip(batch.labels, batch.image.numpy())}
    for photo, label in zip(held["wrong"], held["wrong_true"]):
        assert np.array_equal(photo, images[int(label)])
    assert len(held["wrong"]) == 2
    assert held["points"].shape == (3, 2)
    assert "too few" in str(held["points_how"])
    assert photos_of(data, np.zeros(0, np.uint64)) == {}


def test_the_map_shows_the_test_images_of_the_lowest_ids() -> None:
    ids = np.arange(5000, dtype=np.uint64)
    points = shown_points(FeatureRows(ids, np.arange(5000) % 7, np.ones((5000, 4, 3), np.float16) * ids[:, None, None]), Rank())
    assert points["x"].shape == (2000, 3)
    assert points["x"].dtype == np.float32
    assert points["x"][:, 0].tolist() == list(range(2000))
    assert points["x_label"].tolist() == (np.arange(2000) % 7).tolist()
