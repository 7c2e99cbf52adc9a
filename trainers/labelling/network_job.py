"""Computes a table of every shard with a network: a row an image, each shard exactly once, on any number of actors."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from importlib.metadata import version
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from pipeline.errors import RunError, UserError
from pipeline.materialize.commit import Bad, CommitRecord
from pipeline.materialize.job import Job, OnChunk, kept_recipe, writing
from pipeline.materialize.rendered import is_rendered
from pipeline.materialize.shard import bad_sample, chunks_of
from pipeline.materialize.writers import TableWriter
from pipeline.recipe.schema import Recipe
from pipeline.rendering.crash_safe import CrashSafeRenderer
from pipeline.rendering.engine import build_engine
from pipeline.shards.corpus import Sample
from pipeline.storage import open_seekable, write_atomic
from pipeline.streaming.batches import ahead
from trainers.labelling.blocks import BlockPool, processor_kind
from trainers.labelling.weights import WeightsFile
from trainers.learning.optim import place
from trainers.networks.inputs import Normaliser, to_device
from trainers.networks.precision import autocast, checked, compute_dtype

BATCH = 64
"""Images that the network is given at a time, always so many: the rows of a shard in order, those that are missing in black."""

PIXELS = {"size", "max_pixels", "reduced", "mean", "std"}
"""Keys of `image` that a centre crop depends on."""

_GROUP = 1024  # rows in a row group
_PACKAGES = ("pseudolabel", "numpy", "pyarrow", "torch", "torchvision", "opencv-python-headless", "pillow")
_NAMES = [("key", pa.string()), ("id", pa.uint64()), ("row", pa.int64()), ("class", pa.int32())]

_Kept = list[tuple[int, Sample]]  # rows of the shard with their samples


def check_corpus(recipe: Recipe, what: str) -> None:
    """Check that a network can look at the recipe's images.

    Args:
        recipe: the recipe.
        what: what is computed, for errors.

    Raises:
        UserError: the corpus is a mixture, or a rendered one.
    """
    if recipe.corpus.mix:
        raise UserError(f"corpus.mix: {what} are computed of one corpus at a time; name it by `corpus.shards`")
    if is_rendered(recipe):
        raise UserError(f"corpus.shards is a rendered corpus, and {what} are computed of whole photos: name the original shards")


def images_alone(recipe: Recipe) -> Recipe:
    """The recipe without tasks, frames and tables beside the corpus: the network is shown the image of every sample."""
    corpus = recipe.corpus.model_copy(update={"frames": None, "annotations": {}, "keep": None, "labelled": None})
    return recipe.model_copy(update={"tasks": {}, "corpus": corpus})


def device_here() -> torch.device:
    """The device that computes in this process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine_identity(recipe: Recipe, build: Callable[[], nn.Module]) -> dict[str, Any]:
    """The part of an identity that depends on the machine: its engine, processor, libraries and precision.

    Args:
        recipe: the recipe.
        build: makes a network of the same kind, from normalised images to anything; its weights do not matter.
    """
    device = device_here()
    network = place(build(), device)
    images = torch.zeros(4, 3, recipe.image.size, recipe.image.size, device=device).contiguous(memory_format=torch.channels_last)
    precision, _ = checked(device, recipe.training.precision, lambda: network(images))
    return {
        "engine": {**build_engine(recipe).identity(), **{package: version(package) for package in _PACKAGES}},
        "processor": processor_kind(device),
        "precision": str(compute_dtype(device, precision)).removeprefix("torch."),
    }


def tables_recipe(recipe: Recipe) -> dict[str, Any]:
    """What folders of such tables keep of a recipe."""
    return {key: value for key, value in kept_recipe(recipe).items() if key not in ("render", "tasks")}


def table_schema(*own: pa.Field) -> pa.Schema:
    """The schema of a table: `key`, `id`, `row`, `class`, and columns of its own."""
    return pa.schema([*_NAMES, *own])


def read_table(url: str, columns: list[str]) -> pa.Table:
    """Some columns of a table.

    Raises:
        RunError: it cannot be read.
    """
    try:
        with open_seekable(url) as file:
            return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{url} cannot be read: {error}") from None


@dataclass(frozen=True)
class NetworkJob(Job):
    """What a network says of each image of a corpus: each shard becomes a table.

    Args:
        weights: the network's, which every actor reads.
        views: of each image, over which the network's answers are averaged: its centre, then crops that are drawn as the
            recipe draws them for training in epochs 1, 2, ...
    """

    weights: WeightsFile = field(kw_only=True)
    views: int = field(default=1, kw_only=True)

    @abstractmethod
    def machine(self) -> dict[str, Any]:
        """`machine_identity` here."""

    @abstractmethod
    def network(self) -> tuple[nn.Module, WeightsFile]:
        """The network with its weights, from normalised images to float (n, width), and the file that they were read from."""

    @abstractmethod
    def schema(self, network: nn.Module) -> pa.Schema:
        """The schema of the tables that `network` makes."""

    @abstractmethod
    def columns(self, answers: np.ndarray) -> tuple[Mapping[str, Any], np.ndarray, str]:
        """What becomes of the network's answers, float32 (n, width).

        Returns:
            The columns of the schema besides the names; bool (n,), which rows are left out; and why they are.
        """

    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> ShardComputer:
        return ShardComputer(self, threads, on_chunk)

    def document(self) -> dict[str, Any]:
        return tables_recipe(self.recipe)

    def output(self, i: int) -> str:
        """The file name of shard `i`'s table."""
        return f"{self.stem(i)}.parquet"


class ShardComputer:
    """Computes the tables of input shards, one after another.

    Args:
        job: what to compute, and where to.
        threads: CPU threads that decode, and batches that are computed at the same time.
        on_chunk: called after each chunk.

    Raises:
        RunError: this machine, or the file of weights, is not that of the job.
    """

    def __init__(self, job: NetworkJob, threads: int = 1, on_chunk: OnChunk | None = None) -> None:
        self._job, self._on_chunk, self._device = job, on_chunk, device_here()
        here = job.machine()
        if any(job.identity[name] != value for name, value in here.items()):
            there = {name: job.identity[name] for name in here}
            raise RunError(f"the machines do not compute alike: one has {there}, another has {here}; give all the same")
        network, file = job.network()
        if file != job.weights:
            raise RunError(f"{file.url} has changed since the command started: run it again")
        self._network = place(network, self._device).eval()
        self._pixels = Normaliser(job.recipe.image.mean, job.recipe.image.std).to(self._device)
        self._center = CrashSafeRenderer(job.recipe, threads, center=True)
        self._window = CrashSafeRenderer(job.recipe, threads)
        self._pool = BlockPool(threads if self._device.type == "cpu" else 1)
        self._schema = job.schema(network)

    def __call__(self, i: int) -> CommitRecord:
        job = self._job
        job.corpus.forget_members()
        samples = len(job.corpus.members(i))
        bad: list[Bad] = []
        with writing(job.out), write_atomic(job.url(job.output(i))) as file, TableWriter(file, self._schema, _GROUP) as table:
            for kept, answers in self._pool.map(self._answers, self._batches(i, samples, bad)):
                table.write(self._table(kept, answers, bad))
            table.finish()
        return CommitRecord(
            shard=job.shard(i),
            bytes=int(job.corpus.sizes[i]),
            samples=samples,
            outputs=[table.output(job.output(i))],
            bad=sorted(bad, key=lambda one: one.row),
        )

    def _batches(self, i: int, samples: int, bad: list[Bad]) -> Iterator[tuple[_Kept, np.ndarray]]:
        """Batches of `BATCH` rows of a shard, each row at its own place: the usable samples, and (views, BATCH, s, s, 3)."""
        kept, pixels = self._empty()
        for first, chunk, read in ahead(chunks_of(self._job, i, samples), 1):
            of_chunk = [sample for sample, _ in chunk]
            views = [(self._window if view else self._center)(of_chunk, view) for view in range(self._job.views)]
            failures = {n: reason for pairs in reversed(views) for n, reason in pairs.failures.items()}
            for n, (sample, parts) in enumerate(chunk):
                row = first + n
                if n in failures:
                    images = {sample.ext: parts[sample.ext]} if sample.ext in parts else {}
                    bad.append(bad_sample(row, sample.key, 0, failures[n], images))
                else:
                    for view, pairs in enumerate(views):
                        pixels[view, row % BATCH] = pairs.columns["image"][n]
                    kept.append((row, sample))
                if row % BATCH == BATCH - 1:
                    if kept:
                        yield kept, pixels
                    kept, pixels = self._empty()
            if self._on_chunk:
                seconds = sum((Counter(pairs.seconds) for pairs in views), Counter({"read": read}))
                self._on_chunk(len(chunk), len(chunk) - len(failures), list(failures.values()), dict(seconds))
        if kept:
            yield kept, pixels

    def _empty(self) -> tuple[_Kept, np.ndarray]:
        size = self._job.recipe.image.size
        return [], np.zeros((self._job.views, BATCH, size, size, 3), np.uint8)

    @torch.inference_mode()
    def _answers(self, batch: tuple[_Kept, np.ndarray]) -> tuple[_Kept, np.ndarray]:
        """The usable samples of a batch, and what the network says of each, float32 (n, width)."""
        kept, views = batch
        mean: Tensor = reduce(add, map(self._answer, views)) / len(views)
        return kept, mean.cpu().numpy()[[row % BATCH for row, _ in kept]]

    def _answer(self, pixels: np.ndarray) -> Tensor:
        """What the network says of pixels, uint8 (n, s, s, 3); float32 (n, width)."""
        images = self._pixels(to_device({"image": pixels}, self._device)["image"])
        with autocast(self._device, self._job.identity["precision"]):
            answers: Tensor = self._network(images).float()
        return answers

    def _table(self, kept: _Kept, answers: np.ndarray, bad: list[Bad]) -> pa.Table:
        """The rows of a batch; those that are left out go to `bad`."""
        own, left_out, why = self._job.columns(answers)
        bad += [bad_sample(row, sample.key, 0, why, {}) for (row, sample), out in zip(kept, left_out) if out]
        left = [(row, sample) for (row, sample), out in zip(kept, left_out) if not out]
        columns = {
            "key": [sample.key for _, sample in left],
            "id": [sample.id for _, sample in left],
            "row": [row for row, _ in left],
            "class": [None if sample.label < 0 else sample.label for _, sample in left],
            **own,
        }
        return pa.table(columns, schema=self._schema)
