"""Computes features of every image of a corpus with a trained backbone: Parquet tables beside it, each shard exactly once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from torch import nn

from pipeline.errors import UserError
from pipeline.materialize.driver import JobReport, Progress, materialize
from pipeline.materialize.folder import check_access
from pipeline.materialize.job import CHUNK, known_sums
from pipeline.materialize.run import asked, corpus_of, engine_chosen
from pipeline.recipe.schema import Recipe
from pipeline.storage import absolute
from pipeline.streaming.connection import connect_ray
from trainers.downstream.pretrained import VECTOR, trained_layer
from trainers.labelling.network_job import BATCH, PIXELS, NetworkJob, check_corpus, images_alone, machine_identity, table_schema
from trainers.labelling.weights import WeightsFile, read_weights, weights_url
from trainers.networks.backbones import Backbone, Embedding, build_backbone

VERSION = 1
FEATURES = "features"

VectorType = Literal["float16", "float32"]

WINDOWS = {"crop", "scale", "ratio", "flip"}
"""Keys of `image` that the views after the first depend on."""

_NOT_FINITE = "its features are not finite"


def embed(
    recipe: Recipe,
    out: str,
    run: str | None = None,
    weights: str | None = None,
    layer: str | None = None,
    dtype: VectorType = "float16",
    views: int = 1,
    retry_failed: bool = False,
    indexing: Callable[[int, int], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    chunk: int = CHUNK,
    here: bool = False,
) -> JobReport:
    """Compute the features of every image of a recipe's corpus; after an interruption the same call goes on.

    The centre of each photo goes through the network in evaluation mode; of several views, the feature is the mean. A feature
    depends on the image, the weights and the kind of processor, and on no other image. For each shard a Parquet table has the
    columns `key`, `id`, `row` in the shard, `class` where the shards have labels, and `vector`.

    Args:
        recipe: the recipe; its `corpus`, `image`, `placement` and `training.backbone` count.
        out: folder for the result, path or URL.
        run: folder of the run whose backbone is taken, instead of the recipe's own.
        weights: a file of weights, instead of a run's.
        layer: name of the layer whose output, averaged over positions, is the feature; None for the deepest trained one.
        dtype: type of the vectors on disk.
        views: how many of each image: its centre, and crops that are drawn by the recipe's seed and `image` as for training.
        retry_failed: try those shards again that failed in an earlier run.
        indexing: called with (shards indexed, shards to index).
        progress: called after each shard.
        chunk: samples read and decoded at a time; what is written does not depend on it.
        here: compute in this process, without Ray.

    Raises:
        UserError: no weights, no such layer, no shards, or the folder holds something else.
        BudgetExceeded: too many samples cannot be used.
        RunError: storage refused an output, or the job failed; committed shards are kept.
    """
    job = embed_job(recipe, out, run, weights, layer, dtype, views, indexing, chunk, here)
    return materialize(job, retry_failed, progress, here)


def embed_job(
    recipe: Recipe,
    out: str,
    run: str | None = None,
    weights: str | None = None,
    layer: str | None = None,
    dtype: VectorType = "float16",
    views: int = 1,
    indexing: Callable[[int, int], None] | None = None,
    chunk: int = CHUNK,
    here: bool = False,
) -> EmbedJob:
    """Make the job of `embed`, before any output is written; arguments and errors as there."""
    file, layer = check(recipe, out, run, weights, layer, dtype, views)
    if not here:
        connect_ray()
    recipe = engine_chosen(images_alone(recipe), here)
    machine = asked(partial(_machine, recipe, layer), recipe, here)
    corpus = corpus_of(recipe, indexing)
    identity = {
        "version": VERSION,
        "makes": FEATURES,
        "corpus": recipe.corpus.model_dump(mode="json", include={"image", "keys"}),
        "image": recipe.image.model_dump(mode="json", include=PIXELS),
        "backbone": recipe.training.backbone.architecture(),
        "weights": file.sha256,
        "layer": layer or VECTOR,
        "batch": BATCH,
        "dtype": dtype,
        **machine,
    }
    if views > 1:
        drawn = recipe.image.model_dump(mode="json", include=WINDOWS)
        identity["views"] = {"count": views, "seed": recipe.seed, **drawn}
    sums = known_sums(corpus)
    return EmbedJob(recipe, corpus, absolute(out), identity, sums, chunk, weights=file, views=views, layer=layer, dtype=dtype)


def check(
    recipe: Recipe,
    out: str,
    run: str | None = None,
    weights: str | None = None,
    layer: str | None = None,
    dtype: str = "float16",
    views: int = 1,
) -> tuple[WeightsFile, str | None]:
    """Check, before anything is started, that features can be computed and written; arguments and errors as of `embed`.

    Returns:
        The file of weights, and the layer, None for the feature vector.
    """
    if dtype not in get_args(VectorType):
        raise UserError(f"--dtype: {dtype}; it may be {' or '.join(get_args(VectorType))}")
    if views < 1:
        raise UserError(f"--views {views}: at least one view")
    if views > 1 and recipe.image.crop == "center" and not recipe.image.flip:
        raise UserError(f"--views {views}: with `image.crop: center` and `image.flip: false` all views of an image are the same")
    check_corpus(recipe, "features")
    state, tasks, file = read_weights(weights_url(recipe, run, weights), recipe)
    network = _build(recipe)
    layer = trained_layer(network, layer, network.load(state), tasks, "--layer")
    check_access(out)
    return file, layer


def _build(recipe: Recipe) -> Backbone:
    return build_backbone(recipe.training.backbone, recipe.image.size, recipe.seed)


def _machine(recipe: Recipe, layer: str | None) -> dict[str, Any]:
    return machine_identity(recipe, lambda: _build(recipe).embedding(layer))


@dataclass(frozen=True)
class EmbedJob(NetworkJob):
    """The computation of features: each shard becomes a table of vectors.

    Args:
        layer: as of `embed`, settled.
        dtype: of the vectors.
    """

    command = "embed"
    past = "embedded"
    makes = FEATURES

    layer: str | None = field(kw_only=True)
    dtype: VectorType = field(kw_only=True)

    def machine(self) -> dict[str, Any]:
        return _machine(self.recipe, self.layer)

    def network(self) -> tuple[Embedding, WeightsFile]:
        state, _, file = read_weights(self.weights.url, self.recipe)
        backbone = _build(self.recipe)
        backbone.load(state)
        return backbone.embedding(self.layer), file

    def schema(self, network: nn.Module) -> pa.Schema:
        assert isinstance(network, Embedding)
        return feature_schema(network.width, self.dtype)

    def described(self) -> dict[str, Any]:
        views = {"views": self.views} if self.views > 1 else {}
        return {"columns": [{"name": "vector", "dtype": self.dtype}], "layer": self.layer or VECTOR, **views}

    def columns(self, answers: np.ndarray) -> tuple[Mapping[str, Any], np.ndarray, str]:
        with np.errstate(over="ignore"):  # what is infinite in float16 is left out
            vectors = answers.astype(self.dtype)
        finite = np.isfinite(vectors).all(1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[finite].ravel()), type=_vector(vectors.shape[1], self.dtype))
        return {"vector": column}, ~finite, _NOT_FINITE


def _vector(width: int, dtype: VectorType) -> pa.DataType:
    return pa.list_(pa.float16() if dtype == "float16" else pa.float32(), width)


def feature_schema(width: int, dtype: VectorType) -> pa.Schema:
    """The schema of a table of features."""
    return table_schema(pa.field("vector", _vector(width, dtype)))
