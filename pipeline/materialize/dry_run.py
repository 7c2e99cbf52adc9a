"""What a render would do: its shards, those that are done, and an estimate of the disk that the others need."""

from __future__ import annotations

import numpy as np

from pipeline.errors import RunError
from pipeline.materialize.columns import encoder, stored_columns
from pipeline.materialize.commit import committed
from pipeline.materialize.run import check_recipe, opened
from pipeline.recipe.schema import Recipe
from pipeline.rendering.renderer import Renderer
from pipeline.shards.corpus import Corpus
from pipeline.shards.naming import is_image
from pipeline.storage import absolute, exists

_TRIED = 16
_TAR_HEADER, _TAR_BLOCK = 512, 512
_TAR_END = 10_240 // 2  # a tar is filled up to a multiple of 10 KiB


def render_plan(recipe: Recipe, out: str) -> dict[str, str | int]:
    """Say what `render` would do; Ray is not started, and nothing is written but the index of shards that have none.

    Raises:
        UserError: what the render would refuse.
        RunError: none of some images can be rendered.
    """
    check_recipe(recipe)
    corpus = opened(recipe)
    pairs = corpus.samples * recipe.render.epochs
    files = len(corpus.urls) * recipe.render.epochs
    done = len(committed(absolute(out))) if exists(out) else 0
    return {
        "corpus": f"{corpus.samples:,} samples in {len(corpus.urls):,} shards",
        **({"damaged shards": len(corpus.damaged)} if corpus.damaged else {}),
        "pairs": pairs,
        "outputs": f"{files:,} files of format {recipe.render.format}",
        "shards with a commit record": done,
        "disk needed bytes": round(pairs * _bytes_each(recipe, corpus)) + files * _TAR_END,
    }


def _bytes_each(recipe: Recipe, corpus: Corpus) -> float:
    """Bytes of a pair on disk: the mean of some from all over the corpus, rendered and encoded."""
    columns = stored_columns(recipe)
    if recipe.render.format == "parquet":
        return float(sum(column.row_bytes for column in columns))  # before compression
    chosen = np.unique(np.linspace(0, max(0, corpus.samples - 1), _TRIED).round().astype(int))
    parts = corpus.rows_of(chosen) if corpus.samples else []
    read = [one for i, rows in enumerate(parts) if len(rows) for one in corpus.read_members(i, rows)]
    if not read:
        return 0.0
    samples = [sample for sample, _ in read]
    found = Renderer(recipe)(samples, epoch=0).columns
    rows = np.flatnonzero(found["weight"])
    if not len(rows):
        raise RunError(f"none of {len(samples)} images could be decoded; `pseudolabel inspect --deep` says why")
    kept = [len(body) for row in rows for extension, body in read[row][1].items() if not is_image(extension)]
    total = sum(map(_in_tar, kept))
    for column in columns:
        encode = encoder(column, recipe.render)
        total += sum(_in_tar(len(encode(found[column.name][row]))) for row in rows)
    return total / len(rows)


def _in_tar(size: int) -> int:
    """Bytes that a member of a tar takes."""
    return _TAR_HEADER + -(-size // _TAR_BLOCK) * _TAR_BLOCK
