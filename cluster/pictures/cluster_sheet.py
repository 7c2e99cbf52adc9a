"""Draws photos of some clusters: those nearest to the centroid, and those furthest from it."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import UserError
from pipeline.materialize.opened import open_materialized
from pipeline.materialize.run import opened
from pipeline.recipe.schema import Recipe
from pipeline.rendering.renderer import Renderer
from pipeline.shards.corpus import Corpus
from pipeline.storage import join, read_all, write_atomic
from trainers.labelling.cluster_job import REPORT
from trainers.labelling.network_job import read_table

CLUSTERS, NEAREST, FURTHEST = 8, 6, 4
_SIDE, _GAP, _APART, _MARGIN, _HEAD, _LINE = 96, 6, 30, 16, 26, 20
_PAPER, _INK, _QUIET = (255, 255, 255), (28, 35, 48), (106, 115, 133)


def draw_clusters(clusters: str, file: str) -> list[int]:
    """Draw some clusters of a folder that `cluster` has written, from the largest to the smallest, a row each.

    The photos are those of the corpus of which the features were computed, which must be where it was. They are cut as the
    network saw them, around the centre. The label is that of the first clustering.

    Args:
        clusters: the folder.
        file: the PNG, path or URL.

    Returns:
        The clusters that were drawn.

    Raises:
        UserError: there are no such tables, or the corpus is not there any more.
    """
    found = open_materialized(clusters, "labels", "cluster", "folder of clusters")
    corpus = opened(found.recipe)
    places = {corpus.shard_name(i): i for i in range(len(corpus.urls))}
    sizes = np.array(json.loads(read_all(join(found.url, REPORT)))["sizes"])
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, CLUSTERS).round().astype(int))].tolist()
    ends = {cluster: _none() for cluster in chosen}
    for row in found.rows():
        if row["outputs"]:
            if row["shard"] not in places:
                raise UserError(f"corpus.shards has no {row['shard']} any more, whose features were clustered: nothing is drawn")
            table = read_table(join(found.url, row["outputs"][0]["name"]), ["label", "row", "distance"])
            label, own, distance = (table.column(name).to_numpy() for name in ("label", "row", "distance"))
            for cluster in chosen:
                here = np.flatnonzero(label == cluster)
                shard = np.full(len(here), places[row["shard"]])
                ends[cluster] = _outermost(np.concatenate([ends[cluster], np.stack([distance[here], shard, own[here]], 1)]))
    with write_atomic(file) as target:
        _sheet(found.recipe, corpus, ends, sizes).save(target, "PNG", optimize=True)
    return chosen


def _none() -> np.ndarray:
    """float64 (n, 3): images of a cluster as distance, shard and row, the nearest first."""
    return np.zeros((0, 3))


def _outermost(images: np.ndarray) -> np.ndarray:
    """The nearest and the furthest of some images, of equal ones the first."""
    ordered = images[np.argsort(images[:, 0], kind="stable")]
    return ordered if len(ordered) <= NEAREST + FURTHEST else np.concatenate([ordered[:NEAREST], ordered[-FURTHEST:]])


def _sheet(recipe: Recipe, corpus: Corpus, ends: dict[int, np.ndarray], sizes: np.ndarray) -> Image.Image:
    photos = _photos(recipe, corpus, np.concatenate(list(ends.values())))
    down = _LINE + _SIDE + 2 * _GAP
    width = 2 * _MARGIN + (NEAREST + FURTHEST) * (_SIDE + _GAP) - _GAP + _APART
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _HEAD + len(ends) * down), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)

    def left(n: int) -> int:
        return _MARGIN + n * (_SIDE + _GAP) + (_APART if n >= NEAREST else 0)

    pen.text((left(0), _MARGIN), "nearest to the centroid", _INK, font)
    pen.text((left(NEAREST), _MARGIN), "furthest from it", _INK, font)
    for which, (cluster, images) in enumerate(ends.items()):
        top = _MARGIN + _HEAD + which * down
        near = f"{images[0, 0]:.3g} to {images[-1, 0]:.3g}"
        pen.text((left(0), top), f"cluster {cluster}: {sizes[cluster]:,} images, distance {near}", _QUIET, font)
        for n, (_, shard, row) in enumerate(images):
            place = n if n < NEAREST else NEAREST + FURTHEST - len(images) + n  # the last ones at the right
            sheet.paste(photos[int(shard), int(row)], (left(place), top + _LINE))
    return sheet


def _photos(recipe: Recipe, corpus: Corpus, images: np.ndarray) -> dict[tuple[int, int], Image.Image]:
    """The photos of some images, by shard and row."""
    render, found = Renderer(recipe, center=True), {}
    for shard in np.unique(images[:, 1]).astype(int).tolist():
        rows = np.unique(images[images[:, 1] == shard, 2]).astype(int)
        for row, pixels in zip(rows.tolist(), render(corpus.read(shard, rows), 0).columns["image"]):
            how = Image.Resampling.NEAREST if max(pixels.shape) < _SIDE else Image.Resampling.LANCZOS
            found[shard, row] = Image.fromarray(pixels).resize((_SIDE, _SIDE), how)
    return found
