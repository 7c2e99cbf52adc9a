"""Computes features of every image of a corpus with a trained backbone: Parquet tables beside it, each shard exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import torch

from pipeline.errors import RunError, UserError
from pipeline.materialize.commit import Bad, CommitRecord
from pipeline.materialize.driver import JobReport, Progress, materialize
from pipeline.materialize.folder import check_access
from pipeline.materialize.job import CHUNK, Job, OnChunk, kept_recipe, known_sums, writing
from pipeline.materialize.rendered import is_rendered
from pipeline.materialize.run import asked, corpus_of, engine_chosen
from pipeline.materialize.shard import bad_sample, chunks_of
from pipeline.materialize.writers import TableWriter
from pipeline.recipe.schema import Recipe
from pipeline.rendering.crash_safe import CrashSafeRenderer
from pipeline.rendering.engine import build_engine
from pipeline.shards.corpus import Sample
from pipeline.storage import absolute, write_atomic
from pipeline.streaming.batches import ahead
from pipeline.streaming.connection import connect_ray
from trainers.downstream.pretrained import VECTOR, trained_layer
from trainers.labelling.blocks import BlockPool, processor_kind
from trainers.labelling.weights import WeightsFile, read_weights, weights_url
from trainers.learning.optim import place
from trainers.networks.backbones import Backbone, Embedding, build_backbone
from trainers.networks.inputs import Normaliser, to_device
from trainers.networks.precision import autocast, checked, compute_dtype

VERSION = 1
FEATURES = "features"
BATCH = 64
"""Images that the network is given at a time, always so many: the rows of a shard in order, those that are missing in black."""

VectorType = Literal["float16", "float32"]

_GROUP = 1024  # rows in a row group

_PACKAGES = ("pseudolabel", "numpy", "pyarrow", "torch", "torchvision", "opencv-python-headless", "pillow")
_PIXELS = {"size", "max_pixels", "reduced", "mean", "std"}  # keys of `image` that a centre crop depends on
_NOT_FINITE = "its features are not finite"

_Kept = list[tuple[int, Sample]]  # rows of the shard with their samples


def embed(
    recipe: Recipe,
    out: str,
    run: str | None = None,
    weights: str | None = None,
    layer: str | None = None,
    dtype: VectorType = "float16",
    retry_failed: bool = False,
    indexing: Callable[[int, int], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    chunk: int = CHUNK,
    here: bool = False,
) -> JobReport:
    """Compute the features of every image of a recipe's corpus; after an interruption the same call goes on.

    The centre of each photo goes through the network in evaluation mode. A feature depends on the image, the weights and the kind
    of processor, and on no other image. For each shard a Parquet table has the columns `key`, `id`, `row` in the shard, `class`
    where the shards have labels, and `vector`.

    Args:
        recipe: the recipe; its `corpus`, `image`, `placement` and `training.backbone` count.
        out: folder for the result, path or URL.
        run: folder of the run whose backbone is taken, instead of the recipe's own.
        weights: a file of weights, instead of a run's.
        layer: name of the layer whose output, averaged over positions, is the feature; None for the deepest trained one.
        dtype: type of the vectors on disk.
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
    file, layer = check(recipe, out, run, weights, layer, dtype)
    if not here:
        connect_ray()
    single = recipe.corpus.model_copy(update={"frames": None})
    recipe = engine_chosen(recipe.model_copy(update={"tasks": {}, "corpus": single}), here)
    machine = asked(partial(_machine, recipe, layer), recipe, here)
    corpus = corpus_of(recipe, indexing)
    identity = {
        "version": VERSION,
        "makes": FEATURES,
        "corpus": recipe.corpus.model_dump(mode="json", include={"image", "keys"}),
        "image": recipe.image.model_dump(mode="json", include=_PIXELS),
        "backbone": recipe.training.backbone.architecture(),
        "weights": file.sha256,
        "layer": layer or VECTOR,
        "batch": BATCH,
        "dtype": dtype,
        **machine,
    }
    job = EmbedJob(recipe, corpus, absolute(out), identity, known_sums(corpus), chunk, weights=file, layer=layer, dtype=dtype)
    return materialize(job, retry_failed, progress, here)


def check(
    recipe: Recipe, out: str, run: str | None = None, weights: str | None = None, layer: str | None = None, dtype: str = "float16"
) -> tuple[WeightsFile, str | None]:
    """Check, before anything is started, that features can be computed and written; arguments and errors as of `embed`.

    Returns:
        The file of weights, and the layer, None for the feature vector.
    """
    if dtype not in get_args(VectorType):
        raise UserError(f"--dtype: {dtype}; it may be {' or '.join(get_args(VectorType))}")
    if recipe.corpus.mix:
        raise UserError("corpus.mix: features are computed of one corpus at a time; name it by `corpus.shards`")
    if is_rendered(recipe):
        raise UserError("corpus.shards is a rendered corpus, and features are computed of whole photos: name the original shards")
    state, tasks, file = read_weights(weights_url(recipe, run, weights), recipe)
    network = _build(recipe)
    layer = trained_layer(network, layer, network.load(state), tasks, "--layer")
    check_access(out)
    return file, layer


def _build(recipe: Recipe) -> Backbone:
    return build_backbone(recipe.training.backbone, recipe.image.size, recipe.seed)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _machine(recipe: Recipe, layer: str | None) -> dict[str, Any]:
    """The part of the identity that depends on the machine: its engine, processor, libraries and precision."""
    device = _device()
    network = _build(recipe)
    place(network, device)
    images = torch.zeros(4, 3, recipe.image.size, recipe.image.size, device=device).contiguous(memory_format=torch.channels_last)
    precision, _ = checked(device, recipe.training.precision, lambda: network.embedding(layer)(images))
    return {
        "engine": {**build_engine(recipe).identity(), **{package: version(package) for package in _PACKAGES}},
        "processor": processor_kind(device),
        "precision": str(compute_dtype(device, precision)).removeprefix("torch."),
    }


@dataclass(frozen=True)
class EmbedJob(Job):
    """The computation of features: each shard becomes a table of vectors.

    Args:
        weights: the network's, which every actor reads.
        layer: as of `embed`, settled.
        dtype: of the vectors.
    """

    command = "embed"
    past = "embedded"
    makes = FEATURES

    weights: WeightsFile = field(kw_only=True)
    layer: str | None = field(kw_only=True)
    dtype: VectorType = field(kw_only=True)

    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> ShardEmbedder:
        return ShardEmbedder(self, threads, on_chunk)

    def described(self) -> dict[str, Any]:
        return {"columns": [{"name": "vector", "dtype": self.dtype}], "layer": self.layer or VECTOR}

    def document(self) -> dict[str, Any]:
        return features_recipe(self.recipe)

    def output(self, i: int) -> str:
        """The file name of shard `i`'s table."""
        return f"{self.stem(i)}.parquet"


def features_recipe(recipe: Recipe) -> dict[str, Any]:
    """What folders of features and of labels keep of a recipe."""
    return {key: value for key, value in kept_recipe(recipe).items() if key not in ("render", "tasks")}


def feature_schema(width: int, dtype: VectorType) -> pa.Schema:
    """The schema of a table of features."""
    vector = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), width)
    return pa.schema([("key", pa.string()), ("id", pa.uint64()), ("row", pa.int64()), ("class", pa.int32()), ("vector", vector)])


class ShardEmbedder:
    """Computes the features of input shards, one after another.

    Args:
        job: what to compute, and where to.
        threads: CPU threads that decode, and batches that are computed at the same time.
        on_chunk: called after each chunk.

    Raises:
        RunError: this machine, or the file of weights, is not that of the job.
    """

    def __init__(self, job: EmbedJob, threads: int = 1, on_chunk: OnChunk | None = None) -> None:
        self._job, self._on_chunk, self._device = job, on_chunk, _device()
        here = _machine(job.recipe, job.layer)
        if any(job.identity[name] != value for name, value in here.items()):
            there = {name: job.identity[name] for name in here}
            raise RunError(f"the machines do not compute alike: one has {there}, another has {here}; give all the same")
        state, _, file = read_weights(job.weights.url, job.recipe)
        if file != job.weights:
            raise RunError(f"{file.url} has changed since the command started: run it again")
        self._network = self._load(state)
        self._pixels = Normaliser(job.recipe.image.mean, job.recipe.image.std).to(self._device)
        self._render = CrashSafeRenderer(job.recipe, threads, center=True)
        self._pool = BlockPool(threads if self._device.type == "cpu" else 1)
        self._schema = feature_schema(self._network.width, job.dtype)

    def _load(self, state: dict[str, Any]) -> Embedding:
        backbone = _build(self._job.recipe)
        backbone.load(state)
        place(backbone, self._device)
        return backbone.embedding(self._job.layer)

    def __call__(self, i: int) -> CommitRecord:
        job = self._job
        job.corpus.forget_members()
        samples = len(job.corpus.members(i))
        bad: list[Bad] = []
        with writing(job.out), write_atomic(job.url(job.output(i))) as file, TableWriter(file, self._schema, _GROUP) as table:
            for kept, vectors in self._pool.map(self._vectors, self._batches(i, samples, bad)):
                table.write(self._table(kept, vectors, bad))
            table.finish()
        return CommitRecord(
            shard=job.shard(i),
            bytes=int(job.corpus.sizes[i]),
            samples=samples,
            outputs=[table.output(job.output(i))],
            bad=sorted(bad, key=lambda one: one.row),
        )

    def _batches(self, i: int, samples: int, bad: list[Bad]) -> Iterator[tuple[_Kept, np.ndarray]]:
        """Batches of `BATCH` rows of a shard, each row at its own place: the usable samples, and pixels (BATCH, s, s, 3)."""
        size = self._job.recipe.image.size
        kept, pixels = self._empty(size)
        for first, chunk, read in ahead(chunks_of(self._job, i, samples), 1):
            pairs = self._render([sample for sample, _ in chunk], 0)
            for n, (sample, parts) in enumerate(chunk):
                row = first + n
                if n in pairs.failures:
                    images = {sample.ext: parts[sample.ext]} if sample.ext in parts else {}
                    bad.append(bad_sample(row, sample.key, 0, pairs.failures[n], images))
                else:
                    pixels[row % BATCH] = pairs.columns["image"][n]
                    kept.append((row, sample))
                if row % BATCH == BATCH - 1:
                    yield kept, pixels
                    kept, pixels = self._empty(size)
            if self._on_chunk:
                good = len(chunk) - len(pairs.failures)
                self._on_chunk(len(chunk), good, list(pairs.failures.values()), {"read": read, **pairs.seconds})
        yield kept, pixels

    @staticmethod
    def _empty(size: int) -> tuple[_Kept, np.ndarray]:
        return [], np.zeros((BATCH, size, size, 3), np.uint8)

    @torch.inference_mode()
    def _vectors(self, batch: tuple[_Kept, np.ndarray]) -> tuple[_Kept, np.ndarray]:
        """The usable samples of a batch, and the vector of each."""
        kept, pixels = batch
        if not kept:
            return kept, np.zeros((0, self._network.width), self._job.dtype)
        images = self._pixels(to_device({"image": pixels}, self._device)["image"])
        with autocast(self._device, self._job.identity["precision"]):
            vectors = self._network(images).float().cpu().numpy()
        with np.errstate(over="ignore"):  # what is infinite in float16 is left out below
            return kept, vectors[[row % BATCH for row, _ in kept]].astype(self._job.dtype)

    def _table(self, kept: _Kept, vectors: np.ndarray, bad: list[Bad]) -> pa.Table:
        """The rows of a batch; those with infinite features go to `bad`."""
        finite = np.isfinite(vectors).all(1)
        bad += [bad_sample(row, sample.key, 0, _NOT_FINITE, {}) for (row, sample), fine in zip(kept, finite) if not fine]
        left = [(row, sample) for (row, sample), fine in zip(kept, finite) if fine]
        columns = {
            "key": [sample.key for _, sample in left],
            "id": [sample.id for _, sample in left],
            "row": [row for row, _ in left],
            "class": [None if sample.label < 0 else sample.label for _, sample in left],
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors[finite].ravel()), type=self._schema.field("vector").type
            ),
        }
        return pa.table(columns, schema=self._schema)
