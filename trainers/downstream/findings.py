"""What an evaluation leaves for people to look at: confusions, the most wrong photos, and a map of the features."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np

from pipeline.ordering.order import Geometry, Schedule
from pipeline.rendering.units import UnitRenderer, UnitSource
from trainers.downstream.features import FeatureRows, Rank
from trainers.downstream.guesses import Guesses
from trainers.downstream.labelled import Labelled
from trainers.downstream.layout import laid_out
from trainers.learning.examples import write_pictures
from trainers.running.runs import FINDINGS, RunFolder

WRONG = 12
POINTS = 2_000


def shown_points(test: FeatureRows, rank: Rank) -> dict[str, np.ndarray]:
    """The test features that are drawn: at most `POINTS`, of the lowest ids, on any number of ranks; maps are averaged.

    Returns:
        `x`, float32 (k, d), and `x_label`, int64 (k,).
    """
    first = slice(0, POINTS)  # rows are in order of their ids
    x = test.x[first].astype(np.float32)
    mine = FeatureRows(test.ids[first], test.y[first], x.mean(1) if x.ndim == 3 else x)
    rows = mine.together(rank.world)
    return {"x": rows.x[first], "x_label": rows.y[first]}


def leave_findings(folder: RunFolder, data: Labelled, found: dict[str, Any], identity: str) -> None:
    """Write `evaluate.npz` into a run's folder: what the report draws.

    It holds `classes`, their names; `about`, start, protocol and layer; `confusion`, see `Guesses.confusion`; of the most wrong
    photos `wrong`, uint8 (k, h, w, 3), `wrong_true`, `wrong_named` and `wrong_sure`; of the map `points`, float32 (n, 2),
    `points_label`, and `points_how`, the method in words.

    Args:
        folder: of the run.
        data: its labelled corpora.
        found: `init`, `protocol` and `layer`; the fields of the `Guesses` of all ranks; and those of `shown_points`.
        identity: of the backbone.
    """
    guesses = Guesses(found["ids"], found["y"], found["named"], found["sure"])
    rows = guesses.most_wrong(WRONG)
    photos = photos_of(data, guesses.ids[rows])
    rows = np.array([row for row in rows if int(guesses.ids[row]) in photos], np.int64)
    points, how = laid_out(found["x"], data.recipe.seed)
    none = np.zeros((0, data.recipe.image.size, data.recipe.image.size, 3), np.uint8)
    pictures = {
        "classes": np.array(data.classes.names),
        "about": np.array([found["init"], found["protocol"], found["layer"]]),
        "confusion": guesses.confusion(len(data.classes.names)),
        "wrong": np.stack([photos[int(guesses.ids[row])] for row in rows]) if len(rows) else none,
        "wrong_true": guesses.y[rows],
        "wrong_named": guesses.named[rows],
        "wrong_sure": guesses.sure[rows],
        "points": points,
        "points_label": found["x_label"],
        "points_how": np.array(how),
    }
    write_pictures(folder.path(FINDINGS), pictures, identity)


def photos_of(data: Labelled, ids: np.ndarray) -> dict[int, np.ndarray]:
    """The test images of these ids as they were tested, uint8 (h, w, 3), rendered by this process."""
    if not len(ids):
        return {}
    corpus = data.test.select(data.test.rows_with(ids))
    lanes = Geometry(batch=corpus.samples, lanes=1, groups=1, window=1)
    schedule = Schedule(corpus.counts, lanes, data.recipe.seed, 1, tail="pad", shuffle=False)
    source = UnitSource(data.recipe, corpus, schedule, center=True)
    with closing(UnitRenderer(source, data.recipe.placement.threads, in_child=True)) as render:
        columns = render(source.read(0))
    return {int(number): np.asarray(image) for number, image in zip(columns["id"], columns["image"])}
